"""What `options/matrix/release.yml` asks of a GPU, on one: resident frames, bf16, compiled networks."""

from __future__ import annotations

import pytest
import torch
from toolbox import distill_options

from csd_plugin.cli import main

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
PROFILE = {
    "num_gpu": 1,
    "datasets.train.type": "ResidentVideoDataset",
    "train.autocast": "bf16",
    "train.compile": True,
}


def test_a_student_is_distilled_by_the_gpu_profile(launcher, tiny_rain, tiny_teacher):
    assert launcher.train(distill_options(tiny_rain, tiny_teacher, **PROFILE)) == 0
    model = launcher.models[-1]
    assert model.lq.is_cuda and all(weight.is_cuda for weight in model.net_g.parameters())
    assert all(weight.isfinite().all() for weight in launcher.weights("net_g_latest").values())


def test_the_teachers_forward_is_measured_against_the_cards_rate(capsys):
    arguments = ["--device", "cuda", "--networks", "teacher", "--backends", "plain:bf16", "compiled:bf16"]
    assert main(["bench", "infer", *arguments, "--sizes", "128x128", "--batch", "20", "--rounds", "2"]) == 0
    assert "matrix products: bf16" in capsys.readouterr().out

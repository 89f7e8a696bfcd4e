"""Two processes with half of the batch each are one process with all of it, on real frames; and what ends them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from toolbox import changed, distill_options, scored_set, torchrun, train_options

SGD = {"type": "SGD", "lr": 0.003}  # Adam makes steps of rounding errors
BALANCED = {"spatial": {"balance": 0.3}, "temporal": {"balance": 0.1}}


@pytest.fixture
def real(shared) -> dict:
    """Crops of NTURain's a1, four clips in a batch."""
    root = shared / "data" / "NTURain"
    data = {"dataroot": str(root), "split": "test", "clips": ["a1"], "batch_size_per_gpu": 4}
    return {f"datasets.train.{key}": value for key, value in data.items()} | {
        "train.total_iter": 3,
        "train.optim_g": SGD,
    }


def halved(options: dict) -> dict:
    batch = options["datasets"]["train"]["batch_size_per_gpu"]
    return changed(options, {"datasets.train.batch_size_per_gpu": batch // 2})


def assert_same_weights(one: Path, two: Path, *, rtol: float, atol: float) -> None:
    """Every tensor of the last checkpoints."""
    for path in sorted(one.glob("models/*_latest.pth")):
        ours, theirs = torch.load(path), torch.load(two / "models" / path.name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            for name, weight in ours[key].items():
                torch.testing.assert_close(theirs[key][name], weight, rtol=rtol, atol=atol, msg=f"{path.name} {name}")


def test_stage_1_with_validation(launcher, real, tmp_path, shared):
    """Losses, clipped gradients, average and scores; and nothing of the second process is left on the disk."""
    options = train_options(tmp_path, val={"val_freq": 2, "save_img": False}, **real, **{"train.grad_clip": 0.1})
    options["datasets"]["val"] = scored_set(shared / "data" / "NTURain", clips=["a1"], frame_range=[1, 3])
    assert launcher.train(options) == 0
    other = tmp_path / "other"
    other.mkdir()
    run = torchrun(other, halved(options))
    assert run.returncode == 0, run.stderr[-3000:]
    one, two = (folder / "experiments/run" for folder in (launcher.folder, other))
    assert_same_weights(one, two, rtol=1e-4, atol=1e-6)
    files = [sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.suffix != ".log") for run in (one, two)]
    assert files[0] == files[1]
    scores = [json.loads((run / "metrics/rain_3.json").read_text())["average"] for run in (one, two)]
    for protocol, quality in scores[0].items():
        assert scores[1][protocol] == pytest.approx(quality, rel=1e-4)
    losses = [float(value) for value in re.findall(r"l_recon: (\S+)", run.stderr)]
    assert losses[-1] == pytest.approx(launcher.models[-1].log_dict["l_recon"], rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "rtol", "atol"),
    [
        ({"train.distill_opt.taps": {"adapters": ["conv1x1"]}, "train.distill_opt.weights": BALANCED}, 1e-4, 1e-6),
        ({"train.distill_opt.cells": "joint_until_collapsed", "train.autocast": "bf16", "train.accumulate": 2}, 0.01, 2e-4),
    ],
    ids=["adapters, balanced", "bf16, in parts"],
)
def test_distillation(launcher, real, tmp_path, tiny_teacher, changes, rtol, atol):
    """Student, average, cells and adapters."""
    options = distill_options(tmp_path, tiny_teacher, **real)
    options = changed(options, changes)
    assert launcher.train(options) == 0
    other = tmp_path / "other"
    other.mkdir()
    run = torchrun(other, halved(options))
    assert run.returncode == 0, run.stderr[-3000:]
    assert_same_weights(launcher.folder / "experiments/run", other / "experiments/run", rtol=rtol, atol=atol)


DYING = """
import os, signal, sys
from csd_plugin import train
from csd_plugin.models.distill_model import DistillModel

compute = DistillModel.compute_losses


def dying(self, iteration):
    if iteration == 4 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(self, iteration)


DistillModel.compute_losses = dying
sys.exit(train.main())
"""


def test_a_process_that_is_killed_ends_the_job_which_is_resumed(launcher, tmp_path, tiny_rain, tiny_teacher):
    options = distill_options(tiny_rain, tiny_teacher, **{"train.total_iter": 6, "train.optim_g": SGD})
    assert launcher.train(options) == 0
    other, script = tmp_path / "other", tmp_path / "dying.py"
    other.mkdir()
    script.write_text(DYING)
    killed = torchrun(other, halved(options), script=script)
    assert killed.returncode != 0
    [line] = [line for line in killed.stderr.splitlines() if line.startswith("error: ")]
    assert re.match(r"error: rank 1 \(host .*, process \d+\) has died", line) and "--auto_resume" in line
    assert [path.name for path in (other / "experiments/run/training_states").iterdir()] == ["2.state"]
    resumed = torchrun(other, halved(options), "--auto_resume")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "iter: 2." in resumed.stderr
    assert_same_weights(launcher.folder / "experiments/run", other / "experiments/run", rtol=1e-4, atol=1e-6)


BAD = """
import os, sys, torch
from csd_plugin import train
from csd_plugin.models.video_derain_model import VideoDerainModel

feed = VideoDerainModel.feed_data


def spoilt(self, data):
    feed(self, data)
    self.count = getattr(self, "count", 0) + 1
    if self.count == 2 and os.environ["RANK"] == "1":
        self.gt[0, 0, 0, 0, 0] = float("nan")


VideoDerainModel.feed_data = spoilt
sys.exit(train.main())
"""


def test_a_batch_that_is_bad_in_one_process_is_left_out_by_all(tmp_path, tiny_rain):
    (tmp_path / "bad.py").write_text(BAD)
    options = train_options(tiny_rain, **{"train.total_iter": 4})
    run = torchrun(tmp_path, options, script=tmp_path / "bad.py")
    assert run.returncode == 0, run.stderr[-3000:]
    [line] = [line for line in run.stderr.splitlines() if "not finite" in line]
    assert "iteration 2: l_recon not finite on t" in line and "the frames hold values" in line
    experiment = tmp_path / "experiments/run"
    assert len((experiment / "skipped.txt").read_text().splitlines()) == 1
    state = torch.load(experiment / "training_states/4.state", weights_only=True)
    assert {int(entry["step"]) for entry in state["optimizers"][0]["state"].values()} == {3}

"""The loop that the documentation shows, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from synthetic import TRAIN, write_ntu_rain
from toolbox import equal

from csd_plugin.archs.checkpoint import load_network
from csd_plugin.toolbox_imports import import_torchvision
from csd_plugin.weights import find_checkpoint

PAGE = Path(__file__).resolve().parents[2] / "docs" / "plain_pytorch.md"


BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
LOOP, LIGHTNING, ACCELERATE, ADAPTERS = BLOCKS


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the page's first block defines, after it ran in a folder with clips."""
    clips = {f"{TRAIN}/t{i}": ("GT", "Rain_01") for i in (1, 2)}
    write_ntu_rain(tmp_path / "datasets" / "rain_clips", frames=9, height=66, width=70, clips=clips)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    torch.manual_seed(0)
    run(LOOP, names)
    return names


def run(block: str, names: dict) -> None:
    exec(compile(block, str(PAGE), "exec"), names)


def test_the_loop_of_the_documentation_trains_a_student_that_csd_reads(names, caplog):
    assert not caplog.get_records("setup")  # what the page shows is nothing to be warned of
    start = load_network(find_checkpoint("tiny")).state_dict()
    assert names["iteration"] == 3  # two clips of nine frames have six runs of seven
    assert {"l_recon", "l_distill"} == names["losses"].keys()
    student = load_network("student.pth").state_dict()
    assert equal(dict(student), dict(names["student"].state_dict())) and not equal(dict(student), dict(start))
    run(ADAPTERS, names)
    losses, _ = names["distiller"](names["batch"], 1)
    losses["l_distill"].backward()
    assert names["objective"].convs[0].weight.grad.any()


@pytest.mark.parametrize(
    ("block", "package", "result"),
    [(LIGHTNING, "lightning", "last.ckpt"), (ACCELERATE, "accelerate", "state/model.safetensors")],
    ids=["lightning", "accelerate"],
)
def test_other_loops_of_the_documentation_train_it_too(names, caplog, block, package, result):
    import_torchvision()  # as these packages do, without repairs
    pytest.importorskip(package)
    before = load_network("student.pth").state_dict()
    names["distiller"].restore({})  # as if it were new
    run(block, names)
    student = load_network(result).state_dict()
    assert equal(dict(student), dict(names["student"].state_dict())) and not equal(dict(student), dict(before))
    assert not [record for record in caplog.records if record.name.startswith("csd_plugin")]

"""The loop that the documentation shows, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from synthetic import TRAIN, write_ntu_rain
from toolbox import equal

from csd_plugin.archs.checkpoint import load_network
from csd_plugin.weights import find_checkpoint

PAGE = Path(__file__).resolve().parents[2] / "docs" / "plain_pytorch.md"


def test_the_loop_of_the_documentation_trains_a_student_that_csd_reads(tmp_path, monkeypatch, caplog):
    block, adapters = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    clips = {f"{TRAIN}/t{i}": ("GT", "Rain_01") for i in (1, 2)}
    write_ntu_rain(tmp_path / "datasets" / "rain_clips", frames=9, height=66, width=70, clips=clips)
    monkeypatch.chdir(tmp_path)
    start = load_network(find_checkpoint("tiny")).state_dict()
    names: dict = {}
    torch.manual_seed(0)
    exec(compile(block, str(PAGE), "exec"), names)
    assert not caplog.records  # what the page shows is nothing to be warned of
    assert names["iteration"] == 3  # two clips of nine frames have six runs of seven
    assert {"l_recon", "l_distill"} == names["losses"].keys()
    student = load_network("student.pth").state_dict()
    assert equal(dict(student), dict(names["student"].state_dict())) and not equal(dict(student), dict(start))
    exec(compile(adapters, str(PAGE), "exec"), names)
    losses, _ = names["distiller"](names["batch"], 1)
    losses["l_distill"].backward()
    assert names["objective"].convs[0].weight.grad.any()

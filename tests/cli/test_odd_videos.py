"""Every kind of video that people have is derained whole, or is one clear line and no file."""

from __future__ import annotations

import re

import pytest
import torch
from odd_videos import ODD_VIDEOS, Odd, derain

from csd_plugin.archs.sldnet import SLDNet


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("odd") / "net.pth"
    torch.save({"params": SLDNet(preset="student2", num_feat=3).state_dict()}, path)
    return str(path)


@pytest.mark.parametrize("odd", ODD_VIDEOS, ids=[odd.name for odd in ODD_VIDEOS])
def test_works_or_is_one_line(odd: Odd, model, tmp_path):
    status, lines, facts = derain(odd, tmp_path, model=model)
    assert facts["files"][0] == facts["files"][1]
    if odd.error:
        assert status == 2 and len(lines) == 1 and lines[0].startswith("csd derain: error: ")
        assert re.search(odd.error, lines[0]) and odd.name in lines[0]
        return
    assert status == 0
    for key, (before, after) in facts.items():
        assert before == after, key

"""A small slice of the hostile files, and that the tool sees what it is there to see."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="every case is a forked process")


@pytest.fixture(scope="module")
def hostile():
    spec = importlib.util.spec_from_file_location("hostile", ROOT / "tools" / "hostile.py")
    path = list(sys.path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["hostile"] = module  # its classes are pickled
    spec.loader.exec_module(module)
    sys.path[:] = path
    yield module
    del sys.modules["hostile"]


def test_no_harm_is_done(hostile, tmp_path, capsys):
    assert hostile.main(["--count", "27", "--seed", "4", "--work", str(tmp_path)]) == 0
    assert "all                    27" in capsys.readouterr().out


def test_harm_is_seen(hostile, tmp_path, monkeypatch):
    ground = hostile.Ground(tmp_path / "ground")
    case = hostile.option_files(ground, random.Random(0))

    def outcome(start):
        monkeypatch.setattr(hostile, "start", start)
        return hostile.judge(ground, case)[0]

    def refusing(command):
        print("csd inspect: error: no", file=sys.stderr)
        return 2

    assert outcome(refusing) == hostile.REFUSED
    assert outcome(lambda command: 0) == hostile.ACCEPTED
    assert outcome(lambda command: 1 / 0) == hostile.TRACEBACK
    assert outcome(lambda command: ground.marker.touch()) == hostile.RAN
    monkeypatch.setattr(hostile, "MOST_MEMORY", 1000)
    assert outcome(refusing) == hostile.MEMORY
    assert outcome(lambda command: (tmp_path / "ground" / "beside").touch()) == hostile.ESCAPED

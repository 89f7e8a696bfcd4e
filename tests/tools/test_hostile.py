"""A small slice of the hostile files, and that the tool sees what it is there to see."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import script

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="every case is a forked process")


@pytest.fixture(scope="module")
def hostile():
    with script("hostile") as module:
        yield module


def test_no_harm_is_done(tmp_path):
    """As a command: it forks, and this process may have threads whose locks a fork would never see released."""
    command = [sys.executable, ROOT / "tools/hostile.py", "--count", "27", "--seed", "4", "--work", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "all                    27" in run.stdout


def test_harm_is_seen(hostile, tmp_path, monkeypatch):
    ground = hostile.Ground(tmp_path / "ground")
    case = hostile.option_files(ground, random.Random(0))

    def outcome(start):
        monkeypatch.setattr(hostile, "start", start)
        return hostile.judge(ground, case)[0]

    def refusing(command):
        print("csd inspect: error: no", file=sys.stderr)
        return 2

    monkeypatch.setattr(hostile, "MOST_MEMORY", 2**40)  # what this process, which is forked, has grown to counts too
    assert outcome(refusing) == hostile.REFUSED
    assert outcome(lambda command: 0) == hostile.ACCEPTED
    assert outcome(lambda command: 1 / 0) == hostile.TRACEBACK
    assert outcome(lambda command: ground.marker.touch()) == hostile.RAN
    monkeypatch.setattr(hostile, "MOST_MEMORY", 1000)
    assert outcome(refusing) == hostile.MEMORY
    assert outcome(lambda command: (tmp_path / "ground" / "beside").touch()) == hostile.ESCAPED

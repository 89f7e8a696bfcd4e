"""A small slice of the hostile files, and that the tool sees what it is there to see."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

if not hasattr(os, "fork"):
    pytest.skip("every case is a forked process", allow_module_level=True)

import hostile
from malicious import judging, running

ROOT = Path(__file__).resolve().parents[2]


MAKE_ALL = """
import random, sys
from pathlib import Path
import hostile

hostile.warm_up()
ground = hostile.Ground(Path(sys.argv[1]))
for kind, make in hostile.MAKERS.items():
    cases = [make(ground, random.Random(f"{kind} {seed}")) for seed in range(8)]
    assert len({case.name for case in cases}) > 1 and all(case.out.exists() for case in cases), kind
hostile.Ground, hostile.warm_up = lambda folder: ground, lambda: None  # made once, for both
sys.exit(hostile.main(["--count", "27", "--seed", "4"]))
"""


def test_files_of_all_kinds_can_be_made_and_a_slice_of_them_does_no_harm(tmp_path):
    """More are made than are tried, as a maker that fails is one that a change of the package has left behind.

    As a command: it forks, and this process may have threads whose locks a fork would never see released.
    """
    command = [sys.executable, "-c", MAKE_ALL, tmp_path / "ground"]
    run = subprocess.run(command, cwd=ROOT / "tools", capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "all                    27" in run.stdout


def test_harm_is_seen(tmp_path, monkeypatch):
    ground = hostile.Ground(tmp_path / "ground")
    case = hostile.options.option_files(ground, random.Random(0))

    def outcome(start):
        monkeypatch.setattr(running, "start", start)
        return judging.judge(ground, case)[0]

    def refusing(command):
        print("csd inspect: error: no", file=sys.stderr)
        return 2

    for module in (judging, running):  # what this process, which is forked, has grown to counts too
        monkeypatch.setattr(module, "MOST_MEMORY", 2**40)
    assert outcome(refusing) == judging.REFUSED
    assert outcome(lambda command: 0) == judging.ACCEPTED
    assert outcome(lambda command: 1 / 0) == judging.TRACEBACK
    assert outcome(lambda command: ground.marker.touch()) == judging.RAN
    monkeypatch.setattr(judging, "MOST_MEMORY", 1000)
    assert outcome(refusing) == judging.MEMORY
    assert outcome(lambda command: (tmp_path / "ground" / "beside").touch()) == judging.ESCAPED

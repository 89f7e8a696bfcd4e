"""The launchers on a GPU. Where there is none, on a pretend one, which has to be loaded before anything is computed:
so in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import guard
import pytest
import torch

HERE = Path(__file__).parent


def test_on_a_gpu(tmp_path):
    """`cases.py`: its tests are listed in the output of one that fails."""
    arguments, environment = [], {**os.environ, "OMP_NUM_THREADS": "1"}
    if not torch.cuda.is_available():
        try:
            environment["PRETEND_GPU"] = str(guard.build(tmp_path))
        except guard.CannotBuild as reason:
            pytest.skip(str(reason))
        arguments = ["-p", "plugin"]
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    done = subprocess.run(
        [*command, str(HERE / "cases.py")], env=environment, cwd=HERE.parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]

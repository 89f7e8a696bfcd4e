"""Processes with a GPU: where there is none, a pretend one, which has to be loaded before anything is computed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import guard
import pytest
import torch

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def pretend_gpu(tmp_path_factory):
    """The library to load, or None where there is a real one."""
    if torch.cuda.is_available():
        return None
    try:
        return guard.build(tmp_path_factory.mktemp("guard"))
    except guard.CannotBuild as reason:
        pytest.skip(str(reason))


@pytest.fixture
def passes_on_a_gpu(pretend_gpu):
    """passes_on_a_gpu("cases.py"): run the tests of these files; those that fail are in the message."""

    def check(*files: str) -> None:
        arguments, environment = [], {**os.environ, "OMP_NUM_THREADS": "1"}
        if pretend_gpu is not None:
            environment["PRETEND_GPU"] = str(pretend_gpu)
            arguments = ["-p", "plugin"]
        paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
        command += [str(HERE / file) for file in files]
        done = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]

    return check

"""The launchers and objectives on a GPU. Where there is none, on a pretend one, which has to be loaded before anything
is computed: so in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import guard
import pytest
import torch

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def pretend_gpu(tmp_path_factory):
    """The library to load, or None where there is a real one."""
    if torch.cuda.is_available():
        return None
    try:
        return guard.build(tmp_path_factory.mktemp("guard"))
    except guard.CannotBuild as reason:
        pytest.skip(str(reason))


NEEDS_A_REAL_ONE = pytest.mark.skipif(not torch.cuda.is_available(), reason="a pretend GPU records no graphs")


@pytest.mark.parametrize(
    "files", [["cases.py"], ["equality.py", "formats.py"], pytest.param(["graphs.py"], marks=NEEDS_A_REAL_ONE)], ids=str
)
def test_on_a_gpu(pretend_gpu, files):
    """The tests of these files: they are listed in the output of one that fails."""
    arguments, environment = [], {**os.environ, "OMP_NUM_THREADS": "1"}
    if pretend_gpu is not None:
        environment["PRETEND_GPU"] = str(pretend_gpu)
        arguments = ["-p", "plugin"]
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    done = subprocess.run(
        [*command, *(str(HERE / file) for file in files)],
        env=environment,
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]

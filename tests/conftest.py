"""Shared by all tests: where real frames are, and one thread per process so that runs repeat bit for bit."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

# No test asserts a time; left alone, hypothesis would, of each example and of drawing it, except where CI is set.
# Property tests look for new examples wherever people work; continuous integration repeats the same ones.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("here"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


class _Stack(ctypes.Structure):
    _fields_ = (("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


_ROOM = ctypes.create_string_buffer(2**18)


def pytest_sessionstart() -> None:
    """Room for signals: the registers of AMX, once used, do not fit where pytest's faulthandler has signals handled.

    Linux then ends the process at the next signal that Python handles, as of a worker of a loader that has ended.
    """
    if sys.platform == "linux":
        stack = _Stack(ctypes.addressof(_ROOM), 0, len(_ROOM))
        assert ctypes.CDLL(None, use_errno=True).sigaltstack(ctypes.byref(stack), None) == 0


def pytest_collection_finish() -> None:
    """What is there now stays to the end: no search for garbage goes through it again, in forked processes neither."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _short_trials():
    """Four runs say how long a frame takes, not some tenths of a second of them: times are not what is tested."""
    if find_spec("av") is None:  # a machine with a GPU may lack it: only tests that need no video run there
        yield
        return
    from csd_plugin.inference import runner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_TRIAL_SECONDS", 0.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def _graphs_once():
    """Torch's own exporter is not what is tested: the same network is taken through it once."""
    from graphs_once import once

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", once(torch.onnx.export))
        yield


@pytest.fixture(scope="session", autouse=True)
def _hangups_end():
    """As in a terminal, also where the tests are started by `nohup`, which processes of tests would inherit."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real NTURain frames: $CSD_SHARED, or `shared` beside the checkout. Skips where there is none."""
    folder = Path(os.environ.get("CSD_SHARED", ROOT.parent / "shared"))
    if not (folder / "data" / "NTURain").is_dir():
        pytest.skip(f"no real frames: {folder} has no data/NTURain (set CSD_SHARED)")
    return folder


@pytest.fixture(scope="session")
def tiny_rain(tmp_path_factory) -> Path:
    """A data set in NTURain's layout: two training clips, two test clips, a real one; nine frames of 30x40."""
    from synthetic import REAL, TEST, TRAIN, write_ntu_rain

    pair = ("GT", "Rain")
    clips = {f"{TRAIN}/t1": ("GT", "Rain_01"), f"{TRAIN}/t2": ("GT", "Rain_01"), f"{TEST}/a1": pair, f"{TEST}/b1": pair}
    root = tmp_path_factory.mktemp("tiny_rain")
    return write_ntu_rain(root, frames=9, height=30, width=40, clips=clips | {f"{REAL}/ra1": ("Rain",)})


def _teacher(folder: Path, **numbers: Any) -> Path:
    """A checkpoint whose averaged and plain weights differ."""
    from csd_plugin.archs.sldnet import SLDNet

    with torch.random.fork_rng():
        torch.manual_seed(1)
        plain, averaged = (SLDNet(**numbers).state_dict() for _ in range(2))
    path = folder / "teacher.pth"
    torch.save({"params": plain, "params_ema": averaged}, path)
    return path


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory) -> Path:
    """A checkpoint of the narrow teacher of `toolbox.TEACHER`, whose averaged and plain weights differ."""
    return _teacher(tmp_path_factory.mktemp("tiny_teacher"), preset="teacher", num_feat=4)


@pytest.fixture(scope="session")
def shallow_teacher(tmp_path_factory) -> Path:
    """The same of `toolbox.SHALLOW_TEACHER`."""
    from toolbox import SHALLOW_TEACHER

    return _teacher(tmp_path_factory.mktemp("shallow_teacher"), **SHALLOW_TEACHER)


@pytest.fixture
def launcher(tmp_path, monkeypatch):
    """Runs of `csd_plugin.train` and `csd_plugin.test` in this process, in `tmp_path`."""
    from toolbox import Launcher

    return Launcher(tmp_path, monkeypatch)

"""Shared by all tests: where real frames are, and one thread per process so that runs repeat bit for bit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real NTURain frames: $CSD_SHARED, or `shared` beside the checkout. Skips where there is none."""
    folder = Path(os.environ.get("CSD_SHARED", ROOT.parent / "shared"))
    if not (folder / "data" / "NTURain").is_dir():
        pytest.skip(f"no real frames: {folder} has no data/NTURain (set CSD_SHARED)")
    return folder

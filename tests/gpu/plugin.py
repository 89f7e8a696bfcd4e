"""`pytest -p plugin`: runs that ask for a GPU get the pretend one. In a process of its own, see `conftest.py`."""

from __future__ import annotations

import os
from pathlib import Path

import guard

guard.install(Path(os.environ["PRETEND_GPU"]))

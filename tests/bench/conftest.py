"""Measurements in processes of their own, begun at once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import warm

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def forked(monkeypatch):
    """`measured_apart` without a start of Python, which `csd bench growth` is tested with."""

    def measured(module, arguments, what):
        done = warm.python("-m", module, *arguments, environment=os.environ | {"PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    for module in ("training", "realtime"):
        monkeypatch.setattr(f"csd_plugin.bench.{module}.measured_apart", measured)

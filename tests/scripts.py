"""The scripts of tools/, which is no package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@contextmanager
def script(name: str) -> Iterator[ModuleType]:
    """tools/NAME.py; inside, it can be imported by its name, where dataclasses and pickles look for their classes.

    What it adds to `sys.path` is taken back at the end.
    """
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path[:] = path
        del sys.modules[name]

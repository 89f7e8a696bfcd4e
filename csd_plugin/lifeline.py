"""Processes that live no longer than the one that started them, however that ends: by SIGKILL, too.

The starter keeps the writing end of a pipe whose reading end is the standard input of the process that it starts.
Nothing is ever written; the system closes the pipe with its owner. Works the same on all systems.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_VARIABLE = "CSD_LIFELINE"
"""Set where standard input is such a pipe."""


@contextmanager
def lifeline(environment: dict[str, str] | None = None) -> Iterator[dict[str, Any]]:
    """Keywords stdin and env for `subprocess`, for a command that calls `end_with_starter`.

    The process has to end inside: it is stopped where this does.
    """
    reading, writing = os.pipe()
    try:
        yield {"stdin": reading, "env": {**(os.environ if environment is None else environment), _VARIABLE: "1"}}
    finally:
        os.close(writing)
        os.close(reading)


def end_with_starter() -> None:
    """End this process at once when its starter, which gave it a `lifeline`, has ended; without one do nothing."""
    if os.environ.pop(_VARIABLE, None):  # processes that this one starts have other pipes
        threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)

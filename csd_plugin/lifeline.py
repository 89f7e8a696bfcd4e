"""Processes that live as long as the one that started them: no longer, however that ends; and not less.

The starter keeps the writing end of a pipe whose reading end is the standard input of the process that it starts.
Nothing is ever written; the system closes the pipe with its owner. Works the same on all systems.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_VARIABLE = "CSD_LIFELINE"
"""Set where standard input is such a pipe."""
_GRACE = 60
"""Seconds that a worker works on after a SIGTERM."""


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


class Terminated(KeyboardInterrupt):
    """By a SIGTERM: schedulers, service managers and containers send it, and wait some seconds."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """While this lasts, a SIGTERM is as a Ctrl-C: what was begun is put away, and nothing is left running unnoticed."""

    def terminate(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # others receive no signals
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: of a handler that is not Python's


def outlive_sigterm() -> None:
    """In a loader's worker: after a SIGTERM, work on for a minute.

    Schedulers and service managers send it to all processes of a job. The one that trains ends its step and saves,
    for which it needs the batches of its workers; then it ends them itself.
    """
    if hasattr(signal, "alarm") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))


def _watch() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)

"""Processes that live as long as the one that started them: no longer, however that ends; and not less.

The starter keeps the writing end of a pipe whose reading end is the standard input of the process that it starts.
Nothing is ever written; the system closes the pipe with its owner. Works the same on all systems.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import Any

_VARIABLE = "CSD_LIFELINE"
"""Set where standard input is such a pipe."""
_GRACE = 60
"""Seconds that a worker works on after a SIGTERM."""
saves_on_sigterm = threading.Event()
"""Set while this process, which trains, answers a SIGTERM by ending its step and saving (`models.stopping`)."""


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
    """In a loader's worker: after a SIGTERM, work on for a minute; end at once where its own process sent it.

    Schedulers and service managers send it to all processes of a job. The one that trains ends its step and saves,
    for which it needs the batches of its workers; then it ends them itself. Only for workers of a process that
    `saves_on_sigterm`. Without effect on systems that do not tell who sent a signal.
    """
    if hasattr(signal, "sigwaitinfo") and threading.current_thread() is threading.main_thread():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_late, daemon=True).start()


def _end_late() -> None:
    owner = parent_process()
    sent: signal.struct_siginfo | None = signal.sigwaitinfo({signal.SIGTERM})
    end = time.monotonic() + _GRACE
    while sent is not None and (owner is None or sent.si_pid != owner.pid):
        sent = signal.sigtimedwait({signal.SIGTERM}, max(0.0, end - time.monotonic()))
    os._exit(0)


def _watch() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)

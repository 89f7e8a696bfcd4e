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
"""Seconds that a worker works on after a signal."""
_HANGUP = getattr(signal, "SIGHUP", None)
"""Windows has none."""
ENDING: tuple[signal.Signals, ...] = tuple(filter(None, (signal.SIGTERM, _HANGUP)))
"""What ends a command from outside, beside Ctrl-C. Schedulers, service managers and containers send SIGTERM, and wait
some seconds; a terminal that is closed sends SIGHUP."""
saves_on_ending = threading.Event()
"""Set while this process, which trains, answers one of `ENDING` by ending its step and saving (`models.stopping`)."""


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
    """By one of `ENDING`, whose number it has."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def heard() -> tuple[signal.Signals, ...]:
    """Those of `ENDING` that end this process: not a SIGHUP that is ignored, as `nohup` has it."""
    return tuple(number for number in ENDING if number != _HANGUP or signal.getsignal(number) != signal.SIG_IGN)


def ignore_hangups() -> None:
    """From now on. To be called by a handler of signals: a SIGHUP is never the second one, that asks for haste.

    The shell and the system each send one where a terminal is closed, and service managers one after a SIGTERM.
    """
    if _HANGUP is not None:
        signal.signal(_HANGUP, signal.SIG_IGN)


@contextmanager
def endings_interrupt() -> Iterator[None]:
    """While this lasts, those of `ENDING` are as a Ctrl-C.

    What was begun is put away, and nothing is left running unnoticed.
    """

    is_main = threading.current_thread() is threading.main_thread()  # others receive no signals
    if not is_main or signal.getsignal(signal.SIGTERM) is _terminate:
        yield
        return
    before = {number: signal.signal(number, _terminate) for number in heard()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: of a handler that is not Python's


def _terminate(number: int, _: object) -> None:
    ignore_hangups()
    raise Terminated(number)


def outlive_endings() -> None:
    """In a loader's worker: after one of `ENDING`, work on for a minute; end at once where its own process sent it.

    Schedulers, service managers and terminals send it to all processes of a job. The one that trains ends its step and
    saves, for which it needs the batches of its workers; then it ends them itself. Only for workers of a process that
    `saves_on_ending`. Without effect on systems that do not tell who sent a signal.
    """
    if hasattr(signal, "sigwaitinfo") and threading.current_thread() is threading.main_thread():
        endings = set(heard())
        signal.pthread_sigmask(signal.SIG_BLOCK, endings)
        threading.Thread(target=_end_late, args=(endings,), daemon=True).start()


def _end_late(endings: set[signal.Signals]) -> None:
    owner = parent_process()
    sent: signal.struct_siginfo | None = signal.sigwaitinfo(endings)
    end = time.monotonic() + _GRACE
    while sent is not None and (owner is None or sent.si_pid != owner.pid):
        sent = signal.sigtimedwait(endings, max(0.0, end - time.monotonic()))
    os._exit(0)


def _watch() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)

"""Child processes that end when their parent ends, however it ends, and not before.

The parent keeps the writing end of a pipe whose reading end is the child's standard input. Nothing is ever written; the
system closes the pipe when the parent ends. This works on all systems.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import Any

_VARIABLE = "CSD_LIFELINE"
"""The environment variable that is set if standard input is such a pipe."""
_GRACE = 60
"""Seconds for which a worker goes on after a signal."""
_HANGUP = getattr(signal, "SIGHUP", None)
"""None on Windows."""
ENDING: tuple[signal.Signals, ...] = tuple(filter(None, (signal.SIGTERM, _HANGUP)))
"""The signals, other than Ctrl-C, that end a command from outside. Schedulers, service managers and containers send
SIGTERM, and wait some seconds; a terminal that is closed sends SIGHUP."""
saves_on_ending = threading.Event()
"""Set while this process, which trains, answers one of `ENDING` by ending its step and saving (`stopping`)."""


@contextmanager
def lifeline(environment: dict[str, str] | None = None) -> Iterator[dict[str, Any]]:
    """Give the keywords stdin and env for `subprocess`, for a command that calls `end_with_starter`.

    The process must end inside this context: the end of the context stops it.
    """
    reading, writing = os.pipe()
    try:
        yield {"stdin": reading, "env": {**(os.environ if environment is None else environment), _VARIABLE: "1"}}
    finally:
        os.close(writing)
        os.close(reading)


def end_with_starter() -> None:
    """From now on, end this process at once when the parent that gave it a `lifeline` ends; without one do nothing."""
    if os.environ.pop(_VARIABLE, None):  # this process's own children have other pipes
        threading.Thread(target=_watch, daemon=True).start()


class Terminated(KeyboardInterrupt):
    """Raised by one of `ENDING`, whose number it holds."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def ending(interrupt: KeyboardInterrupt) -> tuple[int, str]:
    """The number of the signal that has ended a command, and that in words: 'interrupted', 'stopped by SIGTERM'."""
    if not isinstance(interrupt, Terminated):
        return signal.SIGINT, "interrupted"
    return interrupt.number, f"stopped by {signal.Signals(interrupt.number).name}"


def heard() -> tuple[signal.Signals, ...]:
    """Those of `ENDING` that end this process: not SIGHUP where it is ignored, as under `nohup`."""
    return tuple(number for number in ENDING if number != _HANGUP or signal.getsignal(number) != signal.SIG_IGN)


def ignore_hangups() -> None:
    """Ignore SIGHUP from now on. For signal handlers: a SIGHUP must not count as a second signal that asks for haste.

    When a terminal is closed, the shell and the system each send one; service managers send one after a SIGTERM.
    """
    if _HANGUP is not None:
        signal.signal(_HANGUP, signal.SIG_IGN)


@contextmanager
def endings_interrupt() -> Iterator[None]:
    """Inside, the signals of `ENDING` act like Ctrl-C: drafts are removed, and nothing is left running unnoticed."""

    is_main = threading.current_thread() is threading.main_thread()  # others cannot handle signals
    if not is_main or signal.getsignal(signal.SIGTERM) is _terminate:
        yield
        return
    before = {number: signal.signal(number, _terminate) for number in heard()}
    try:
        yield
    finally:
        put_back(before)


def put_back(handlers: Mapping[signal.Signals, Any]) -> None:
    """Let signals be handled again as `signal.signal` or `getsignal` has said. Only in the main thread."""
    for number, handler in handlers.items():
        signal.signal(number, handler or signal.SIG_DFL)  # None: the handler was not installed from Python


def _terminate(number: int, _: object) -> None:
    ignore_hangups()
    raise Terminated(number)


def outlive_endings() -> None:
    """In a loader's worker: after one of `ENDING`, go on for a minute; end at once if the training process sent it.

    Schedulers, service managers and terminals send it to all processes of a job. The one that trains ends its step and
    saves, for which it needs its workers' batches; then it ends them itself. Only for workers of a process that
    `saves_on_ending`. No effect on systems that do not tell who sent a signal.
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

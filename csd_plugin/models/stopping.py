"""Stopping a training from outside: SIGTERM, SIGHUP and Ctrl-C let the step end, and its state is saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from csd_plugin.lifeline import heard, ignore_hangups, saves_on_ending
from csd_plugin.unread import outlast_terminal

STOPPING = "stopping when this step is done and saved; once more to leave at once"
"""What a training says after the first of them."""


class Stopped(SystemExit):
    """A training that ends because of a signal; `code` is 128 + its number, as a shell has it.

    together: all processes of the training end now, not this one alone.
    """

    code: int

    def __init__(self, code: int, *, together: bool = False) -> None:
        super().__init__(code)
        self.together = together


class StopRequest:
    """The SIGINT, or other signal that ends a command, that a training has received while it was listening.

    Before the first step, and after a signal that has been received already, a signal ends the process at once.
    Otherwise it is kept in `signal`, for whoever trains to look at when a step ends. A SIGHUP is never the second one.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._stepping = False
        self._process = os.getpid()

    def listen(self) -> None:
        """From now on. Signals belong to Python's main thread: elsewhere nothing changes."""
        self.__init__()  # type: ignore[misc]
        outlast_terminal()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *heard()):
                signal.signal(number, self._receive)
            saves_on_ending.set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, as by `listen`; afterwards signals do what they did before."""
        before: dict[Any, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, *heard())}
        self.listen()
        try:
            yield
        finally:
            saves_on_ending.clear()
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)

    def begin_step(self) -> None:
        """There is something from now on that is worth saving."""
        self._stepping = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker of a loader: its owner ends it
            return
        ignore_hangups()
        if self._stepping and not self.signal:
            self.signal = number
            _say(STOPPING)
            return
        name = signal.Signals(number).name
        _say(f"{name}: left at once; what came after the last saved state is lost" if self._stepping else name)
        raise Stopped(128 + number)


def _say(line: str) -> None:
    """By the system itself: the signal may have come in the middle of a print."""
    with suppress(OSError):  # of a terminal that is closed
        os.write(2, f"{line}\n".encode())


REQUEST = StopRequest()
"""This process's."""

"""Stopping a training from outside: after SIGTERM, SIGHUP or Ctrl-C, the step ends, and its state is saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from csd_plugin.lifeline import heard, ignore_hangups, put_back, saves_on_ending
from csd_plugin.unread import outlast_terminal

STOPPING = "stopping when this step is done and saved; once more to leave at once"
"""The message of a training after the first signal."""


class Stopped(SystemExit):
    """Ends a training after a signal; `code` is 128 + its number, as in a shell.

    together: all processes of the training end now, not only this one.
    """

    code: int

    def __init__(self, code: int, *, together: bool = False) -> None:
        super().__init__(code)
        self.together = together


class StopRequest:
    """The SIGINT, or other signal that ends a command, that a training has received while listening.

    Before the first step, and after an earlier signal, a signal ends the process at once. Otherwise it is kept in
    `signal`, which the training checks at the end of a step. A SIGHUP never counts as the second signal.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._stepping = False
        self._process = os.getpid()

    def listen(self) -> None:
        """Listen from now on. Only Python's main thread can handle signals: in others this does nothing."""
        self.__init__()  # type: ignore[misc]
        outlast_terminal()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *heard()):
                signal.signal(number, self._receive)
            saves_on_ending.set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, listen; afterwards, signals act as before."""
        before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, *heard())}
        self.listen()
        try:
            yield
        finally:
            saves_on_ending.clear()
            if threading.current_thread() is threading.main_thread():
                put_back(before)

    def listens(self) -> bool:
        """Whether this process is listening now."""
        return signal.getsignal(signal.SIGINT) == self._receive

    def begin_step(self) -> None:
        """From now on, there is something worth saving."""
        self._stepping = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker of a loader: its parent ends it
            return
        ignore_hangups()
        if self._stepping and not self.signal:
            self.signal = number
            _say(STOPPING)
            return
        name = signal.Signals(number).name
        _say(f"{name}: ended at once; everything after the last saved state is lost" if self._stepping else name)
        raise Stopped(128 + number)


def _say(line: str) -> None:
    """Print through the operating system, as the signal may have come in the middle of a print."""
    with suppress(OSError):  # the terminal may be closed
        os.write(2, f"{line}\n".encode())


REQUEST = StopRequest()
"""This process's."""

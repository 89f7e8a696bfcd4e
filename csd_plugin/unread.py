"""Commands whose output nobody reads to its end: `csd .. | head`."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable

STATUS = 141
"""As after SIGPIPE."""


def ending_quietly(command: Callable[[], int]) -> int:
    """The command's status; `STATUS`, silently, where the reader of standard output has closed it."""
    try:
        try:
            return command()
        finally:
            print(end="", flush=True)  # a closed pipe is noticed here, not while the interpreter ends
    except BrokenPipeError:
        if not _reader_is_gone():
            raise  # another pipe broke
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - what is buffered would fail again at the end
        return STATUS


def _reader_is_gone() -> bool:
    """Whether nobody reads standard output any more, which need not hold anything that a flush would show it by."""
    try:
        print(end="", flush=True)
        events = select.poll()
        events.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in events.poll(0))
    except BrokenPipeError:
        return True
    except (AttributeError, OSError, ValueError):  # no poll on Windows; no file behind standard output
        return False

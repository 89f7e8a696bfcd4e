"""The one exception that users see as a single line."""

from __future__ import annotations


class CSDError(ValueError):
    """A mistake in what the user gave us, that the user can mend.

    `str(error)` is one line: what is wrong, where (file, key, clip, frame), and what to do.
    The command lines print it without a traceback and exit with status 2.
    """


def one_line(error: CSDError) -> str:
    """The line to print, also where torch's data loader has wrapped a worker's error in its traceback."""
    return str(error).strip().splitlines()[-1].removeprefix(f"{CSDError.__module__}.{CSDError.__qualname__}: ")

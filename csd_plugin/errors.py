"""The one exception that users see as a single line."""

from __future__ import annotations


class CSDError(ValueError):
    """A mistake in what the user gave us, that the user can mend.

    `str(error)` is one line: what is wrong, where (file, key, clip, frame), and what to do.
    The command lines print it without a traceback and exit with status 2.
    """

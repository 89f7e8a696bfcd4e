"""What a slice tells: lines with the time, and errors for the user."""

from __future__ import annotations

import time


class SliceError(RuntimeError):
    """An error with one line for the user."""


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)

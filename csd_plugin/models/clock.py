"""Training by the clock: a run that ends after a given time, whatever its number of steps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

_SAVES_AT_THE_END = 2
"""The state with its networks, and the networks as the latest."""


class Clock:
    """The clock of a run that ends after `seconds`, including those of the earlier processes that it resumes.

    The last step and the files that are written after it are in that time, as far as earlier ones show how long they
    take.

    Args:
        began: by `time.monotonic()`, when this process did, so that imports, decoding and compiling are in it; by
            default now.
    """

    def __init__(self, seconds: float, began: float | None = None) -> None:
        self.seconds = seconds
        self._began = time.monotonic() if began is None else began
        self._saving = 0.0
        self._steps: deque[float] = deque(maxlen=3)  # when the latest were done

    @property
    def spent(self) -> float:
        return time.monotonic() - self._began

    def resume(self, spent: float) -> None:
        """Those seconds were spent before this process."""
        self._began -= spent

    @contextmanager
    def saves(self) -> Iterator[None]:
        """Around what writes the files of an iteration."""
        began = time.monotonic()
        yield
        self._saving = max(self._saving, time.monotonic() - began)

    def is_over(self) -> bool:
        """To be asked after each step: whether there is no time for another and for what is written at the end."""
        self._steps.append(self.spent)
        # the shorter of two, as a validation between steps is rare
        step = min((later - earlier for earlier, later in pairwise(self._steps)), default=0.0)
        return self.spent >= self.seconds or self.spent + step + _SAVES_AT_THE_END * self._saving > self.seconds

    def iteration(self, total_iter: float, before: float = 0.0) -> int:
        """Where a schedule of this many iterations is by now.

        Args:
            before: seconds of earlier processes that `resume` has not been told.
        """
        return int(min((self.spent + before) / self.seconds, 1) * total_iter)

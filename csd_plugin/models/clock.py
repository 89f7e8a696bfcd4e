"""Training by the clock: a run that ends after a given time, whatever its number of steps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

_SAVES_AT_THE_END = 2
"""The number of saves at the end: the state with its networks, and the networks as the latest."""


class Clock:
    """The clock of a run that ends after `seconds`, including the time of earlier processes whose run is resumed.

    The time includes the last step and the files that are written after it, as far as their duration can be estimated
    from earlier ones.

    Args:
        began: when this process began, by `time.monotonic()`, so that imports, decoding and compiling are included; by
            default now.
    """

    def __init__(self, seconds: float, began: float | None = None) -> None:
        self.seconds = seconds
        self._began = time.monotonic() if began is None else began
        self._saving = 0.0
        self._steps: deque[float] = deque(maxlen=3)  # end times of the latest steps

    @property
    def spent(self) -> float:
        return time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Seconds, at least 0."""
        return max(self.seconds - self.spent, 0.0)

    def resume(self, spent: float) -> None:
        """Add the seconds that were spent before this process."""
        self._began -= spent

    @contextmanager
    def saves(self) -> Iterator[None]:
        """Measure the time of writing an iteration's files, which happens inside."""
        began = time.monotonic()
        yield
        self._saving = max(self._saving, time.monotonic() - began)

    def is_over(self) -> bool:
        """Whether there is no time for another step and for the final files; call it after each step."""
        self._steps.append(self.spent)
        # the shorter of two, as a validation between steps is rare
        step = min((later - earlier for earlier, later in pairwise(self._steps)), default=0.0)
        return self.spent >= self.seconds or self.spent + step + _SAVES_AT_THE_END * self._saving > self.seconds

    def iteration(self, total_iter: float, before: float = 0.0) -> int:
        """The current iteration of a schedule of this many iterations, by the elapsed time.

        Args:
            before: seconds of earlier processes that were not passed to `resume`.
        """
        return int(min((self.spent + before) / self.seconds, 1) * total_iter)

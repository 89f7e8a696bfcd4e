"""Training by the clock: a run that ends after a given time, whatever its number of steps."""

from __future__ import annotations

import time


class Clock:
    """The clock of a run that ends after `seconds`, including those of the earlier processes that it resumes.

    It runs from the start of the process's model on, so that decoding and compiling are in it.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._began = time.monotonic()

    @property
    def spent(self) -> float:
        return time.monotonic() - self._began

    def resume(self, spent: float) -> None:
        """Those seconds were spent before this process."""
        self._began -= spent

    @property
    def is_over(self) -> bool:
        return self.spent >= self.seconds

    def iteration(self, total_iter: float) -> int:
        """Where a schedule of this many iterations is by now."""
        return int(min(self.spent / self.seconds, 1) * total_iter)

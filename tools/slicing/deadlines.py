"""When each part of a slice must end."""

from __future__ import annotations

from dataclasses import dataclass

SAVED_EVERY = 60.0  # seconds at most
LONGEST_END = 45.0  # seconds for saving and testing


@dataclass(frozen=True)
class Deadlines:
    """The end of each part, by `time.monotonic()`. What is not done by then is left out, and the table says so.

    Every part ends by the clock of this process, which stops the others: a slow machine gets less done, not later.
    Start-up, which has been measured by then, comes off first.

    Args:
        ready: when start-up was over.
        end: of it all.
    """

    ready: float
    end: float

    def _at(self, share: float) -> float:
        return self.ready + share * max(self.end - self.ready, 0.0)

    @property
    def rendered(self) -> float:
        return self._at(0.2)

    @property
    def measured(self) -> float:
        return self._at(0.35)

    def _before_end(self, share: float) -> float:
        """The share for what follows the trainings, which takes no longer in long slices."""
        end = self._at(1.0)
        return end - share * min(end - self._at(0.8), LONGEST_END)

    @property
    def trained(self) -> float:
        """When trainings have ended by themselves, or are told to end, which makes them save."""
        return self._before_end(1.0)

    @property
    def saved(self) -> float:
        """When trainings that are still running are killed."""
        return self._before_end(0.6)

    @property
    def tested(self) -> float:
        return self._before_end(0.2)

    @property
    def saves_every(self) -> float:
        """Seconds between two saves of a training."""
        return min(SAVED_EVERY, self._at(0.1) - self.ready)

"""What rain changes in frames, in four numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_LEVELS = np.arange(-255, 256)


class RainStatistics(NamedTuple):
    """Of Rain - GT over all RGB values, in 8-bit grey levels; brighter, darker: percentages beyond +10 and -10."""

    mean: float
    median: float
    brighter: float
    darker: float


def difference_counts(rainy: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """How often each difference -255 .. 255 is there, (511,), in two uint8 arrays of one shape."""
    return np.bincount((rainy.astype(np.int16) - clean).ravel() + 255, minlength=len(_LEVELS))


def statistics_of(counts: np.ndarray) -> RainStatistics:
    """From `difference_counts`, or sums of them."""
    share = counts / counts.sum()
    return RainStatistics(
        mean=float(share @ _LEVELS),
        median=float(_LEVELS[np.searchsorted(share.cumsum(), 0.5)]),
        brighter=100 * float(share[_LEVELS > 10].sum()),
        darker=100 * float(share[_LEVELS < -10].sum()),
    )

"""The changes that rain makes to frames, in four numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_LEVELS = np.arange(-255, 256)


class RainStatistics(NamedTuple):
    """Statistics of Rain - GT over all RGB values, in 8-bit grey levels; brighter, darker: percentages beyond ±10."""

    mean: float
    median: float
    brighter: float
    darker: float


def difference_counts(rainy: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """The counts of the differences -255 .. 255, (511,), between two uint8 arrays of the same shape."""
    return np.bincount((rainy.astype(np.int16) - clean).ravel() + 255, minlength=len(_LEVELS))


def statistics_of(counts: np.ndarray) -> RainStatistics:
    """The statistics of `difference_counts`, or of sums of them."""
    share = counts / counts.sum()
    up_to = counts.cumsum()  # whole numbers, as sums of shares miss a half
    middle = [np.searchsorted(2 * up_to, up_to[-1], side) for side in ("left", "right")]
    return RainStatistics(
        mean=float(share @ _LEVELS),
        median=float(_LEVELS[middle].mean()),
        brighter=100 * float(share[_LEVELS > 10].sum()),
        darker=100 * float(share[_LEVELS < -10].sum()),
    )

"""Frames in parts that fit into memory, which overlap by what the network sees."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from csd_plugin.errors import CSDError


class Span(NamedTuple):
    """A tile in one direction: what the network sees of the frame, what is kept, and where that is in the former."""

    seen: slice
    kept: slice
    inner: slice


def whole_cells(window: Tensor, divisor: int) -> Tensor:
    """(B, T, 3, H, W) with the last row and column repeated up to multiples of `divisor`."""
    below, right = -window.shape[-2] % divisor, -window.shape[-1] % divisor
    return F.pad(window, (0, right, 0, below, 0, 0), mode="replicate") if below or right else window


@lru_cache(maxsize=16)
def split(height: int, width: int, pixels: int, reach: int, divisor: int = 1) -> tuple[tuple[Span, Span], ...]:
    """Tiles of a frame, (rows, columns) each. All see parts of one size, so that memory is used again.

    Among all such grids this is the one with the least to compute; where none is small enough, the finest. It is kept
    for the next frame: finding it takes longer than a small network.

    Args:
        height, width: of the frame.
        pixels: that a tile sees at most.
        reach: pixels that a tile sees to each side of what it keeps.
        divisor: all tiles begin at multiples of it.
    """
    rows, columns = (
        [_spans(length, count, reach, divisor) for count in range(1, min(-(-length // divisor), 64) + 1)]
        for length in (height, width)
    )
    grids = [(y, x, _seen(y) * _seen(x)) for y in rows for x in columns]
    fitting = [grid for grid in grids if grid[2] <= pixels] or [min(grids, key=lambda grid: grid[2])]
    best_rows, best_columns, _ = min(fitting, key=lambda grid: len(grid[0]) * len(grid[1]) * grid[2])
    return tuple((y, x) for y in best_rows for x in best_columns)


def _spans(length: int, count: int, reach: int, divisor: int) -> list[Span]:
    edges = [length * i // count // divisor * divisor for i in range(count)] + [length]
    reach = -(-reach // divisor) * divisor
    size = max(end - begin for begin, end in pairwise(edges)) + 2 * reach
    size = min(length, size + (length - size) % divisor)  # the last tile ends where the frame does
    spans = []
    for begin, end in pairwise(edges):
        first = min(max(begin - reach, 0), length - size)
        spans.append(Span(slice(first, first + size), slice(begin, end), slice(begin - first, end - first)))
    return spans


def _seen(spans: list[Span]) -> int:
    return spans[0].seen.stop - spans[0].seen.start


def check_finite(result: Tensor) -> None:
    """Raises CSDError for a network's result that holds NaN or infinity."""
    # A sum takes a fraction of the time of isfinite(); that of fp16 would leave its range.
    if not math.isfinite(float(result.sum(dtype=torch.float32))):
        raise CSDError("the network's output holds NaN or infinity: its weights are broken; use another checkpoint")

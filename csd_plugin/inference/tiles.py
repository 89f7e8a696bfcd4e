"""Splits frames into tiles that fit into memory, which overlap by the network's reach."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from csd_plugin.errors import CSDError


class Span(NamedTuple):
    """A tile along one axis: the part of the frame that the network sees, the part kept, and its place therein."""

    seen: slice
    kept: slice
    inner: slice


@lru_cache(maxsize=16)
def split(height: int, width: int, pixels: int, reach: int, divisor: int = 1) -> tuple[tuple[Span, Span], ...]:
    """Tiles of a frame, as (rows, columns). All see parts of the same size, so that memory is reused.

    Of all such grids, this is the one with the least computation, or the finest if none is small enough. It is cached,
    as finding it takes longer than a small network.

    Args:
        height, width: of the frame.
        pixels: the most pixels that a tile sees.
        reach: pixels that a tile sees on each side of what is kept.
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
    size = min(length, size + (length - size) % divisor)  # the last tile ends at the frame's end
    spans = []
    for begin, end in pairwise(edges):
        first = min(max(begin - reach, 0), length - size)
        spans.append(Span(slice(first, first + size), slice(begin, end), slice(begin - first, end - first)))
    return spans


def _seen(spans: list[Span]) -> int:
    return spans[0].seen.stop - spans[0].seen.start


def check_finite(result: Tensor) -> None:
    """Raise CSDError for a network's result that holds NaN or infinity."""
    # A sum takes a fraction of the time of isfinite(), but would overflow in fp16.
    if not math.isfinite(float(result.sum(dtype=torch.float32))):
        raise CSDError("the network's output holds NaN or infinity: its weights are broken; use another checkpoint")

"""Draws antialiased streaks into a map, vectorised over all their pixels; the cost is that of the visible part.

Coordinates are those of the whole frame: the centre of the pixel in row i and column j is (x, y) = (j, i).
Per pixel, only additions, products and roots are used, which IEEE arithmetic rounds alike wherever an element is in an
array: a crop drawn alone equals that crop of the whole, bit for bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SHARPEST = 1.5
"""Smallest radius of a streak in pixels: narrower profiles flicker as they move across the pixel grid."""


class Streaks(NamedTuple):
    """n straight streaks; every field (n,) float64.

    Attributes:
        x0, y0, x1, y1: the ends, in pixels.
        radius: half the width, in pixels, where the profile reaches 0; at least SHARPEST.
        depth: optical depth on the axis.
    """

    x0: np.ndarray
    y0: np.ndarray
    x1: np.ndarray
    y1: np.ndarray
    radius: np.ndarray
    depth: np.ndarray

    def take(self, index: np.ndarray) -> Streaks:
        return Streaks(*(field[index] for field in self))

    def join(self, other: Streaks) -> Streaks:
        return Streaks(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


def draw_streaks(streaks: Streaks, top: int, left: int, height: int, width: int) -> np.ndarray:
    """Sum of the streaks' optical depths in a window of the frame: (height, width) float64."""
    s = streaks
    # beyond its ends a streak goes on by one radius, and there, slanted, has sqrt(2) radius to each side of its axis
    reach = 2.5 * s.radius
    touches = (
        (np.minimum(s.x0, s.x1) - reach < left + width)
        & (np.maximum(s.x0, s.x1) + reach > left - 1)
        & (np.minimum(s.y0, s.y1) - reach < top + height)
        & (np.maximum(s.y0, s.y1) + reach > top - 1)
    )
    s = s.take(np.flatnonzero(touches))
    steep = np.abs(s.y1 - s.y0) >= np.abs(s.x1 - s.x0)
    upright, flat = s.take(np.flatnonzero(steep)), s.take(np.flatnonzero(~steep))
    total = _accumulate(upright, top, left, height, width)
    if len(flat.x0):
        turned = Streaks(flat.y0, flat.x0, flat.y1, flat.x1, flat.radius, flat.depth)
        total += _accumulate(turned, left, top, width, height).T
    return total


def _accumulate(s: Streaks, top: int, left: int, height: int, width: int) -> np.ndarray:
    """Streaks that are steeper than 45 degrees: row by row, a few pixels on both sides of the axis."""
    down = s.y1 >= s.y0
    xa, ya = np.where(down, s.x0, s.x1), np.where(down, s.y0, s.y1)
    xb, yb = np.where(down, s.x1, s.x0), np.where(down, s.y1, s.y0)
    length = np.maximum(yb - ya, 1e-9)
    slope = (xb - xa) / length
    secant = np.sqrt(1 + slope * slope)

    # one entry per streak and row
    first = np.maximum(np.ceil(ya - s.radius), top)
    rows = np.maximum(np.minimum(np.floor(yb + s.radius), top + height - 1) - first + 1, 0).astype(np.int64)
    which = np.repeat(np.arange(len(rows)), rows)
    y = first[which] + (np.arange(len(which)) - np.repeat(np.cumsum(rows) - rows, rows))
    from_a, to_b = y - ya[which], yb[which] - y
    x = xa[which] + slope[which] * from_a
    soft = 0.5 / s.radius[which]
    ends = np.clip(from_a * soft + 0.5, 0, 1) * np.clip(to_b * soft + 0.5, 0, 1)
    strength = s.depth[which] * ends
    reach = (s.radius * secant)[which]

    # one entry per pixel: a biweight profile across the axis, whose sum over pixels hardly depends on their position
    column = np.ceil(x - reach)
    offset = (column - x) / reach
    step = 1 / reach
    cell = ((y - top) * width + (column - left)).astype(np.int64)
    column = (column - left).astype(np.int64)
    cells, values = [], []
    while len(offset):
        profile = 1 - offset * offset
        seen = (profile > 0) & (column >= 0) & (column < width)
        cells.append(cell[seen])
        values.append((strength * profile * profile)[seen])
        offset, column, cell = offset + step, column + 1, cell + 1
        left_over = np.flatnonzero((offset < 1) & (column < width))
        if len(left_over) < len(offset):
            offset, column, cell = offset[left_over], column[left_over], cell[left_over]
            step, strength = step[left_over], strength[left_over]
    if not cells:
        return np.zeros((height, width))
    total = np.bincount(np.concatenate(cells), np.concatenate(values), minlength=height * width)
    return total.reshape(height, width).astype(np.float64, copy=False)  # bincount of an empty array returns integers

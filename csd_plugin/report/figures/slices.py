"""One row or column of pixels over time, which makes flicker visible in a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from csd_plugin.errors import CSDError
from csd_plugin.report.figures.sheet import COLOURS, GAP, LINE, PAGE_WIDTH, Sheet, lefts, row_width
from csd_plugin.report.figures.sources import INPUT, Scene

_FRAME = 0.33
"""The share of the page's width for the marked frame."""
_LABEL, _LEAST_STRIP = 0.85, 0.3
"""Inches: the space for the labels of rows, and the smallest height of a row's strip."""


def draw_slices(
    scene: Scene,
    out: Path,
    *,
    start: int = 0,
    end: int | None = None,
    row: int | None = None,
    column: int | None = None,
) -> int:
    """Write the picture: the first frame with the line marked, and the line over time for input, methods and truth.

    A row's strips are below each other, with time running down; a column's are side by side, with time running right.
    All show the same pixels of the frames, so any difference comes from the methods.

    Args:
        start, end: the frames from `start` up to, but without, `end`; default: the whole clip.
        row, column: the line, counted from 0; only one of the two; by default the middle row.

    Returns:
        The number of frames. Raises CSDError for a line outside the frame, or a single frame.
    """
    if row is not None and column is not None:
        raise CSDError("a slice is one row or one column: give --row or --column, not both")
    lines: dict[str, list[np.ndarray]] = {label: [] for label in scene.labels}
    first = None
    for frames in scene.frames(start, end):
        if first is None:
            first = frames[INPUT]
            row = first.shape[0] // 2 if row is None and column is None else row
            _check_line(first, row, column)
        for label, frame in frames.items():
            lines[label].append((frame[row] if column is None else frame[:, column]).copy())
    if first is None or len(lines[INPUT]) < 2:
        raise CSDError("a slice through time needs at least two frames: give a longer part")
    strips = {label: np.stack(strip, axis=0 if column is None else 1) for label, strip in lines.items()}
    sheet = _rows(first, strips, row) if row is not None else _columns(first, strips, column or 0)
    sheet.save(out)
    return len(lines[INPUT])


def _rows(first: np.ndarray, strips: dict[str, np.ndarray], row: int) -> Sheet:
    """The frame on the left, the strips (T, W, 3) below each other on its right, together as high as the frame."""
    shown = _FRAME * PAGE_WIDTH
    tall = shown * first.shape[0] / first.shape[1]
    strip_tall = max((tall - (len(strips) - 1) * GAP) / len(strips), _LEAST_STRIP)
    height = len(strips) * (strip_tall + GAP) - GAP
    sheet = Sheet(PAGE_WIDTH, max(tall, height) + LINE, first.shape)
    frame = sheet.image(first, 0, 0, shown, tall)
    frame.axhline(row, color=COLOURS[0], linewidth=1)
    left = shown + _LABEL
    for top, (label, strip) in zip(lefts(len(strips), strip_tall), strips.items(), strict=True):
        sheet.image(strip, left, top, PAGE_WIDTH - left, strip_tall, interpolation="nearest")
        sheet.text(label, left - GAP, top + strip_tall / 2, _LABEL - 2 * GAP, ha="right")
    sheet.caption([f"row {row}, marked"], 0, tall, shown)
    sheet.caption([_time(next(iter(strips.values())).shape[0], "down")], left, height, PAGE_WIDTH - left)
    return sheet


def _columns(first: np.ndarray, strips: dict[str, np.ndarray], column: int) -> Sheet:
    """The frame and the strips (H, T, 3) side by side, all of one height."""
    shown = _FRAME * PAGE_WIDTH
    tall = shown * first.shape[0] / first.shape[1]
    sheet = Sheet(PAGE_WIDTH, tall + 2 * LINE, first.shape)
    frame = sheet.image(first, 0, 0, shown, tall)
    frame.axvline(column, color=COLOURS[0], linewidth=1)
    sheet.caption([f"column {column}, marked"], 0, tall, shown)
    width = row_width(len(strips), PAGE_WIDTH - shown - GAP)
    for left, (label, strip) in zip(lefts(len(strips), width, shown + GAP), strips.items(), strict=True):
        sheet.image(strip, left, 0, width, tall, interpolation="nearest")
        sheet.caption([label], left, tall, width)
    time = _time(next(iter(strips.values())).shape[1], "to the right")
    sheet.caption([time], shown + GAP, tall + LINE, PAGE_WIDTH - shown - GAP)
    return sheet


def _time(count: int, direction: str) -> str:
    return f"{count} frames, time runs {direction}"


def _check_line(frame: np.ndarray, row: int | None, column: int | None) -> None:
    height, width = frame.shape[:2]
    for name, line, count in (("row", row, height), ("column", column, width)):
        if line is not None and not 0 <= line < count:
            raise CSDError(f"{name} {line} is outside the frame of {width}x{height}: give one of 0 .. {count - 1}")

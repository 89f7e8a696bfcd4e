"""Error maps: |result - truth|, all on one scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from csd_plugin.errors import CSDError
from csd_plugin.report.figures.sheet import GAP, LINE, PAGE_WIDTH, Sheet, lefts, row_width
from csd_plugin.report.figures.sources import TRUTH, Scene

_BAR, _TICKS = 0.09, 0.3
"""Inches: width of the colour bar, and of its numbers."""


def draw_errors(scene: Scene, out: Path, *, number: int, peak: float | None = None) -> float:
    """Write the picture: the true frame, then |result - truth|, mean over RGB, of the input and of each method.

    Args:
        number: of the frame, from 0.
        peak: the error, in grey levels, at the end of the colour scale; default: the 99.5th percentile over the pixels
            of all maps.

    Returns:
        The peak. Raises CSDError without a truth.
    """
    if scene.truth is None:
        raise CSDError("error maps are differences from the truth: give --truth")
    frames = scene.frame(number)
    truth = frames.pop(TRUTH)
    errors = {
        label: np.abs(frame.astype(np.float32) - truth.astype(np.float32)).mean(axis=2)
        for label, frame in frames.items()
    }
    if peak is None:
        peak = max(float(np.ceil(np.percentile(np.stack(list(errors.values())), 99.5))), 1.0)

    height, width = truth.shape[:2]
    columns = len(errors) + 1
    column = row_width(columns, PAGE_WIDTH - GAP - _BAR - _TICKS)
    tall = column * height / width
    sheet = Sheet(PAGE_WIDTH, tall + 2 * LINE + GAP, truth.shape)
    truth_left, *map_lefts = lefts(columns, column)
    sheet.image(truth, truth_left, 0, column, tall)
    sheet.caption([TRUTH, "mean |error|"], truth_left, tall + GAP / 2, column)
    for left, (label, error) in zip(map_lefts, errors.items(), strict=True):
        axes = sheet.image(error, left, 0, column, tall, cmap="inferno", vmin=0, vmax=peak)
        sheet.caption([label, f"{error.mean():.2f}"], left, tall + GAP / 2, column)
    bar = sheet.panel(columns * (column + GAP), GAP, _BAR, tall - GAP)
    scale = sheet.figure.colorbar(axes.images[0], cax=bar, extend="max" if _clipped(errors, peak) else "neither")
    scale.ax.tick_params(labelsize=7, length=2, pad=1.5)
    sheet.caption(["grey", "levels"], PAGE_WIDTH - _BAR - _TICKS, tall + GAP / 2, _BAR + _TICKS)
    sheet.save(out)
    return peak


def _clipped(errors: dict[str, np.ndarray], peak: float) -> bool:
    return any(float(error.max()) > peak for error in errors.values())

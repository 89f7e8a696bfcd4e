"""The report on an adaptation: a table, and details of one frame before, after and by the teacher."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import cv2
import numpy as np

from csd_plugin.atomic import write_text
from csd_plugin.data.images import write_png
from csd_plugin.metrics.image_quality import Image
from csd_plugin.report.figures.crops import find_boxes
from csd_plugin.report.figures.sources import INPUT
from csd_plugin.report.text import markdown

_DETAILS, _ENLARGED, _GAP = 2, 2, 6
"""Details per frame; their magnification; width of the white space between pictures, in pixels."""


class Row(NamedTuple):
    """A network's results on the held-back frames; None where there is no value.

    Attributes:
        psnr: of the luma, with the teacher's frames as truth, in dB.
        flicker: warping error; lower is better.
        niqe: naturalness; lower is better.
        seconds: per frame.
    """

    psnr: float | None
    flicker: float | None
    niqe: float | None
    seconds: float | None


def picture_of(page: Path) -> Path:
    """The picture that is written next to a page."""
    return page.with_suffix(".png")


def write_page(
    path: Path,
    *,
    title: str,
    rows: Mapping[str, Row],
    size: tuple[int, int],
    pictures: Mapping[str, Image],
    lines: Sequence[str],
) -> None:
    """Write Markdown, and its picture next to it as PNG.

    Args:
        rows: label -> results.
        size: (width, height) of the frames.
        pictures: label -> one frame, from left to right; the first is the rainy one.
        lines: paragraphs below the table.
    """
    picture = picture_of(path)
    write_png(picture, _strips(pictures))
    head = ["", "PSNR to the teacher, dB", "flicker", "NIQE", f"ms per frame, {size[0]}x{size[1]}"]
    table = [
        [
            label,
            _number(row.psnr),
            _number(row.flicker, 3),
            _number(row.niqe),
            _number(row.seconds and 1000 * row.seconds, 0),
        ]
        for label, row in rows.items()
    ]
    text = [
        f"# {title}",
        f"A held-back frame, with details below it. From left to right: {', '.join(pictures)}.",
        f"![{', '.join(pictures)}]({quote(os.fsencode(picture.name))})",
        markdown(head, table),
        *lines,
        "The table is measured on the held-back frames, which the network did not learn from. PSNR and flicker are "
        "averaged over the frames of each shot, and then over shots, as `csd score` does with clips. PSNR to the "
        "teacher shows how well the network copies the teacher, mistakes included. Flicker is the warping error along "
        "the motion of the rainy frames. NIQE measures how natural frames look. For both, lower is better. Times were "
        "measured on this machine right after training, and depend on its load.",
    ]
    write_text(path, "\n\n".join(text) + "\n")


def _strips(pictures: Mapping[str, Image]) -> Image:
    """Whole frames in a row, each with its enlarged details below it."""
    first, *others = pictures.items()
    boxes = find_boxes({INPUT: first[1], **dict(others)}, _DETAILS)
    columns = []
    for frame in pictures.values():
        details = [box.cut(frame).repeat(_ENLARGED, axis=0).repeat(_ENLARGED, axis=1) for box in boxes]
        below = _joined(details, axis=1)
        scale = below.shape[1] / frame.shape[1]
        whole = cv2.resize(frame, (below.shape[1], round(frame.shape[0] * scale)), interpolation=cv2.INTER_AREA)
        columns.append(_joined([np.asarray(whole, np.uint8), below], axis=0))
    return _joined(columns, axis=1)


def _joined(parts: Sequence[Image], axis: int) -> Image:
    """Images side by side (axis 1) or below each other (axis 0), white between them."""
    shape = [*parts[0].shape]
    shape[axis] = _GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([part for image in parts for part in (gap, image)][1:], axis=axis)


def _number(value: float | None, decimals: int = 2) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"

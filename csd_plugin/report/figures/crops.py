"""Methods side by side with enlarged details, as in the paper's Figure 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from csd_plugin.errors import CSDError
from csd_plugin.metrics.image_quality import Image
from csd_plugin.metrics.protocols import PROTOCOLS, score_frame
from csd_plugin.report.figures.sheet import COLOURS, GAP, LINE, PAGE_WIDTH, Sheet, lefts, row_width
from csd_plugin.report.figures.sources import INPUT, TRUTH, Scene

_SHARE = 6
"""The size of a chosen box: one sixth of the frame's width and height."""
_LEAST = 2
"""The smallest side of a detail, in pixels."""


class Box(NamedTuple):
    """A detail, in pixels from the frame's top left corner."""

    x: int
    y: int
    width: int
    height: int

    def cut(self, image: np.ndarray) -> np.ndarray:
        return image[self.y : self.y + self.height, self.x : self.x + self.width]


def draw_crops(
    scene: Scene, out: Path, *, number: int, boxes: Sequence[Box] = (), choose: int = 2, protocol: str = "nturain_y"
) -> list[Box]:
    """Write the picture: a column for the input, each method and the truth; below each frame its details.

    With a truth, the captions show PSNR and SSIM of the whole frame.

    Args:
        number: of the frame, from 0.
        boxes: the details; if empty, `find_boxes` chooses `choose` of them.
        protocol: the one of `PROTOCOLS` for the captions.

    Returns:
        The details. Raises CSDError for a box outside the frame, or if there are no details.
    """
    frames = scene.frame(number)
    height, width = frames[INPUT].shape[:2]
    if not boxes and choose < 1:
        raise CSDError(f"{choose} details to choose: give at least one")
    boxes = list(boxes) or find_boxes(frames, choose)
    for box in boxes:
        check_box(box, width, height)

    column = row_width(len(frames))
    detail = row_width(len(boxes), column)
    tall = column * height / width
    detail_tall = max(detail * box.height / box.width for box in boxes)
    captions = _captions(frames, protocol)
    lines = max(map(len, captions.values()))
    sheet = Sheet(PAGE_WIDTH, tall + GAP + detail_tall + lines * LINE + GAP, frames[INPUT].shape)
    for left, (label, frame) in zip(lefts(len(frames), column), frames.items(), strict=True):
        axes = sheet.image(frame, left, 0, column, tall)
        for box, colour, at in zip(boxes, _colours(len(boxes)), lefts(len(boxes), detail, left), strict=True):
            _outline(axes, box, colour)
            shown = detail * box.height / box.width
            sheet.frame_panel(sheet.image(box.cut(frame), at, tall + GAP, detail, shown), colour)
        sheet.caption(captions[label], left, tall + GAP + detail_tall + GAP / 2, column)
    sheet.save(out)
    return boxes


def find_boxes(frames: Mapping[str, Image], count: int) -> list[Box]:
    """Where input and methods differ most: at most `count` details that do not overlap, best first.

    Between them is at least half a box in width or height, so that their outlines are apart; less if fewer than `count`
    would fit. The criterion is the mean, over a box of a sixth of the frame's width and height, of the standard
    deviation over input and methods, so that a box shows rain, and what each method does to it. Without methods, the
    truth is used.
    """
    shown = [frame for label, frame in frames.items() if label != TRUTH]
    shown = shown if len(shown) > 1 else list(frames.values())
    spread = np.std(np.stack(shown).astype(np.float32), axis=0).mean(axis=2)
    height, width = spread.shape
    box_width, box_height = (min(max(side // _SHARE, _LEAST), side) for side in (width, height))
    # sums[y, x] is the sum over the box with this top left corner
    integral = cv2.integral(spread)
    sums = (
        integral[box_height:, box_width:]
        - integral[:-box_height, box_width:]
        - integral[box_height:, :-box_width]
        + integral[:-box_height, :-box_width]
    )
    apart = box_width // 2, box_height // 2
    while len(boxes := _best_apart(sums, box_width, box_height, apart, count)) < count and any(apart):
        apart = apart[0] // 2, apart[1] // 2
    return boxes


def _best_apart(sums: np.ndarray, box_width: int, box_height: int, apart: tuple[int, int], count: int) -> list[Box]:
    """At most `count` boxes, each the best that is apart from those before.

    Args:
        sums: the sum over the box with its top left corner there.
        apart: the least pixels between two boxes, side by side and one above the other.
    """
    sums, boxes = sums.copy(), list[Box]()
    across, down = box_width + apart[0], box_height + apart[1]
    while len(boxes) < count and np.isfinite(sums).any():
        y, x = map(int, np.unravel_index(np.argmax(sums), sums.shape))
        boxes.append(Box(x, y, box_width, box_height))
        sums[max(y - down + 1, 0) : y + down, max(x - across + 1, 0) : x + across] = -np.inf
    return boxes


def check_box(box: Box, width: int, height: int) -> None:
    """Raise CSDError for a box that is not within a frame of this size, or too small."""
    if min(box.width, box.height) < _LEAST:
        raise CSDError(
            f"box {','.join(map(str, box))} (x,y,width,height): a detail needs at least {_LEAST}x{_LEAST} pixels; "
            f"give a larger box, or a clip of larger frames"
        )
    if min(box) < 0 or box.x + box.width > width or box.y + box.height > height:
        raise CSDError(f"box {','.join(map(str, box))} (x,y,width,height) is not within the frame of {width}x{height}")


def _captions(frames: Mapping[str, Image], protocol: str) -> dict[str, list[str]]:
    if protocol not in PROTOCOLS:
        raise CSDError(f"protocol is {protocol!r}, expected one of {', '.join(PROTOCOLS)}")
    if TRUTH not in frames:
        return {label: [label] for label in frames}
    captions = {}
    for label, frame in frames.items():
        if label == TRUTH:
            captions[label] = [label, "PSNR / SSIM"]
        else:
            quality = score_frame(frame, frames[TRUTH])[protocol]
            captions[label] = [label, f"{quality.psnr:.2f} dB / {quality.ssim:.4f}"]
    return captions


def _outline(axes, box: Box, colour: str) -> None:
    from matplotlib.patches import Rectangle

    corner = (box.x - 0.5, box.y - 0.5)
    axes.add_patch(Rectangle(corner, box.width, box.height, fill=False, edgecolor=colour, linewidth=1.2))


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]

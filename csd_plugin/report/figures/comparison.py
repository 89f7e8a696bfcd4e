"""Methods in one video, side by side or as stripes of one picture, labelled."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont
from tqdm import tqdm

from csd_plugin.data.video import open_reader, open_writer
from csd_plugin.errors import CSDError
from csd_plugin.report.figures.sources import Scene

_LINE = 2
"""Width of the white gap between two pictures, in pixels."""


def write_comparison(
    scene: Scene,
    out: Path,
    *,
    start: int = 0,
    end: int | None = None,
    split: bool = False,
    height: int | None = None,
    overwrite: bool = False,
) -> int:
    """Write a video (or a folder, or pattern, of PNG files) that shows input, methods and truth together.

    Args:
        start, end: the frames from `start` up to, but without, `end`; default: the whole clip.
        split: one picture of vertical stripes, each from another column; otherwise whole pictures side by side.
        height: of the pictures in pixels; default: the clip's.
        overwrite: see `open_writer`.

    Returns:
        The number of frames written. Raises CSDError like `open_writer` and `Scene.frames`.
    """
    if height is not None and height < 16:
        raise CSDError(f"height {height}: a picture needs at least 16 pixels")
    count = 0
    with (
        open_reader(scene.clip, start=start, end=end) as reader,
        open_writer(out, like=reader, overwrite=overwrite, inputs=scene.inputs) as writer,
        tqdm(total=reader.num_frames, unit="frame", desc=out.name, disable=None) as bar,
    ):
        labels: dict[str, np.ndarray] = {}
        # the other reader only goes on for the times of its frames, which the writer uses
        for _, frames in zip(reader, scene.frames(start, end), strict=True):
            pictures = {label: _resized(frame, height) for label, frame in frames.items()}
            if not labels:
                labels = {label: _label(label, picture.shape[0]) for label, picture in pictures.items()}
            writer.write(_stripes(pictures, labels) if split else _side_by_side(pictures, labels))
            count += 1
            bar.update()
    return count


def _side_by_side(pictures: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> np.ndarray:
    panels = []
    for label, picture in pictures.items():
        panels += [_white(picture), _labelled(picture, labels[label])]
    return np.concatenate(panels[1:], axis=1)


def _stripes(pictures: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> np.ndarray:
    """One picture whose i-th vertical stripe comes from the i-th column."""
    frame = next(iter(pictures.values())).copy()
    width = frame.shape[1]
    edges = np.linspace(0, width, len(pictures) + 1).round().astype(int)
    for (label, picture), left, right in zip(pictures.items(), edges[:-1], edges[1:], strict=True):
        frame[:, left:right] = _labelled(picture[:, left:right], labels[label])
        if left:
            frame[:, left - _LINE // 2 : left + _LINE - _LINE // 2] = 255
    return frame


def _resized(frame: np.ndarray, height: int | None) -> np.ndarray:
    if height is None or height == frame.shape[0]:
        return frame
    width = max(round(frame.shape[1] * height / frame.shape[0]), 1)
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def _white(picture: np.ndarray) -> np.ndarray:
    return np.full((picture.shape[0], _LINE, 3), 255, np.uint8)


def _label(text: str, height: int) -> np.ndarray:
    """White text on dark, (h, w, 3) uint8, in proportion to pictures of this height."""
    font = ImageFont.load_default(size=max(height // 22, 9))
    left, top, right, bottom = font.getbbox(text)
    margin = max(height // 80, 2)
    image = PillowImage.new("RGB", (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin), (24, 24, 24))
    ImageDraw.Draw(image).text((margin - left, margin - top), text, font=font, fill=(255, 255, 255))
    return np.asarray(image)


def _labelled(picture: np.ndarray, label: np.ndarray) -> np.ndarray:
    """A copy with the label in its top left corner, cropped if it does not fit."""
    picture = picture.copy()
    part = picture[: label.shape[0], : label.shape[1]]
    part[:] = label[: part.shape[0], : part.shape[1]]
    return picture

"""A contact sheet: clean and rainy frames side by side, so that people can judge the rain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from csd_plugin.data.images import write_png
from csd_plugin.data.rain.clips import CleanClip
from csd_plugin.data.rain.params import RainParams
from csd_plugin.data.rain.renderer import RainRenderer, ambient_light

_GAP = 4
_BANDS = 3
_SHOWN = (5, 6, 11)


def contact_sheet(clips: Sequence[CleanClip], rains: Mapping[str, RainParams], seed: int = 0) -> np.ndarray:
    """One band per clip (at most three, spread over all): the clean frame and, per rain, a frame and its details.

    The details come from two consecutive frames and a later one, at about twice their size.
    Returns (H, W, 3) uint8 RGB.
    """
    chosen = dict.fromkeys(np.linspace(0, len(clips) - 1, _BANDS).astype(int))
    bands = [_band(clips[i], rains, seed) for i in chosen]
    width = max(band.shape[1] for band in bands)
    padded = [np.pad(band, ((0, _GAP), (0, width - band.shape[1]), (0, 0))) for band in bands]
    return np.concatenate(padded)


def write_contact_sheet(path: Path, clips: Sequence[CleanClip], rains: Mapping[str, RainParams], seed: int = 0) -> None:
    """Write `contact_sheet` to a PNG file. Raises CSDError if a frame cannot be read or the file not written."""
    write_png(path, contact_sheet(clips, rains, seed))


def _band(clip: CleanClip, rains: Mapping[str, RainParams], seed: int) -> np.ndarray:
    frames = list(islice(clip.frames(), max(_SHOWN) + 1))
    shown = [min(t, len(frames) - 1) for t in _SHOWN]
    height, width = frames[0].shape[:2]
    columns = [_column(f"{clip.name}, clean", [frames[t] for t in shown])]
    for name, params in rains.items():
        rain = RainRenderer(params, seed, height, width, ambient=ambient_light(frames[0]))
        columns.append(_column(name, [rain.render(frames[t], t) for t in shown]))
    return np.concatenate(columns, axis=1)


def _column(title: str, frames: list[np.ndarray]) -> np.ndarray:
    """The first frame, and below it a detail of every frame, enlarged to fill the width."""
    height, width = frames[0].shape[:2]
    rows = slice(height // 2, height // 2 + max(1, height // 4))
    columns = slice(width // 3, width // 3 + max(1, width // (2 * len(frames))))
    strip = np.concatenate([frame[rows, columns] for frame in frames], axis=1)
    strip = cv2.resize(strip, (width, max(1, strip.shape[0] * width // strip.shape[1])), interpolation=cv2.INTER_CUBIC)
    column = np.concatenate([frames[0], np.zeros((_GAP, width, 3), np.uint8), strip])
    cv2.putText(column, title, (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0), 4, cv2.LINE_AA)
    cv2.putText(column, title, (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 1, cv2.LINE_AA)
    return np.pad(column, ((0, 0), (0, _GAP), (0, 0)))

"""A contact sheet: clean and rainy frames side by side, so that people can judge the rain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from csd_plugin.data.rain.params import RainParams
from csd_plugin.data.rain.renderer import RainRenderer, ambient_light
from csd_plugin.data.video import read_image, write_png

_GAP = 4
_TIMES = (10, 11, 24)


def contact_sheet(clips: Mapping[str, list[Path]], rains: Mapping[str, RainParams], seed: int = 0) -> np.ndarray:
    """One band per clip (at most three, spread over all): the clean frame and, per rain, a frame and details of it.

    The details are of two consecutive frames and a later one, at about twice their size.
    Returns (H, W, 3) uint8 RGB.
    """
    names = list(clips)
    chosen = dict.fromkeys(names[i] for i in np.linspace(0, len(names) - 1, min(3, len(names))).astype(int))
    bands = [_band(name, clips[name], rains, seed) for name in chosen]
    width = max(band.shape[1] for band in bands)
    padded = [np.pad(band, ((0, _GAP), (0, width - band.shape[1]), (0, 0))) for band in bands]
    return np.concatenate(padded)


def write_contact_sheet(
    path: Path, clips: Mapping[str, list[Path]], rains: Mapping[str, RainParams], seed: int = 0
) -> None:
    """`contact_sheet` as a PNG file; CSDError where a frame cannot be read or the file not written."""
    write_png(path, contact_sheet(clips, rains, seed))


def _band(clip: str, paths: list[Path], rains: Mapping[str, RainParams], seed: int) -> np.ndarray:
    times = [min(t, len(paths) - 1) for t in _TIMES]
    frames = {t: read_image(paths[t]) for t in times}
    columns = [_column(f"{clip}, clean", [frames[t] for t in times])]
    for name, params in rains.items():
        height, width = frames[times[0]].shape[:2]
        rain = RainRenderer(params, seed, height, width, ambient=ambient_light(frames[times[0]]))
        columns.append(_column(name, [rain.render(frames[t], t) for t in times]))
    return np.concatenate(columns, axis=1)


def _column(title: str, frames: list[np.ndarray]) -> np.ndarray:
    """The first frame, below it a detail of every frame, enlarged to fill the width."""
    height, width = frames[0].shape[:2]
    rows = slice(height // 2, height // 2 + height // 4)
    columns = slice(width // 3, width // 3 + max(1, width // (2 * len(frames))))
    strip = np.concatenate([frame[rows, columns] for frame in frames], axis=1)
    strip = cv2.resize(strip, (width, strip.shape[0] * width // strip.shape[1]), interpolation=cv2.INTER_CUBIC)
    column = np.concatenate([frames[0], np.zeros((_GAP, width, 3), np.uint8), strip])
    cv2.putText(column, title, (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0), 4, cv2.LINE_AA)
    cv2.putText(column, title, (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 1, cv2.LINE_AA)
    return np.pad(column, ((0, 0), (0, _GAP), (0, 0)))

"""Measure what a rain does to clean clips, and fit a preset to statistics of a real data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from csd_plugin.data.rain.pairs import clip_renderer, find_clips, read_frame
from csd_plugin.data.rain.params import RainParams
from csd_plugin.errors import CSDError

JPEG_QUALITY = 60
"""Quality at which clean and rainy frames are encoded, each on its own, before they are compared: NTURain's frames are
JPEGs, whose noise is what makes values darker under rain that only brightens. The low frequencies of the data set's
real clip ra1 are quantised as at quality 62."""
_GRID_SHIFT = 4
"""Pixels cut off before, so that blocks of an earlier JPEG encoding do not coincide with ours and hide its noise."""


class RainStatistics(NamedTuple):
    """Of Rain - GT over all RGB values, in 8-bit grey levels; brighter, darker: percentages beyond +10 and -10."""

    mean: float
    median: float
    brighter: float
    darker: float


NTURAIN = RainStatistics(mean=2.15, median=0, brighter=7.0, darker=0.46)
"""Of NTURain's test clip a1: four published numbers are all that calibration takes from it, no frame is looked at."""


@dataclass(frozen=True)
class Sample:
    """Whole clean frames of one clip: the first gives the light, (number, frame) are rained on."""

    clip: str
    first: np.ndarray
    frames: tuple[tuple[int, np.ndarray], ...]


def load_samples(source: Path, clips: Sequence[str] | None = None, frames_per_clip: int = 3) -> list[Sample]:
    """Frames spread over every clip below `source`; CSDError as in `find_clips`."""
    samples = []
    for clip, paths in find_clips(source, clips).items():
        numbers = np.linspace(0, len(paths) - 1, min(frames_per_clip + 2, len(paths))).round().astype(int)
        chosen = numbers[1:-1] if len(numbers) > 2 else numbers
        samples.append(Sample(clip, read_frame(paths[0]), tuple((int(n), read_frame(paths[n])) for n in chosen)))
    return samples


def statistics(params: RainParams, samples: Sequence[Sample], seed: int = 0, quality: int = JPEG_QUALITY):
    """What `params` do to the samples, every clip weighing the same."""
    per_clip = [clip_statistics(params, sample, seed, quality) for sample in samples]
    return RainStatistics(*(float(np.mean(values)) for values in zip(*per_clip, strict=True)))


def clip_statistics(params: RainParams, sample: Sample, seed: int, quality: int) -> RainStatistics:
    rain = clip_renderer(params, seed, sample.clip, 1, sample.first, vary=False)
    counts = np.zeros(511)
    for number, frame in sample.frames:
        rainy = _through_jpeg(rain.render(frame, number), quality).astype(np.int16)
        difference = rainy - _through_jpeg(frame, quality)
        counts += np.bincount(difference.ravel() + 255, minlength=511)
    share, level = counts / counts.sum(), np.arange(-255, 256)
    return RainStatistics(
        mean=float(share @ level),
        median=float(level[np.searchsorted(share.cumsum(), 0.5)]),
        brighter=100 * float(share[level > 10].sum()),
        darker=100 * float(share[level < -10].sum()),
    )


def _through_jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    bgr = cv2.cvtColor(frame[_GRID_SHIFT:, _GRID_SHIFT:], cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1]


def calibrate(
    params: RainParams, samples: Sequence[Sample], goal: RainStatistics = NTURAIN, seed: int = 0, rounds: int = 12
) -> tuple[RainParams, RainStatistics]:
    """Density and opacity at which mean and brighter share are the goal's; the rest of `params` stays.

    Newton's method on the logarithms, with finite differences. Raises CSDError where it does not come within 5 %.
    """

    def gap(log_knobs: np.ndarray) -> tuple[np.ndarray, RainParams, RainStatistics]:
        density, opacity = np.exp(log_knobs)
        tried = replace(params, density=float(density), opacity=float(opacity))
        got = statistics(tried, samples, seed)
        return np.log([max(got.mean, 1e-3) / goal.mean, max(got.brighter, 1e-3) / goal.brighter]), tried, got

    knobs = np.log([params.density, params.opacity])
    for _ in tqdm(range(rounds), desc="calibrate", disable=None):
        error, tried, got = gap(knobs)
        if np.abs(error).max() < 0.02:
            return tried, got
        step = 0.15
        slopes = np.stack([(gap(knobs + step * unit)[0] - error) / step for unit in np.eye(2)], axis=1)
        knobs = knobs - np.clip(np.linalg.lstsq(slopes, error, rcond=None)[0], -0.7, 0.7)
    if np.abs(error).max() < 0.05:
        return tried, got
    raise CSDError(
        f"rain: no density and opacity give mean {goal.mean:g} and {goal.brighter:g} % beyond +10 on these clips: "
        f"reached {got.mean:.2f} and {got.brighter:.2f} %; change brightness or exposure of the preset"
    )

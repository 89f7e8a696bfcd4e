"""Measures what a rain does to clean clips, and fits a preset to the statistics of a real data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from scipy.optimize import least_squares
from tqdm import tqdm

from csd_plugin.data.rain.clips import find_clips
from csd_plugin.data.rain.params import RainParams
from csd_plugin.data.rain.renderer import clip_renderer
from csd_plugin.data.rain.statistics import RainStatistics, difference_counts, statistics_of
from csd_plugin.errors import CSDError

JPEG_QUALITY = 60
"""JPEG quality at which clean and rainy frames are encoded, separately, before they are compared: NTURain's frames are
JPEGs, whose noise makes some values darker even under rain that only brightens. The low frequencies of the data set's
real clip ra1 are quantised as at quality 62."""
_GRID_SHIFT = 4
"""Pixels cut off first, so that blocks of an earlier JPEG encoding do not coincide with ours and hide its noise."""


_FITTED = ("mean", "brighter", "darker")
_TOLERANCE = 0.15


NTURAIN = RainStatistics(mean=2.15, median=0, brighter=7.0, darker=0.46)
"""Statistics of NTURain's test clip a1: calibration uses only these four published numbers, and none of its frames."""


@dataclass(frozen=True)
class Sample:
    """Whole clean frames of one clip, by number; the first one gives the ambient light."""

    clip: str
    frames: dict[int, np.ndarray]


def load_samples(source: Path, clips: Sequence[str] | None = None) -> list[Sample]:
    """Four frames of every clip below `source`. Raises CSDError like `find_clips`."""
    return [Sample(clip.name, clip.pick((0.25, 0.5, 0.75))) for clip in find_clips(source, clips)]


def statistics(params: RainParams, samples: Sequence[Sample], seed: int = 0, quality: int = JPEG_QUALITY):
    """The statistics of this rain on the samples; all clips have equal weight. `quality` is that of JPEG, 1 to 100."""
    per_clip = [clip_statistics(params, sample, seed, quality) for sample in samples]
    return RainStatistics(*(float(np.mean(values)) for values in zip(*per_clip, strict=True)))


def clip_statistics(params: RainParams, sample: Sample, seed: int, quality: int) -> RainStatistics:
    """The statistics of rain with these parameters on the sample's frames, after JPEG encoding."""
    rain = clip_renderer(params, seed, sample.clip, 1, sample.frames[0], vary=False)
    counts = [
        difference_counts(_through_jpeg(rain.render(frame, number), quality), _through_jpeg(frame, quality))
        for number, frame in sample.frames.items()
    ]
    return statistics_of(np.sum(counts, axis=0))


def _through_jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    bgr = cv2.cvtColor(frame[_GRID_SHIFT:, _GRID_SHIFT:], cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1]


def calibrate(
    params: RainParams, samples: Sequence[Sample], goal: RainStatistics = NTURAIN, seed: int = 0
) -> tuple[RainParams, RainStatistics]:
    """Fit density and opacity to the goal's statistics; the fitted parameters and the statistics that they reach.

    A least-squares fit of logarithms. Mean and brighter share alone hardly distinguish many faint streaks from few
    strong ones; the darker share does. All other `params` stay.

    Args:
        params: the starting point; density and opacity must not be 0.
        samples: frames of clean clips.
        goal: the statistics to reach.

    Raises:
        CSDError: a statistic stays more than 15 % off.
    """
    start = np.log([params.density, params.opacity])
    with tqdm(desc="calibrate", unit="rain", disable=None) as progress:

        def tried(knobs: np.ndarray) -> RainParams:
            density, opacity = np.exp(knobs)
            return replace(params, density=float(density), opacity=float(opacity))

        def gaps(knobs: np.ndarray) -> np.ndarray:
            got = statistics(tried(knobs), samples, seed)
            progress.update()
            return np.log([max(getattr(got, name), 1e-3) / getattr(goal, name) for name in _FITTED])

        # steps large enough to exceed the granularity of counted streaks
        found = least_squares(gaps, start, bounds=(start - 2, start + 2), diff_step=0.05, xtol=1e-2, ftol=1e-2)
    reached = statistics(tried(found.x), samples, seed)
    if np.abs(found.fun).max() > _TOLERANCE:
        got = ", ".join(f"{name} {getattr(reached, name):.2f} for {getattr(goal, name):g}" for name in _FITTED)
        raise CSDError(f"no density and opacity fit the rain on these clips: {got}: change its brightness or exposure")
    return tried(found.x), reached

"""A data set that renders rain on clean clips while reading them, so that no rain repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import cv2
import numpy as np

from csd_plugin.data import augment
from csd_plugin.data.datasets.field import option
from csd_plugin.data.datasets.options import TrainingOptions
from csd_plugin.data.datasets.paired_video import dataroot_of
from csd_plugin.data.datasets.training_clips import Options, Sample, TrainingClips, TrainingDataset
from csd_plugin.data.images import decode_image
from csd_plugin.data.layout import find_clean_clips
from csd_plugin.data.rain import RainRenderer, ambient_light, find_preset, random_params
from csd_plugin.data.stores import open_store
from csd_plugin.errors import CSDError
from csd_plugin.types import PairedSequence

_BLOCK = 16
"""Side of JPEG's largest coding unit in pixels, with subsampled colour."""


@dataclass(frozen=True, kw_only=True)
class RenderedRainOptions(TrainingOptions):
    """The options of `RenderedRainDataset`."""

    rain: str = option("nturain", "preset of `csd rain` around which the rain varies")
    quality: tuple[int, int] | None = option(
        None,
        "range [low, high] of the JPEG quality of rainy frames, as NTURain's frames are JPEG files",
        each={"ge": 1, "le": 100},
    )


class RenderedRainDataset(TrainingDataset):
    """Training clips like those of `PairedVideoDataset`, with rain rendered around a preset, anew for every sample.

    Only what a crop shows is rendered, at the frames' own size; the result is as if the whole frame had been rendered
    and then cropped and scaled. A reversed clip is reversed before the rain is added.

    Args:
        opt: `RenderedRainOptions`. Its `dataroot` holds clean clips: a folder of folders of frames, or an LMDB store of
            one; in NTURain's layout, the folders NAME_GT of its `split` are used.

    Raises:
        CSDError: wrong options, or inconsistent data, at construction as far as headers show it.
    """

    options_class: ClassVar[type[RenderedRainOptions]] = RenderedRainOptions

    def __init__(self, opt: Options) -> None:
        self.opt = opt  # where the toolbox looks up the name of the set
        options = self.options_class.of(opt)
        if options.dataroot_lq or options.dataroot_gt:
            raise CSDError("RenderedRainDataset renders its rain itself: give the clean clips as dataroot")
        if options.scale > 1:
            raise CSDError(
                f"RenderedRainDataset renders rain on frames of their own size, but the scale is {options.scale}: use "
                f"PairedVideoDataset"
            )
        self.preset = find_preset(options.rain)
        self.quality = _quality_range(options.quality)
        self.store = open_store(dataroot_of(opt), options.cache_mb)
        self.sequences = find_clean_clips(
            self.store.keys(), options.split or "train", clips=options.clips, root=self.store.root
        )
        self.clips = TrainingClips(self.store, self.sequences, opt)
        self._light: dict[str, tuple[float, float, float]] = {}

    def item(self, sample: Sample) -> dict[str, Any]:
        sequence, rng = sample.sequence, sample.rng
        keys = sequence.lq[sample.start : sample.start + self.clips.num_frame]
        clean_keys = keys[::-1] if sample.plan.reverse else keys
        plan = replace(sample.plan, reverse=False)

        rain = RainRenderer(
            random_params(self.preset, rng), int(rng.integers(2**63)), *sample.size, ambient=self._light_of(sequence)
        )
        quality = int(rng.integers(self.quality[0], self.quality[1] + 1)) if self.quality else None
        top, left, height, width = _window(plan, *sample.size, block=_BLOCK if quality else 1)
        clean = [self.store.read_crop(key, top, left, height, width) for key in clean_keys]
        rainy = [rain.render(frame, t, top, left) for t, frame in enumerate(clean)]
        if quality:
            rainy = [through_jpeg(frame, quality) for frame in rainy]

        part = np.s_[plan.top - top : plan.top - top + plan.side, plan.left - left : plan.left - left + plan.side]
        return {
            "lq": self.clips.to_tensor(augment.apply(plan, [frame[part] for frame in rainy])),
            "gt": self.clips.to_tensor(augment.apply(plan, [frame[part] for frame in clean[self.clips.targets]])),
            "key": f"{sequence.name}/{keys[0].rpartition('/')[2]}",
        }

    def _light_of(self, sequence: PairedSequence) -> tuple[float, float, float]:
        if sequence.name not in self._light:
            self._light[sequence.name] = ambient_light(self.store.read(sequence.lq[0]))
        return self._light[sequence.name]


def through_jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    """A frame (h, w, 3), uint8 RGB, after compression to JPEG of this quality."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return decode_image(data.tobytes(), "a rainy frame as JPEG")


def _window(plan: augment.Augmentation, height: int, width: int, block: int) -> tuple[int, int, int, int]:
    """(top, left, height, width): the plan's region, widened to blocks of the whole frame.

    So JPEG's blocks lie in the crop where they would lie if the whole frame had been stored.
    """
    top, left = plan.top // block * block, plan.left // block * block
    bottom = min(-(-(plan.top + plan.side) // block) * block, height)
    right = min(-(-(plan.left + plan.side) // block) * block, width)
    return top, left, bottom - top, right - left


def _quality_range(quality: Sequence[int] | None) -> tuple[int, int] | None:
    if quality is None:
        return None
    low, high = (int(bound) for bound in quality)
    if not 1 <= low <= high <= 100:
        raise CSDError(f"quality: [{low}, {high}] must be two ascending JPEG qualities from 1 to 100")
    return low, high

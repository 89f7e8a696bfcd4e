"""Training crops: of the camera's frames, and a share of other pairs, so that other rain is not forgotten."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from csd_plugin.data.datasets.order import Place, places
from csd_plugin.data.datasets.paired_video import PairedVideoDataset
from csd_plugin.data.datasets.rendered_rain import RenderedRainDataset
from csd_plugin.data.datasets.training_clips import TrainingDataset
from csd_plugin.data.layout import is_clip_name
from csd_plugin.data.stores import open_store

TARGETS = 3
"""Targets per clip."""
_ENDS = 8
"""One clip in this many ends with its last target."""
_SCALES = (0.8, 1.2)
"""The range of factors by which the camera's frames and the teacher's are scaled together: +0.16 dB on later frames of
the rain on which it was chosen, more than with a wider range, see docs/adapt.md."""


class Batch(NamedTuple):
    """Crops of clips, float32 RGB in [0, 1].

    Attributes:
        rainy: (B, N, 3, s, s).
        clean: (B, TARGETS, 3, s, s), of the middle of the clips.
    """

    rainy: Tensor
    clean: Tensor


class Batches:
    """Batches by number: an interrupted run continues with the same batches.

    Args:
        camera: the camera's pairs.
        kept: other pairs; None for none.
        keep: the share of clips from `kept`, 0 to 1.
        clips: per batch.
        seed: of the order of samples, and of their random draws.
    """

    def __init__(
        self, camera: TrainingDataset, kept: TrainingDataset | None, *, keep: float, clips: int, seed: int
    ) -> None:
        self._camera, self._kept = _Endless(camera, seed), _Endless(kept, seed + 1) if kept else None
        self._keep, self._clips = keep if kept else 0.0, clips

    def since(self, number: int) -> Iterator[Batch]:
        """The batches from this one on, endlessly."""
        return map(self.batch, itertools.count(number))

    def batch(self, number: int) -> Batch:
        """The batch of this number, from 0. Raises CSDError if a frame cannot be read."""
        kept, kept_after = self._num_kept(number), self._num_kept(number + 1)
        own, own_after = number * self._clips - kept, (number + 1) * self._clips - kept_after
        items = self._camera.items(own, own_after)
        if self._kept is not None:
            items += self._kept.items(kept, kept_after)
        first = number * self._clips
        rainy = [_ended(item["lq"]) if (first + place) % _ENDS == 0 else item["lq"] for place, item in enumerate(items)]
        return Batch(torch.stack(rainy), torch.stack([item["gt"] for item in items]))

    def _num_kept(self, number: int) -> int:
        """How many of the clips before this batch come from other pairs."""
        return int(number * self._clips * self._keep + 1e-6)


def _ended(clip: Tensor) -> Tensor:
    """(N, 3, s, s) as a network sees it if the video ends with the last target: the frames after it are reflected.

    Without such clips, a network learns that the frames on both sides always differ, and fails at a clip's ends.
    """
    radius = (len(clip) - TARGETS) // 2
    frames = [min(number, 2 * (radius + TARGETS - 1) - number) for number in range(len(clip))]
    return clip[[max(frame, 0) for frame in frames]]


class _Endless:
    """The samples of a data set in random order, repeatedly."""

    def __init__(self, dataset: TrainingDataset, seed: int) -> None:
        self._dataset, self._seed = dataset, seed
        self._epoch = lru_cache(maxsize=2)(self._places)

    def items(self, start: int, stop: int) -> list[dict[str, Tensor]]:
        wanted = [divmod(number, len(self._dataset)) for number in range(start, stop)]
        drawn = [self._epoch(epoch)[position] for epoch, position in wanted]
        return self._dataset.__getitems__(drawn) if drawn else []

    def _places(self, epoch: int) -> list[Place]:
        return list(places(len(self._dataset), seed=self._seed, epoch=epoch, count=len(self._dataset)))


def camera_pairs(store: Path, *, num_frame: int, crop: int) -> PairedVideoDataset:
    """Crops of a cache's frames.

    Args:
        store: the cache's, see `Cache.store`.
        num_frame: frames T that the network sees for a target.
        crop: pixels of a side.

    Raises:
        CSDError: the store holds no clip that is long enough.
    """
    options = _options("the camera's frames", store, num_frame, crop)
    return PairedVideoDataset(options | {"scale_range": _SCALES})


def other_pairs(path: Path, *, num_frame: int, crop: int) -> TrainingDataset:
    """Crops of a data set of pairs, or, if no folder has a name as in NTURain, of clean clips with rendered rain.

    Args:
        num_frame: frames T that the network sees for a target.
        crop: pixels of a side.

    Raises:
        CSDError: the data set cannot be used.
    """
    store = open_store(path, cache_mb=1024)
    paired = any(is_clip_name(key.split("/")[-2]) for key in store.keys() if "/" in key)  # noqa: SIM118
    options = _options("--pairs", path, num_frame, crop) | {"dataroot": store, "scale_range": (0.6, 1.4)}
    return PairedVideoDataset(options) if paired else RenderedRainDataset(options | {"quality": (70, 95)})


def _options(name: str, dataroot: Path, num_frame: int, crop: int) -> dict[str, object]:
    return {
        "name": name,
        "dataroot": dataroot,
        "num_frame": TARGETS + num_frame - 1,
        "num_target": TARGETS,
        "gt_size": crop,
        "use_hflip": True,
        "random_reverse": True,
    }

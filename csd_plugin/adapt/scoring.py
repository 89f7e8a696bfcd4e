"""How near a network is to its teacher on frames that were held back, and how good it is on pairs with truth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from csd_plugin.adapt.cache import Cache
from csd_plugin.data.layout import find_sequences
from csd_plugin.data.stores import open_store
from csd_plugin.data.stores.interface import FrameStore
from csd_plugin.errors import CSDError
from csd_plugin.inference.runner import Derainer
from csd_plugin.metrics.image_quality import Image, luma_8bit, psnr
from csd_plugin.metrics.niqe import niqe
from csd_plugin.metrics.protocols import Quality
from csd_plugin.metrics.scores import Scores
from csd_plugin.metrics.warping import warping_error
from csd_plugin.types import PairedSequence

_NIQE_FRAMES, _CLIP_FRAMES = 6, 16
"""Frames of which NIQE is taken; frames from the middle of each clip for validation."""


@dataclass(frozen=True)
class Clip:
    """name, rainy frames and true ones (the teacher's, of a camera), each (H, W, 3) uint8 RGB."""

    name: str
    rainy: list[Image]
    clean: list[Image]


def held_back(cache: Cache) -> list[Clip]:
    """The frames of a cache that are not learned from."""
    store = open_store(cache.store)
    clips = []
    for shot in cache.shots:
        rainy, clean = (
            [store.read(key).copy() for key in shot.keys(kind)[shot.length - shot.held :]] for kind in ("Rain", "GT")
        )
        if rainy:
            clips.append(Clip(shot.name, rainy, clean))
    return clips


def validation_clips(path: Path) -> list[Clip]:
    """The middle frames of each test clip with truth of a data set, or else of its training clips. Raises CSDError."""
    try:
        store = open_store(path)
        sequences = _sequences(store)
    except CSDError as error:
        raise CSDError(f"--validation {error}") from error
    clips = []
    for sequence in sequences:
        if sequence.gt is not None:
            first = max(len(sequence.lq) - _CLIP_FRAMES, 0) // 2
            part = slice(first, first + _CLIP_FRAMES)
            rainy, clean = ([store.read(key).copy() for key in side[part]] for side in (sequence.lq, sequence.gt))
            clips.append(Clip(sequence.name, rainy, clean))
    if not clips:
        raise CSDError(f"--validation {path}: no clip with truth: give a data set with NAME_GT and NAME_Rain")
    return clips


def _sequences(store: FrameStore) -> list[PairedSequence]:
    try:
        return find_sequences(store.keys(), "test", root=store.root)
    except CSDError as error:
        try:  # a data set for training alone
            return find_sequences(store.keys(), "train", root=store.root)
        except CSDError:
            raise error from None


def cleaned(network: nn.Module, clips: Sequence[Clip], device: str) -> list[list[Image]]:
    """What a network makes of each clip's frames."""
    derainer = Derainer(network, device=device)
    return [list(derainer(clip.rainy)) for clip in clips]


def nearness(results: Sequence[Sequence[Image]], clips: Sequence[Clip]) -> float:
    """Mean PSNR of the luma over all frames, in dB; at most 100 for a frame, so that one that is equal still counts."""
    pairs = ((a, b) for ours, clip in zip(results, clips, strict=True) for a, b in zip(ours, clip.clean, strict=True))
    return float(np.mean([min(psnr(luma_8bit(ours), luma_8bit(theirs)), 100.0) for ours, theirs in pairs]))


def quality(network: nn.Module, clips: Sequence[Clip], device: str) -> Quality:
    """PSNR and SSIM of the luma, averaged over clips."""
    scores = Scores()
    for clip, frames in zip(clips, cleaned(network, clips, device), strict=True):
        for number, (frame, truth) in enumerate(zip(frames, clip.clean, strict=True)):
            scores.add(clip.name, str(number), frame, truth)
    return scores.average()["nturain_y"]


def affordable(network: nn.Module, clips: Sequence[Clip], device: str, seconds: float) -> list[Clip]:
    """Clips of which a pass takes about this long at most, by the first frames of each; of each at least one frame."""
    began = time.perf_counter()
    cleaned(network, [Clip(clips[0].name, clips[0].rainy[:2], clips[0].clean[:2])], device)
    each = (time.perf_counter() - began) / 2
    frames = max(int(seconds / each / len(clips)), 1)
    return [Clip(clip.name, clip.rainy[:frames], clip.clean[:frames]) for clip in clips]


def flicker(results: Sequence[Sequence[Image]], clips: Sequence[Clip]) -> float | None:
    """Mean warping error along the motion of the rainy frames; None where there is none."""
    errors = []
    for frames, clip in zip(results, clips, strict=True):
        for number in range(1, len(frames)):
            now, before = slice(number, number + 1), slice(number - 1, number)
            error = warping_error(*frames[now], *frames[before], *clip.rainy[now], *clip.rainy[before])
            errors += [] if error is None else [error]
    return float(np.mean(errors)) if errors else None


def naturalness(results: Sequence[Sequence[Image]]) -> float | None:
    """Mean NIQE of some frames; None where the package for it is missing, or frames are too small for it."""
    frames = [frame for clip in results for frame in clip]
    chosen = frames[:: max(len(frames) // _NIQE_FRAMES, 1)]
    try:
        values = [value for frame in chosen if (value := niqe(frame)) is not None]
    except CSDError:
        return None
    return float(np.mean(values)) if values else None

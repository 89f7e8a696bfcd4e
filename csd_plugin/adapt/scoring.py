"""How close a network is to its teacher on held-back frames, and its quality on pairs with truth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from csd_plugin.adapt.cache import Cache
from csd_plugin.archs.interface import interface_of
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
"""Frames for NIQE; frames from the middle of each clip for validation."""


@dataclass(frozen=True)
class Clip:
    """Frames to score, (H, W, 3) uint8 RGB each.

    Attributes:
        rainy: the scored frames, with `lead` frames before them, and perhaps some after them, for the windows at both
            ends.
        clean: the truth of the scored frames; for a camera, the teacher's frames.
        number: of the first scored frame in its clip or shot, from 1.
    """

    name: str
    rainy: list[Image]
    clean: list[Image]
    lead: int = 0
    number: int = 1

    @property
    def scored(self) -> slice:
        """The scored rainy frames, as a slice."""
        return slice(self.lead, self.lead + len(self.clean))

    def first(self, frames: int, context: int) -> Clip:
        """The clip with only the first `frames` scored, and up to `context` frames after them."""
        return replace(self, rainy=self.rainy[: self.lead + frames + context], clean=self.clean[:frames])


def held_back(cache: Cache, context: int) -> list[Clip]:
    """The held-back frames of a cache.

    Args:
        context: frames of the same scene around the scored ones, if the video has them.

    Raises:
        CSDError: a frame around them cannot be read.
    """
    store = open_store(cache.store)
    clips = []
    for shot in cache.shots:
        first = shot.length - shot.held
        lead = min(context, first)
        rainy = [store.read(key).copy() for key in shot.keys("Rain")[first - lead :]]
        clean = [store.read(key).copy() for key in shot.keys("GT")[first:]]
        _, after = shot.around(context)
        clips.append(Clip(shot.name, rainy + after, clean, lead, first + 1))
    return clips


def validation_clips(path: Path, context: int) -> list[Clip]:
    """The middle frames of each test clip that has a truth, or else of the training clips.

    Args:
        path: a data set in NTURain's layout, or an LMDB store of it.
        context: rainy frames around the scored ones, if the clip has them.

    Raises:
        CSDError: there is no such data set, or it has no clip with truth.
    """
    try:
        store = open_store(path)
        sequences = _sequences(store)
    except CSDError as error:
        raise CSDError(f"--validation {error}") from error
    clips = []
    for sequence in sequences:
        if sequence.gt is not None:
            first = max(len(sequence.lq) - _CLIP_FRAMES, 0) // 2
            stop, lead = first + _CLIP_FRAMES, min(context, first)
            rainy = [store.read(key).copy() for key in sequence.lq[first - lead : stop + context]]
            clean = [store.read(key).copy() for key in sequence.gt[first:stop]]
            clips.append(Clip(sequence.name, rainy, clean, lead, first + 1))
    if not clips:
        raise CSDError(f"--validation {path}: no clip with truth: give a data set with NAME_GT and NAME_Rain")
    return clips


def _sequences(store: FrameStore) -> list[PairedSequence]:
    try:
        return find_sequences(store.keys(), "test", root=store.root)
    except CSDError as error:
        try:  # the data set may have only training clips
            return find_sequences(store.keys(), "train", root=store.root)
        except CSDError:
            raise error from None


def cleaned(network: nn.Module, clips: Sequence[Clip], device: str) -> list[list[Image]]:
    """The scored frames, derained by a network, clip by clip."""
    derainer = Derainer(network, device=device)
    return [list(derainer(clip.rainy))[clip.scored] for clip in clips]


def nearness(results: Sequence[Sequence[Image]], clips: Sequence[Clip]) -> float:
    """PSNR of the luma in dB, averaged over frames and then over clips, as `Scores` does.

    A frame counts with at most 100 dB, so that equal frames have a value.
    """
    means = []
    for frames, clip in zip(results, clips, strict=True):
        pairs = zip(frames, clip.clean, strict=True)
        means.append(np.mean([min(psnr(luma_8bit(ours), luma_8bit(theirs)), 100.0) for ours, theirs in pairs]))
    return float(np.mean(means))


def quality(network: nn.Module, clips: Sequence[Clip], device: str) -> Quality:
    """PSNR and SSIM of the luma, averaged over clips."""
    scores = Scores()
    for clip, frames in zip(clips, cleaned(network, clips, device), strict=True):
        for number, (frame, truth) in enumerate(zip(frames, clip.clean, strict=True)):
            scores.add(clip.name, str(number), frame, truth)
    return scores.average()["nturain_y"]


def affordable(network: nn.Module, clips: Sequence[Clip], device: str, seconds: float) -> list[Clip]:
    """The first frames of each clip, at least one, as many as can be derained in about this time.

    Args:
        seconds: for one pass over all of them.
    """
    began = time.perf_counter()
    context = interface_of(network).num_frame // 2
    tried = clips[0].first(1, context)
    cleaned(network, [tried], device)
    each = (time.perf_counter() - began) / len(tried.rainy)
    frames = max(int(seconds / each / len(clips)) - 2 * context, 1)
    return [clip.first(frames, context) for clip in clips]


def flicker(results: Sequence[Sequence[Image]], clips: Sequence[Clip]) -> float | None:
    """Warping error along the motion of the rainy frames, averaged over frames, then over the clips that have one.

    None if no clip has one.
    """
    means = []
    for frames, clip in zip(results, clips, strict=True):
        rainy, errors = clip.rainy[clip.scored], []
        for number in range(1, len(frames)):
            now, before = slice(number, number + 1), slice(number - 1, number)
            error = warping_error(*frames[now], *frames[before], *rainy[now], *rainy[before])
            errors += [] if error is None else [error]
        means += [np.mean(errors)] if errors else []
    return float(np.mean(means)) if means else None


def naturalness(results: Sequence[Sequence[Image]]) -> float | None:
    """Mean NIQE of some frames; None if its package is missing, or if frames are too small."""
    frames = [frame for clip in results for frame in clip]
    chosen = frames[:: max(len(frames) // _NIQE_FRAMES, 1)]
    try:
        values = [value for frame in chosen if (value := niqe(frame)) is not None]
    except CSDError:
        return None
    return float(np.mean(values)) if values else None

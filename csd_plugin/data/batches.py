"""Training batches of any data set, as clips and targets: with one axis for frames and one for targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from csd_plugin.errors import CSDError, type_in_words


def as_clips(batch: Mapping[str, Any], num_frame: int, source: str, *, scale: int = 1) -> tuple[Tensor, Tensor]:
    """A training batch as clips and the targets in their middle: lq (B, N, 3, H, W), gt (B, L, 3, H, W).

    With a scale above 1, for super-resolution, H and W of gt are that many times those of lq.

    Batches that have clips with the targets of their middle, as our data sets give, are unchanged. A missing axis means
    one frame: lq (B, 3, H, W) is single frames, gt (B, 3, H, W) is the truth of each clip's middle frame, as from
    REDSDataset. If every frame has its truth, as from REDSRecurrentDataset, the targets are the frames with complete
    windows.

    Args:
        num_frame: frames of the longest window that a network needs.
        source: the data set, which begins the messages.
        scale: of the networks.

    Raises:
        CSDError: a batch is no dict or lacks lq or gt, its axes, or frames and targets, do not match, or its clips are
            too short.
    """
    if not isinstance(batch, Mapping):
        raise CSDError(
            f"{source} gives {type_in_words(batch)}; give a dict of lq, the rainy clips (B, N, 3, H, W), and gt, the "
            f"clean frames of their middle"
        )
    missing = [key for key in ("lq", "gt") if not isinstance(batch.get(key), Tensor)]
    if missing:
        raise CSDError(
            f"{source} gives no {missing[0]}; these models learn from pairs of rainy (lq) and clean "
            f"(gt) frames: use PairedVideoDataset, or the toolbox's REDSDataset or PairedImageDataset"
        )
    lq, gt = batch["lq"], batch["gt"]
    given = f"{source} gives lq {tuple(lq.shape)} and gt {tuple(gt.shape)}"
    if turned := _reordered(lq, gt):
        raise CSDError(f"{given}; the axes are (B, N, 3, H, W): give both as {turned}")
    if lq.ndim == gt.ndim == 4:
        lq = lq.unsqueeze(1)
    if gt.ndim == 4:
        gt = gt.unsqueeze(1)
    pairs = lq.ndim == gt.ndim == 5 and len(lq) == len(gt) and lq.shape[2] == gt.shape[2]
    if not pairs or tuple(gt.shape[3:]) != tuple(side * scale for side in lq.shape[3:]):
        size = "their size" if scale == 1 else f"{scale} times their size"
        raise CSDError(
            f"{given}; clips (B, N, 3, H, W) or single frames (B, 3, H, W) are needed, and targets of {size}: check "
            f"that the scale of the data set is {scale}, as that of the networks"
        )

    frames, targets = lq.shape[1], gt.shape[1]
    if frames == 1 and num_frame > 1:
        raise CSDError(
            f"{given}, single frames, but a network needs {num_frame}: use a data set of clips, such as "
            f"PairedVideoDataset or the toolbox's REDSDataset, or networks of single frames"
        )
    if targets > frames or (targets == frames and frames < num_frame):
        raise CSDError(f"{given}: the clips need {num_frame} frames or more; set its num_frame to that")
    if targets == frames:
        radius = num_frame // 2
        return lq, gt[:, radius : frames - radius]
    if (frames - targets) % 2:
        raise CSDError(
            f"{given}: {targets} targets cannot be centred in {frames} frames; set num_frame to {frames + 1} or "
            f"{frames - 1}"
        )
    if frames - targets + 1 < num_frame:
        raise CSDError(
            f"{given}: windows of {frames - targets + 1} frames, but a network needs {num_frame}; set its num_frame "
            f"to {targets + num_frame - 1} or more"
        )
    return lq, gt


def _reordered(lq: Tensor, gt: Tensor) -> str:
    """What brings the axes of other packages' clips into our order; empty if they seem to be in it."""
    if lq.ndim != 5 or lq.shape[2] == 3:
        return ""
    if lq.shape[4] == gt.shape[-1] == 3:
        return "clips.movedim(-1, -3)"
    # a clip of three grey frames has the same first axes
    return "clips.transpose(1, 2)" if lq.shape[1] == gt.shape[1] == 3 and lq.shape[2] > 4 else ""


FEATURE = "teacher_feature_"
"""The prefix of the keys under which the teacher's features come with a batch; the layer's number follows."""


def features_of(batch: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The teacher's features in a batch, (B, L, C, h, w) per layer; empty if the teacher has to be run."""
    count = sum(key.startswith(FEATURE) for key in batch)
    return tuple(batch[f"{FEATURE}{number}"] for number in range(count))


def as_float(frames: Tensor) -> Tensor:
    """Frames as float in [0, 1]: those of a data set with `as_uint8` are divided by 255, others are unchanged."""
    return frames.float().div_(255) if frames.dtype == torch.uint8 else frames

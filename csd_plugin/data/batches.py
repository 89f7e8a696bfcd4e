"""Training batches of anybody's data sets, as clips and targets: one axis for frames, one for targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from csd_plugin.errors import CSDError


def as_clips(batch: Mapping[str, Any], num_frame: int, source: str) -> tuple[Tensor, Tensor]:
    """A training batch as clips and targets: lq (B, N, 3, H, W), gt (B, L, 3, H, W), of their middle.

    Taken as they are: clips with the targets of their middle, as our data sets give them. Where an axis is missing,
    there is one of it: lq (B, 3, H, W) are single frames, gt (B, 3, H, W) is the truth of each clip's middle frame, as
    REDSDataset gives it. Where every frame has its truth, as in REDSRecurrentDataset, the targets are those that have
    whole windows.

    Args:
        num_frame: frames of the longest window that a network needs.
        source: where the batch is from, to begin messages with.

    Raises:
        CSDError: a batch without lq or gt, frames and targets that do not go together, clips that are too short.
    """
    missing = [key for key in ("lq", "gt") if not isinstance(batch.get(key), Tensor)]
    if missing:
        raise CSDError(
            f"{source} gives no {missing[0]}; these models learn from pairs of rainy (lq) and clean "
            f"(gt) frames: take PairedVideoDataset, or the toolbox's REDSDataset or PairedImageDataset"
        )
    lq, gt = batch["lq"], batch["gt"]
    given = f"{source} gives lq {tuple(lq.shape)} and gt {tuple(gt.shape)}"
    if lq.ndim == gt.ndim == 4:
        lq = lq.unsqueeze(1)
    if gt.ndim == 4:
        gt = gt.unsqueeze(1)
    if lq.ndim != 5 or gt.ndim != 5 or len(lq) != len(gt) or lq.shape[2:] != gt.shape[2:]:
        raise CSDError(
            f"{given}; clips (B, N, 3, H, W) or single frames (B, 3, H, W) are needed, and targets of their size: "
            f"check that the data set's scale is 1"
        )

    frames, targets = lq.shape[1], gt.shape[1]
    if frames == 1 and num_frame > 1:
        raise CSDError(
            f"{given}, single frames, and a network sees {num_frame}: take a data set of clips, such as "
            f"PairedVideoDataset or the toolbox's REDSDataset, or networks of single frames"
        )
    if targets > frames or (targets == frames and frames < num_frame):
        raise CSDError(f"{given}: the clips need {num_frame} frames or more; set its num_frame to that")
    if targets == frames:
        radius = num_frame // 2
        return lq, gt[:, radius : frames - radius]
    if (frames - targets) % 2:
        raise CSDError(
            f"{given}: {frames} frames have no middle of {targets}; set its num_frame to {frames + 1} or {frames - 1}"
        )
    if frames - targets + 1 < num_frame:
        raise CSDError(
            f"{given}: windows of {frames - targets + 1} frames, and a network sees {num_frame}; set its num_frame "
            f"to {targets + num_frame - 1} or more"
        )
    return lq, gt


FEATURE = "teacher_feature_"
"""Begins the keys of a batch under which the teacher's features come with it; the number of the layer follows."""


def features_of(batch: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The teacher's features that come with a batch, (B, L, C, h, w) of each layer; none where it has to be run."""
    count = sum(key.startswith(FEATURE) for key in batch)
    return tuple(batch[f"{FEATURE}{number}"] for number in range(count))


def as_float(frames: Tensor) -> Tensor:
    """Frames of a data set with `as_uint8`, 0 .. 255, as float in [0, 1]; others as they are."""
    return frames.float().div_(255) if frames.dtype == torch.uint8 else frames

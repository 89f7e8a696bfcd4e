"""Batches and items of anybody's data sets, as our models take them: one axis for frames, one for targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from csd_plugin.errors import CSDError


def as_clips(batch: Mapping[str, Any], num_frame: int, dataset: str) -> tuple[Tensor, Tensor]:
    """A training batch as clips and targets: lq (B, N, 3, H, W), gt (B, L, 3, H, W), of their middle.

    Taken as they are: clips with the targets of their middle, as our data sets give them. Where an axis is missing,
    there is one of it: lq (B, 3, H, W) are single frames, gt (B, 3, H, W) is the truth of each clip's middle frame, as
    REDSDataset gives it. Where every frame has its truth, as in REDSRecurrentDataset, the targets are those that have
    whole windows.

    Args:
        num_frame: frames of the longest window that a network needs.
        dataset: the type of the data set, for messages.

    Raises:
        CSDError: a batch without lq or gt, frames and targets that do not go together, clips that are too short.
    """
    missing = [key for key in ("lq", "gt") if not isinstance(batch.get(key), Tensor)]
    if missing:
        raise CSDError(
            f"datasets.train: {dataset} gives no {missing[0]}; these models learn from pairs of rainy (lq) and clean "
            f"(gt) frames: take PairedVideoDataset, or the toolbox's REDSDataset or PairedImageDataset"
        )
    lq, gt = batch["lq"], batch["gt"]
    given = f"datasets.train: {dataset} gives lq {tuple(lq.shape)} and gt {tuple(gt.shape)}"
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


@dataclass(frozen=True)
class Item:
    """What a model is tested on at once.

    run: the same for items whose frames follow each other in one clip.
    lq: (T, 3, H, W), a frame and its neighbours. gt: (3, H, W), or None where there is no truth.
    """

    index: int
    clip: str
    frame: str
    run: Any
    lq: Tensor
    gt: Tensor | None


def read_test_item(dataset: Any, index: int, num_frame: int) -> Item:
    """Item `index` of a test set of ours or of the toolbox: of windows, or of single images.

    Images are of one clip, named as the set, and no image follows another. A frame is named by its file, and by the
    folders between the set's root and it where they do not name the clip.

    num_frame: what the network sees. Raises CSDError for sets of other things than these.
    """
    item, opt, kind = dataset[index], dataset.opt, type(dataset).__name__
    lq, gt, path = item.get("lq"), item.get("gt"), item.get("lq_path")
    where = f"the data set {opt['name']}: {kind}"
    if lq is None:
        raise CSDError(f"{where} gives no lq; take PairedVideoTestDataset, or the toolbox's VideoTestDataset")
    if lq.ndim == 4 and gt is not None and gt.ndim == 4:
        raise CSDError(
            f"{where} gives whole clips; take type: VideoTestDataset on the same folders, with num_frame: {num_frame} "
            f"and padding: reflection"
        )
    if path is None:
        raise CSDError(
            f"{where} is for training and does not say which frame is which; take PairedVideoTestDataset, or the "
            f"toolbox's VideoTestDataset"
        )
    is_image, path = lq.ndim == 3, Path(path)
    if is_image and num_frame > 1:
        raise CSDError(
            f"{where} gives single images, and network_g sees {num_frame} frames; take PairedVideoTestDataset, or the "
            f"toolbox's VideoTestDataset with num_frame: {num_frame} and padding: reflection"
        )
    clip = str(item.get("folder", opt["name"]))
    return Item(
        index=index,
        clip=clip,
        frame=_frame_name(path, clip, opt.get("dataroot_lq")),
        run=index if is_image else (clip, path.parent),
        lq=lq.unsqueeze(0) if is_image else lq,
        gt=gt,
    )


def _frame_name(path: Path, clip: str, root: str | None) -> str:
    """'0001' of ROOT/CLIP/0001.png, '00001_0266_im4' of ROOT/00001/0266/im4.png where another clip is named."""
    if root is None or not path.is_relative_to(root):
        return path.stem
    folders = path.relative_to(root).parent.parts
    return "_".join([*(folders[1:] if folders[:1] == (clip,) else folders), path.stem])

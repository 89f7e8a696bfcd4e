"""Items of anybody's test sets, as our models take them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from csd_plugin.errors import CSDError


@dataclass(frozen=True)
class Item:
    """What a model is tested on at once.

    Attributes:
        run: the same for items whose frames follow each other in one clip.
        lq: (T, 3, H, W), a frame and its neighbours.
        gt: (3, H, W), or None where there is no truth.
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

    Args:
        num_frame: what the network sees.

    Raises:
        CSDError: sets of other things than these.
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

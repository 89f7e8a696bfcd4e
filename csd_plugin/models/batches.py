"""Items of any test set, in the form that our models need."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from csd_plugin.data.images import header_shape
from csd_plugin.errors import CSDError


@dataclass(frozen=True)
class Item:
    """One item on which a model is tested.

    Attributes:
        run: equal for items whose frames are consecutive in one clip.
        lq: (T, 3, H, W), a frame and its neighbours.
        gt: (3, H * scale, W * scale), or None without truth.
        gt_path: its file, if the set says which.
    """

    index: int
    clip: str
    frame: str
    run: Any
    lq: Tensor
    gt: Tensor | None
    gt_path: Any = None


def read_test_item(dataset: Any, index: int, num_frame: int) -> Item:
    """Item `index` of a test set, ours or the toolbox's, of windows or single images.

    Images form one clip, named after the set, and are not consecutive. A frame is named after its file, and after the
    folders between the set's root and the file unless they name the clip.

    Args:
        num_frame: frames that the network needs.

    Raises:
        CSDError: the set gives something else.
    """
    item, opt, kind = dataset[index], dataset.opt, type(dataset).__name__
    lq, gt, path = item.get("lq"), item.get("gt"), item.get("lq_path")
    where = f"the data set {opt['name']}: {kind}"
    if lq is None:
        raise CSDError(f"{where} gives no lq; use PairedVideoTestDataset, or the toolbox's VideoTestDataset")
    if lq.ndim == 4 and gt is not None and gt.ndim == 4:
        raise CSDError(
            f"{where} gives whole clips; use type: VideoTestDataset on the same folders, with num_frame: {num_frame} "
            f"and padding: reflection"
        )
    if path is None:
        raise CSDError(
            f"{where} is for training and does not identify frames; use PairedVideoTestDataset, or the "
            f"toolbox's VideoTestDataset"
        )
    is_image, path = lq.ndim == 3, Path(path)
    if is_image and num_frame > 1:
        raise CSDError(
            f"{where} gives single images, but network_g needs {num_frame} frames; use PairedVideoTestDataset, or the "
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
        gt_path=item.get("gt_path"),
    )


def check_pair_sizes(item: Item, scale: int) -> None:
    """Raise CSDError unless the truth is `scale` times as high and wide as the frame, also in its file.

    The toolbox's sets of images cut larger truth off below and to the right, where a wrong scale goes unnoticed.
    """
    if item.gt is None:
        return
    expected = item.lq.shape[2] * scale, item.lq.shape[3] * scale
    given = _size_of_file(item.gt_path) or tuple(item.gt.shape[1:])
    spare = scale - 1 if tuple(item.gt.shape[1:]) == expected else 0  # less than a pixel of the input
    if not all(0 <= side - needed <= spare for side, needed in zip(given, expected, strict=True)):
        larger = f" at scale {scale}" if scale > 1 else ""
        raise CSDError(
            f"clip {item.clip}, frame {item.frame}: the truth is {given[1]}x{given[0]}, but the frame is "
            f"{item.lq.shape[3]}x{item.lq.shape[2]}{larger}; check the scale, and that both folders belong together"
        )


def _size_of_file(path: Any) -> tuple[int, int] | None:
    """(height, width) of an image file; None if there is none."""
    with suppress(OSError, TypeError, ValueError), Path(path).open("rb") as file:
        return header_shape(file)
    return None


def _frame_name(path: Path, clip: str, root: str | None) -> str:
    """'0001' for ROOT/CLIP/0001.png, '00001_0266_im4' for ROOT/00001/0266/im4.png if the clip has another name."""
    if root is None or not path.is_relative_to(root):
        return path.stem
    folders = path.relative_to(root).parent.parts
    return "_".join([*(folders[1:] if folders[:1] == (clip,) else folders), path.stem])

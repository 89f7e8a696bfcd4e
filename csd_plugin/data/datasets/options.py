"""What data sets may be asked for: types, defaults and ranges, stated once. Option files are checked by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from csd_plugin.data.datasets.field import option

MOST = 1024
"""Frames, targets, clips of a batch: far more than anybody trains with, few enough not to fill the memory."""

Self = TypeVar("Self", bound="DatasetOptions")

ROOTS = ("dataroot", "dataroot_lq", "dataroot_gt")
"""The options that say where frames are."""


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """What all data sets take."""

    dataroot: str | None = option(None, "folder that holds Dataset_Training_Synthetic, Dataset_Testing_Synthetic ..")
    dataroot_lq: str | None = option(None, "in place of dataroot: rainy clips alone, CLIP/FRAME, in a folder or LMDB")
    dataroot_gt: str | None = option(None, "with it: their clean clips, of the same names")
    split: Literal["train", "test", "real"] | None = option(
        None, "which of these folders; by default train for training, test for the rest"
    )
    clips: str | list[str] | None = option(None, "only these clips: names, or a file with one per line")
    num_frame: int = option(
        7, "frames in a sample: N of a training clip, or of a test window", required=True, gt=0, le=MOST
    )
    cache_mb: float = option(0, "memory for decoded frames, of all workers together", ge=0)

    @classmethod
    def of(cls: type[Self], opt: Mapping[str, Any]) -> Self:
        """From the toolbox's dict, which has other keys too."""
        return cls(**{each.name: opt[each.name] for each in fields(cls) if each.name in opt})


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(DatasetOptions):
    """What the data sets for training take; the keys of the toolbox's loader among them."""

    num_frame: int = option(11, "frames N of a clip", required=True, gt=0, le=MOST)
    num_target: int = option(5, "targets L in the middle of the clip", required=True, gt=0, le=MOST)
    gt_size: int = option(128, "height and width of the crop", required=True, ge=4, le=8192)
    scale_range: tuple[float, float] = option(
        (1.0, 1.0), "enlarge frames by a random factor, up to 16", each={"gt": 0, "le": 16}
    )
    use_hflip: bool = option(True, "mirror left and right")
    use_vflip: bool = option(False, "mirror top and bottom")
    use_rot: bool = option(False, "exchange rows and columns")
    random_reverse: bool = option(False, "run clips backwards")
    as_uint8: bool = option(False, "samples as bytes, a quarter of the workers' traffic; same training")
    dataset_enlarge_ratio: int = option(1, "how many times an epoch uses every clip", gt=0, le=100_000)

    batch_size_per_gpu: int = option(1, "clips in a batch", required=True, gt=0, le=MOST)
    num_worker_per_gpu: int = option(0, "loader processes", required=True, ge=0, le=256)
    # the toolbox's `cpu` loses a worker's error and then waits for ever; workers read ahead without it
    prefetch_mode: Literal["cuda"] | None = option(None)
    pin_memory: bool = option(False)
    persistent_workers: bool = option(False)
    use_shuffle: bool = option(True)


@dataclass(frozen=True, kw_only=True)
class TestOptions(DatasetOptions):
    """What the data sets for validation and tests take."""

    __test__ = False  # for pytest

    cache_mb: float = option(128, "memory for decoded frames, so that neighbours are decoded once", ge=0)
    frame_range: tuple[int, int] | None = option(
        None, "first and last frame of every clip, from 1, inclusive; windows still see the others"
    )

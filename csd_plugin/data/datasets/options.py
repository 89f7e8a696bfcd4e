"""The options of data sets: types, defaults and ranges, stated once. Option files are checked against them."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, Literal, TypeVar

from csd_plugin.data.datasets.field import option
from csd_plugin.errors import CSDError

MOST = 1024
"""The most frames, targets or clips of a batch: more than any training uses, but few enough to fit into memory."""
MOST_SCALE = 16
"""The most times that clean frames may be larger than rainy ones: twice what super-resolution uses."""

_MISTYPED = 0.8
"""The similarity, by difflib, from which an unknown key counts as a typo; the toolbox's own keys stay below."""
_KINDS: dict[str, tuple[Any, str]] = {
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "bool": (bool, "true or false"),
}
"""Option type -> the Python type of its values, and its name in messages."""
_SAID = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}

Self = TypeVar("Self", bound="DatasetOptions")

ROOTS = ("dataroot", "dataroot_lq", "dataroot_gt")
"""The options that say where the frames are."""


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """The options of all data sets."""

    dataroot: str | None = option(
        None, "folder that holds the `Dataset_*` folders, or an LMDB store of it (`csd prepare --lmdb`)"
    )
    dataroot_lq: str | None = option(
        None, "instead of `dataroot`: only the rainy clips, CLIP/FRAME, in a folder or an LMDB store"
    )
    dataroot_gt: str | None = option(None, "with `dataroot_lq`: their clean clips, with the same names")
    split: Literal["train", "test", "real"] | None = option(
        None, "which `Dataset_*` folder: `train`, `test` or `real`; by default `train` for training, else `test`"
    )
    clips: str | list[str] | None = option(
        None, "use only these clips: their names, or a text file with one name per line; by default all"
    )
    num_frame: int = option(7, "frames of a test window, not fewer than the network's", required=True, gt=0, le=MOST)
    cache_mb: float = option(0, "memory in MB for decoded frames, for all workers together", ge=0)
    scale: int = option(
        1,
        "how many times as high and wide the clean frames are, for super-resolution; BasicSR takes it from the `scale` "
        "of the whole file",
        ge=1,
        le=MOST_SCALE,
    )

    @classmethod
    def of(cls: type[Self], opt: Mapping[str, Any]) -> Self:
        """The options in the toolbox's dict, which also has other keys.

        Raises CSDError for an unknown key that is similar to one of these, and for numbers of the wrong type or out of
        range. Option files are checked for more.
        """
        known = [each.name for each in fields(cls)]
        for key in opt:
            if key not in known and (near := get_close_matches(str(key), known, n=1, cutoff=_MISTYPED)):
                raise CSDError(f"option {key!r} of a data set is unknown; did you mean {near[0]}?")
        for each in fields(cls):
            if each.name in opt:
                _check_number(each, opt[each.name])
        return cls(**{each.name: opt[each.name] for each in fields(cls) if each.name in opt})


def _check_number(field: Field[Any], value: Any) -> None:
    kind, expected = _KINDS.get(getattr(field.type, "__name__", str(field.type)), (object, ""))
    limits = field.metadata["limits"]
    if not isinstance(value, kind) or (kind is not bool and expected and isinstance(value, bool)):
        raise CSDError(f"option {field.name} of a data set is {value!r}: give {expected}")
    if expected and not all(getattr(operator, how)(value, limit) for how, limit in limits.items()):
        allowed = " and ".join(f"{_SAID[how]} {limit}" for how, limit in limits.items())
        raise CSDError(f"option {field.name} of a data set is {value!r}: give {expected} {allowed}")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(DatasetOptions):
    """The options of data sets for training, including those of the toolbox's loader."""

    num_frame: int = option(11, "frames N of a training clip", required=True, gt=0, le=MOST)
    num_target: int = option(
        5,
        "targets L in the middle of the clip; the network may see at most N - L + 1 frames",
        required=True,
        gt=0,
        le=MOST,
    )
    gt_size: int = option(
        128, "side of the crop of clean frames, in pixels; a multiple of `scale`", required=True, ge=4, le=8192
    )
    scale_range: tuple[float, float] = option(
        (1.0, 1.0), "enlarge frames by a random factor from this range", each={"gt": 0, "le": 16}
    )
    use_hflip: bool = option(True, "mirror left and right")
    use_vflip: bool = option(False, "mirror top and bottom")
    use_rot: bool = option(False, "transpose; with both flips, all rotations by multiples of 90 degrees")
    random_reverse: bool = option(False, "run clips backwards, half of the time")
    as_uint8: bool = option(
        False, "workers pass on samples as bytes, with a quarter of the memory traffic; the training is the same"
    )
    dataset_enlarge_ratio: int = option(1, "how many times an epoch goes through all items", gt=0, le=100_000)

    batch_size_per_gpu: int = option(1, "clips in a batch", required=True, gt=0, le=MOST)
    num_worker_per_gpu: int = option(0, "loader processes", required=True, ge=0, le=256)
    # the toolbox's `cpu` loses a worker's error and then waits forever; workers read ahead without it
    prefetch_mode: Literal["cuda"] | None = option(
        None, "`cuda`: the next batch is copied to the GPU while the network works; needs `pin_memory`"
    )
    pin_memory: bool = option(False, "keep batches in page-locked memory, from which copies to a GPU are faster")
    persistent_workers: bool = option(False, "keep the workers from one epoch to the next")
    use_shuffle: bool = option(
        True,
        "use the runs of `num_frame` frames in a random order, different in each epoch; false: clip after clip by "
        "name, and in each all runs from the first frame on. Crops and mirroring are random in both cases",
    )


@dataclass(frozen=True, kw_only=True)
class PairedOptions(TrainingOptions):
    """The options of PairedVideoDataset."""

    features: str | None = option(
        None,
        "folder with the teacher's features of these clips (`csd adapt --features`), so that the teacher is not run; "
        "needs `scale_range: [1, 1]`",
    )


@dataclass(frozen=True, kw_only=True)
class TestOptions(DatasetOptions):
    """The options of data sets for validation and tests."""

    __test__ = False  # for pytest

    cache_mb: float = option(128, "memory in MB for decoded frames, so that neighbours are decoded once", ge=0)
    frame_range: tuple[int, int] | None = option(
        None, "first and last frame to score, counted from 1; windows still include the others; by default all"
    )

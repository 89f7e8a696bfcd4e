"""Datasets of paired clips, for BasicSR's option dicts; plain torch datasets otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from csd_plugin.data import augment
from csd_plugin.data.batches import FEATURE
from csd_plugin.data.datasets.options import DatasetOptions, PairedOptions, TestOptions, TrainingOptions
from csd_plugin.data.datasets.training_clips import (
    Options,
    Sample,
    TrainingClips,
    TrainingDataset,
    WorkerEntry,
    check_sizes,
    to_tensor,
)
from csd_plugin.data.features import open_features
from csd_plugin.data.layout import find_pairs, find_sequences
from csd_plugin.data.stores import open_store
from csd_plugin.data.stores.interface import FrameStore
from csd_plugin.data.stores.joined import JoinedStore
from csd_plugin.data.windows import reflect_indices
from csd_plugin.errors import CSDError
from csd_plugin.types import PairedSequence


class PairedVideoDataset(TrainingDataset):
    """Training clips: N rainy frames and the L clean targets of their middle, cropped and augmented alike.

    An item is a dict: lq (N, 3, size, size) and gt (L, 3, gt_size, gt_size), or (3, gt_size, gt_size) for a single
    target, float32 RGB in [0, 1], where size is gt_size / scale; key, the clip and its first frame. The items are all
    runs of N consecutive frames of all clips. Random draws repeat with the seed; `TrainingClips` says when they depend
    on the number of workers. With the option `features`, an item also has teacher_feature_0, .., float16 (L, C, h, w),
    see `data.features`.

    Args:
        opt: `PairedOptions`.

    Raises:
        CSDError: wrong options, or inconsistent data, at construction as far as headers show it.
    """

    options_class: ClassVar[type[TrainingOptions]] = PairedOptions

    def __init__(self, opt: Options) -> None:
        self.opt = opt  # where the toolbox looks up the name of the set
        options = PairedOptions.of(opt)
        self.store, self.sequences = _open(opt, options, "train")
        self.clips = TrainingClips(self.store, self.sequences, opt)
        self.features = open_features(Path(options.features)) if options.features else None
        if self.features is not None:
            self.clips.align(self.features.grid(self.sequences, self.clips.sizes))

    def item(self, sample: Sample) -> dict[str, Any]:
        sequence, frames = sample.sequence, slice(sample.start, sample.start + self.clips.num_frame)
        assert sequence.gt is not None  # checked at construction
        lq, gt = sequence.lq[frames], sequence.gt[frames][self.clips.targets]
        item = {
            "lq": self._crops(lq, sample.plan),
            "gt": self._crops(gt, sample.plan.enlarged(self.clips.scale)),
            "key": f"{sequence.name}/{lq[0].rpartition('/')[2]}",
        }
        if self.features is not None:
            first = sample.start + self.clips.targets.start
            targets = slice(first, first + self.clips.num_target)
            features = self.features.crops(sequence.name, targets, sample.size, sample.plan)
            item |= {f"{FEATURE}{number}": feature for number, feature in enumerate(features)}
        return item

    def _crops(self, keys: Sequence[str], plan: augment.Augmentation) -> Tensor:
        regions = [self.store.read_crop(key, plan.top, plan.left, plan.side, plan.side) for key in keys]
        return self.clips.to_tensor(augment.apply(plan, regions))


class PairedVideoTestDataset(Dataset):
    """Every frame of every clip in order, each with its neighbours, reflected at the clip's ends.

    An item is a dict: lq (num_frame, 3, H, W) and, if there is truth, gt (3, H * scale, W * scale), float32 RGB in
    [0, 1]; folder, the clip; idx, 'k/n', its number among the n requested frames of the clip; lq_path, its key.
    `data_info` has folder, idx, lq_path and gt_path (None without truth) of all items, as in BasicSR's video
    test data sets.

    Args:
        opt: `TestOptions`.

    Raises:
        CSDError: wrong options, or inconsistent data, at construction as far as headers show it.
    """

    options_class: ClassVar[type[TestOptions]] = TestOptions

    def __init__(self, opt: Options) -> None:
        self.opt = opt  # where the toolbox looks up the name of the set
        options = self.options_class.of(opt)
        self.num_frame = options.num_frame
        self.store, self.sequences = _open(opt, options, "test")
        self.scale = options.scale
        check_sizes(self.store, self.sequences, self.scale)
        self.samples: list[tuple[int, int]] = []
        self.data_info: dict[str, list[Any]] = {"lq_path": [], "gt_path": [], "folder": [], "idx": []}
        for i, sequence in enumerate(self.sequences):
            frames = _frame_range(options.frame_range, sequence)
            self.samples += [(i, frame) for frame in frames]
            self.data_info["lq_path"] += [sequence.lq[frame] for frame in frames]
            self.data_info["gt_path"] += [sequence.gt and sequence.gt[frame] for frame in frames]
            self.data_info["folder"] += [sequence.name] * len(frames)
            self.data_info["idx"] += [f"{k}/{len(frames)}" for k in range(len(frames))]
        reflect_indices(0, self.num_frame, 1)  # reports an even num_frame now, not at the first item
        self._enter_worker = WorkerEntry(self.store)

    def sizes(self) -> dict[tuple[int, int], str]:
        """(height, width) of results -> the first clip with that size."""
        shapes = {self.store.shape(sequence.lq[0]): sequence.name for sequence in reversed(self.sequences)}
        return {(height * self.scale, width * self.scale): clip for (height, width), clip in shapes.items()}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self._enter_worker()
        number, frame = self.samples[index]
        sequence = self.sequences[number]
        window = reflect_indices(frame, self.num_frame, len(sequence.lq))
        item = {
            "lq": to_tensor(np.stack([self.store.read(sequence.lq[i]) for i in window])),
            "folder": sequence.name,
            "idx": self.data_info["idx"][index],
            "lq_path": sequence.lq[frame],
        }
        if sequence.gt is not None:
            item["gt"] = to_tensor(self.store.read(sequence.gt[frame])[None])[0]
        return item


def dataroot_of(opt: Options) -> str | Path | FrameStore:
    """The option `dataroot`. Raises CSDError, naming the data set, if it is missing."""
    if not opt.get("dataroot"):
        raise CSDError(
            f"dataset {opt.get('name', '')!r}: dataroot is missing: give the data set's folder or LMDB store"
        )
    return opt["dataroot"]


def _open(opt: Options, options: DatasetOptions, split: str) -> tuple[FrameStore, list[PairedSequence]]:
    """The store of frames, which joins two places if both are given, and the clips in it."""
    roots = {"lq": options.dataroot_lq, "gt": options.dataroot_gt}
    given = {side: root for side, root in roots.items() if root}
    if not given:
        store = open_store(dataroot_of(opt), options.cache_mb)
        return store, find_sequences(store.keys(), options.split or split, clips=options.clips, root=store.root)
    where = f"dataset {opt.get('name', '')!r}"
    if options.dataroot or options.split:
        raise CSDError(f"{where}: dataroot_lq and dataroot_gt are all its clips: leave dataroot and split out")
    if "lq" not in given or (split == "train" and "gt" not in given):
        raise CSDError(f"{where}: give both dataroot_lq and dataroot_gt")
    joined = JoinedStore({side: open_store(root, options.cache_mb / len(given)) for side, root in given.items()})
    return joined, find_pairs(joined.keys(), "gt" in given, clips=options.clips)


def _frame_range(asked: Sequence[int] | None, sequence: PairedSequence) -> range:
    if asked is None:
        return range(len(sequence.lq))
    first, last = asked
    if not 1 <= first <= last <= len(sequence.lq):
        raise CSDError(
            f"frame_range: [{first}, {last}] is not within {sequence.name}, which has frames 1 .. {len(sequence.lq)}; "
            f"change it, or choose clips with `clips`"
        )
    return range(first - 1, last)

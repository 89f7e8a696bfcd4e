"""Datasets of paired clips, for BasicSR's option dicts; plain torch datasets otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from tqdm import tqdm

from csd_plugin.data import augment
from csd_plugin.data.layout import find_sequences
from csd_plugin.data.store import FrameStore, open_store
from csd_plugin.data.windows import clip_starts, reflect_indices, target_slice
from csd_plugin.errors import CSDError
from csd_plugin.types import PairedSequence

Options = Mapping[str, Any]


class PairedVideoDataset(Dataset):
    """Training clips: N rainy frames and the L clean targets of their middle, cropped and augmented alike.

    An item is a dict: lq (N, 3, gt_size, gt_size), gt (L, 3, gt_size, gt_size), float32 RGB in [0, 1]; key, the
    clip and its first frame. Items are all runs of N consecutive frames of all clips.

    Randomness: every sample has its own generator, seeded by (the loader's base seed, the number of its batch,
    its place in the batch). torch draws the base seed from its global generator for each epoch; batches are
    dealt to workers in turn, so a worker knows the number of its batch from its own count. Hence runs repeat
    by `manual_seed`; no two samples share a draw, also where a sampler repeats an index within an epoch
    (dataset_enlarge_ratio); and the number of workers (1 or more) does not matter. Two limits: with persistent
    workers it matters from the second epoch on, as a short last round leaves their counts unequal; and
    without workers, where torch tells no base seed, the draws are others (seeded by torch's initial seed).

    Options:
        dataroot (str): the data set, see `layout`: a folder, or an LMDB store of it.
        split (str): train (default), test, real.
        clips (str | list): list file or names of the clips to use. Default: all.
        num_frame (int): N. Default: 11.
        num_target (int): L, N - L even. Default: 5.
        gt_size (int): side of the crop, any number. Default: 128.
        scale_range (list): frames are enlarged by a factor from [low, high]. Default: [1, 1].
        use_hflip (bool): mirror left and right. Default: true.
        use_vflip (bool): mirror top and bottom. Default: false.
        use_rot (bool): exchange rows and columns. Default: false.
        random_reverse (bool): run the clip backwards. Default: false.
        cache_mb (float): memory for decoded frames, of all workers together; raw stores need none. Default: 0.

    Raises CSDError for data that does not fit together, at construction where headers tell.
    """

    def __init__(self, opt: Options) -> None:
        self.opt = opt  # where the toolbox looks the name of the set up
        self.num_frame = int(opt.get("num_frame", 11))
        self.targets = target_slice(self.num_frame, int(opt.get("num_target", 5)))
        low, high = opt.get("scale_range", (1.0, 1.0))
        self.augment_options = augment.AugmentOptions(
            crop=int(opt.get("gt_size", 128)),
            scale=(float(low), float(high)),
            hflip=bool(opt.get("use_hflip", True)),
            vflip=bool(opt.get("use_vflip", False)),
            rot=bool(opt.get("use_rot", False)),
            reverse=bool(opt.get("random_reverse", False)),
        )
        self.store = open_store(_dataroot(opt), opt.get("cache_mb", 0))
        self.sequences = _find(self.store, opt, "train")
        self.sizes = check_sizes(self.store, self.sequences)
        for sequence, (height, width) in zip(self.sequences, self.sizes, strict=True):
            self._check_usable(sequence, height, width)
        self.samples = [
            (i, start)
            for i, sequence in enumerate(self.sequences)
            for start in clip_starts(len(sequence.lq), self.num_frame)
        ]
        self._batches = 0
        self._in_worker = False

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """One batch; torch's loader calls this, so that the count of calls is the count of batches."""
        worker = get_worker_info()
        if worker is not None and not self._in_worker:
            _enter_worker(self.store, worker.num_workers)
            self._in_worker = True
            self._batches = 0  # the main process may have looked at some items
        seed, batch = torch.initial_seed(), self._batches
        if worker is not None:
            seed, batch = worker.seed - worker.id, batch * worker.num_workers + worker.id
        self._batches += 1
        return [
            self._sample(index, np.random.default_rng((seed % 2**64, batch, place)))
            for place, index in enumerate(indices)
        ]

    def _sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        number, start = self.samples[index]
        sequence = self.sequences[number]
        lq = sequence.lq[start : start + self.num_frame]
        assert sequence.gt is not None  # checked at construction
        gt = sequence.gt[start : start + self.num_frame][self.targets]
        plan = augment.draw(rng, *self.sizes[number], self.augment_options, sequence.name)
        return {
            "lq": self._crops(lq, plan),
            "gt": self._crops(gt, plan),
            "key": f"{sequence.name}/{lq[0].rpartition('/')[2]}",
        }

    def _crops(self, keys: Sequence[str], plan: augment.Augmentation) -> Tensor:
        regions = [self.store.read_crop(key, plan.top, plan.left, plan.side, plan.side) for key in keys]
        return to_tensor(augment.apply(plan, regions))

    def _check_usable(self, sequence: PairedSequence, height: int, width: int) -> None:
        if sequence.gt is None:
            raise CSDError(f"{sequence.name}: no clean frames to train on: leave the clip out (clips: a list file)")
        if len(sequence.lq) < self.num_frame:
            raise CSDError(
                f"{sequence.name}: {len(sequence.lq)} frames are fewer than num_frame {self.num_frame}: "
                f"leave the clip out (clips: a list file) or lower num_frame and num_target"
            )
        augment.draw(np.random.default_rng(0), height, width, self.augment_options, sequence.name)


class PairedVideoTestDataset(Dataset):
    """Every frame of every clip in order, each with its neighbours, reflected at the clip's ends.

    An item is a dict: lq (num_frame, 3, H, W) and, where there is truth, gt (3, H, W), float32 RGB in [0, 1];
    folder, the clip; idx, 'k/n', its number among the n frames of the clip that are asked for; lq_path, its key.
    `data_info` has folder, idx, lq_path and gt_path (None without truth) of all items, as BasicSR's video
    test datasets do.

    Options:
        dataroot (str): the data set, see `layout`: a folder, or an LMDB store of it.
        split (str): test (default), real, train.
        clips (str | list): list file or names of the clips to use. Default: all.
        num_frame (int): frames of a window, odd. Default: 7, enough for every SLDNet preset.
        frame_range (list): [first, last], counted from 1, both included: frames asked for; windows still see
            the others. Default: all.
        cache_mb (float): memory for decoded frames, so that neighbours are decoded once. Default: 128.

    Raises CSDError for data that does not fit together, at construction where headers tell.
    """

    def __init__(self, opt: Options) -> None:
        self.opt = opt  # where the toolbox looks the name of the set up
        self.num_frame = int(opt.get("num_frame", 7))
        self.store = open_store(_dataroot(opt), opt.get("cache_mb", 128))
        self.sequences = _find(self.store, opt, "test")
        check_sizes(self.store, self.sequences)
        self.samples: list[tuple[int, int]] = []
        self.data_info: dict[str, list[Any]] = {"lq_path": [], "gt_path": [], "folder": [], "idx": []}
        for i, sequence in enumerate(self.sequences):
            frames = _frame_range(opt.get("frame_range"), sequence)
            self.samples += [(i, frame) for frame in frames]
            self.data_info["lq_path"] += [sequence.lq[frame] for frame in frames]
            self.data_info["gt_path"] += [sequence.gt and sequence.gt[frame] for frame in frames]
            self.data_info["folder"] += [sequence.name] * len(frames)
            self.data_info["idx"] += [f"{k}/{len(frames)}" for k in range(len(frames))]
        reflect_indices(0, self.num_frame, 1)  # an even num_frame is an error now, not at the first item
        self._in_worker = False

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        worker = get_worker_info()
        if worker is not None and not self._in_worker:
            _enter_worker(self.store, worker.num_workers)
            self._in_worker = True
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


def to_tensor(frames: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))).float().div_(255)


def check_sizes(store: FrameStore, sequences: Sequence[PairedSequence]) -> list[tuple[int, int]]:
    """(height, width) of each sequence, from all frames' headers.

    Raises CSDError naming the first frame whose size is not that of its clip's first rainy frame.
    """
    sizes = []
    for sequence in tqdm(sequences, desc="sizes of frames", unit="clip", leave=False, delay=2, disable=None):
        size = store.shape(sequence.lq[0])
        for key in (*sequence.lq, *(sequence.gt or ())):
            height, width = store.shape(key)
            if (height, width) != size:
                raise CSDError(
                    f"{sequence.name}: {key} is {width}x{height}, but {sequence.lq[0]} is {size[1]}x{size[0]}: "
                    f"restore the frame in the clip's size, or leave the clip out (clips: a list file)"
                )
        sizes.append(size)
    return sizes


def _enter_worker(store: FrameStore, num_workers: int) -> None:
    # OpenCV's thread pool does not survive a fork, and workers are parallel already.
    cv2.setNumThreads(0)
    store.enter_worker(num_workers)


def _dataroot(opt: Options) -> str:
    if not opt.get("dataroot"):
        raise CSDError(f"dataset {opt.get('name', '')!r}: dataroot is missing: give the folder of the data set")
    return opt["dataroot"]


def _find(store: FrameStore, opt: Options, split: str) -> list[PairedSequence]:
    return find_sequences(store.keys(), opt.get("split") or split, clips=opt.get("clips"), root=store.root)


def _frame_range(asked: Sequence[int] | None, sequence: PairedSequence) -> range:
    if asked is None:
        return range(len(sequence.lq))
    first, last = asked
    if not 1 <= first <= last <= len(sequence.lq):
        raise CSDError(
            f"frame_range: [{first}, {last}] is not within {sequence.name}, which has frames 1 .. {len(sequence.lq)}"
        )
    return range(first - 1, last)

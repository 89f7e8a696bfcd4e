"""What the training data sets share: the clip of a sample, its crop, and its random generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from tqdm import tqdm

from csd_plugin.data import augment
from csd_plugin.data.datasets.options import TrainingOptions
from csd_plugin.data.datasets.order import Place, places
from csd_plugin.data.stores.interface import FrameStore
from csd_plugin.data.windows import clip_starts, target_slice
from csd_plugin.errors import CSDError
from csd_plugin.lifeline import outlive_endings, saves_on_ending
from csd_plugin.types import PairedSequence

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """One draw: N frames of `sequence` from `start` on, of `size` (height, width), to be cropped by `plan`.

    Size and plan are those of rainy frames. In super-resolution, the clean ones are larger.

    Attributes:
        rng: the sample's own generator, for further draws.
    """

    sequence: PairedSequence
    start: int
    size: tuple[int, int]
    plan: augment.Augmentation
    rng: np.random.Generator


class TrainingClips:
    """All runs of N consecutive frames of the given sequences, as samples.

    Randomness: every sample has its own generator, seeded by its `Place`: the seed of the run, the epoch, and the
    position in it. The toolbox's sampler gives places for our data sets (`compat`), so that neither workers and
    processes nor a resume change what is drawn. Other samplers give plain indices. Then the seed is (the loader's base
    seed, the batch number, the place in the batch, the index): torch draws the base seed from its global generator for
    each epoch, and batches are dealt to workers in turn, so a worker knows a batch's number from its own count. No two
    samples share a draw, also in processes with one seed, whose indices differ. The number of workers (1 or more) does
    not matter, with two exceptions: with persistent workers it does from the second epoch on, as a short last round
    leaves their counts unequal; and without workers, where torch gives no base seed, the draws differ (they are seeded
    by torch's initial seed).

    Args:
        opt: `TrainingOptions`, as the toolbox's dict. as_uint8 is for models that divide by 255 themselves.

    Raises:
        CSDError: sequences do not fit the options, as far as the frames' headers show.
    """

    def __init__(self, store: FrameStore, sequences: Sequence[PairedSequence], opt: Options) -> None:
        self.store, self.sequences = store, sequences
        options = TrainingOptions.of(opt)
        self.num_frame, self.num_target = options.num_frame, options.num_target
        self.targets, self.scale = target_slice(self.num_frame, self.num_target), options.scale
        if options.gt_size % self.scale:
            raise CSDError(f"gt_size {options.gt_size} is no multiple of the scale, {self.scale}: give one")
        low, high = options.scale_range
        self._augment_options = augment.AugmentOptions(
            crop=options.gt_size // self.scale,
            scale=(float(low), float(high)),
            hflip=options.use_hflip,
            vflip=options.use_vflip,
            rot=options.use_rot,
            reverse=options.random_reverse,
            truth=self.scale,
        )
        self.to_tensor: Callable[[np.ndarray], Tensor] = to_bytes if options.as_uint8 else to_tensor
        self.sizes = check_sizes(store, sequences, self.scale)
        for sequence, size in zip(sequences, self.sizes, strict=True):
            self._check_usable(sequence, *size)
        self._starts = [
            (i, start)
            for i, sequence in enumerate(sequences)
            for start in clip_starts(len(sequence.lq), self.num_frame)
        ]
        self._enter_worker = WorkerEntry(store)
        self._batches, self._counted_in_worker = 0, False

    def __len__(self) -> int:
        return len(self._starts)

    def align(self, grid: int) -> None:
        """Let crops begin only at multiples of `grid` pixels. Raises CSDError if the options do not allow it."""
        options = self._augment_options
        if options.scale != (1.0, 1.0):
            raise CSDError("stored features cannot be scaled: set scale_range: [1, 1]")
        if options.crop % grid:
            raise CSDError(
                f"crops of {options.crop} pixels: the stored features have one cell per {grid}: give a multiple"
            )
        self._augment_options = replace(options, grid=grid)

    def draw_batch(self, indices: Sequence[int | Place]) -> list[Sample]:
        """The samples of the next batch, for places or for plain indices; for the latter, calls count the batches."""
        worker = self._enter_worker()
        if isinstance(indices[0], Place):
            return [self._draw(place.item, place.generator()) for place in cast("Sequence[Place]", indices)]
        seed, batch = torch.initial_seed(), self._batches
        if worker is not None:
            if not self._counted_in_worker:
                self._batches, self._counted_in_worker = 0, True  # the main process may have read some items before
            seed, batch = worker.seed - worker.id, self._batches * worker.num_workers + worker.id
        self._batches += 1
        return [
            self._draw(index, np.random.default_rng((seed % 2**64, batch, place, index % len(self))))
            for place, index in enumerate(cast("Sequence[int]", indices))
        ]

    def _draw(self, index: int, rng: np.random.Generator) -> Sample:
        number, start = self._starts[index]
        sequence, size = self.sequences[number], self.sizes[number]
        return Sample(sequence, start, size, augment.draw(rng, *size, self._augment_options, sequence.name), rng)

    def _check_usable(self, sequence: PairedSequence, height: int, width: int) -> None:
        if sequence.gt is None:
            raise CSDError(f"{sequence.name}: no clean frames to train on: leave the clip out (clips: a list file)")
        if len(sequence.lq) < self.num_frame:
            raise CSDError(
                f"{sequence.name}: {len(sequence.lq)} frames are fewer than num_frame {self.num_frame}: "
                f"leave the clip out (clips: a list file) or lower num_frame and num_target"
            )
        augment.draw(np.random.default_rng(0), height, width, self._augment_options, sequence.name)


class TrainingDataset(Dataset):
    """The loader's interface to a data set whose items come from samples of `clips`; a subclass defines `item`.

    With a single target, an item's gt is that frame, without an axis for targets.
    """

    options_class: ClassVar[type[TrainingOptions]] = TrainingOptions

    opt: Options
    clips: TrainingClips

    def item(self, sample: Sample) -> dict[str, Any]:
        """The frames of a sample, cropped and augmented, as a dict of lq, gt and key."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def epoch_size(self) -> int:
        """Samples of an epoch over all processes."""
        return len(self) * TrainingOptions.of(self.opt).dataset_enlarge_ratio

    def places(self, *, epoch: int, rank: int = 0, world_size: int = 1) -> Iterator[Place]:
        """One process's share of an epoch of `dataset_enlarge_ratio` times all items, from where a resumed run stopped.

        Two keys of `opt` are set by the program: `manual_seed`, the run's seed, and `resumed_at`, the epoch and the
        number of its samples, over all processes, that were done before.
        """
        stopped_in, done = self.opt.get("resumed_at") or (None, 0)
        return places(
            len(self),
            seed=int(self.opt.get("manual_seed", torch.initial_seed())),
            epoch=epoch,
            count=self.epoch_size,
            shuffle=TrainingOptions.of(self.opt).use_shuffle,
            rank=rank,
            world_size=world_size,
            start=done if epoch == stopped_in else 0,
        )

    def __getitem__(self, index: int | Place) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int | Place]) -> list[dict[str, Any]]:
        """One batch; torch's loader calls this. Items at places also have their `position`, which a resume needs."""
        items = [self.item(sample) for sample in self.clips.draw_batch(indices)]
        for item, place in zip(items, indices, strict=True):
            if isinstance(place, Place):
                item["position"] = place.position
        if self.clips.num_target == 1:  # as in the toolbox, whose losses would broadcast an axis of length one
            items = [item | {"gt": item["gt"][0]} for item in items]
        return items


class WorkerEntry:
    """Prepares a loader's worker, once, for reading from a store. Returns the worker; None in the main process.

    Create it in the main process: spawned workers do not know how that process handles signals that end it.
    """

    def __init__(self, store: FrameStore) -> None:
        self._store = store
        self._outlives_endings = saves_on_ending.is_set()
        self._entered = False

    def __call__(self) -> Any:
        worker = get_worker_info()
        if worker is not None and not self._entered:
            # OpenCV's thread pool does not survive a fork, and workers are parallel already.
            cv2.setNumThreads(0)
            if self._outlives_endings:
                outlive_endings()
            self._store.enter_worker(worker.num_workers)
            self._entered = True
        return worker


def to_tensor(frames: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in [0, 1]."""
    return to_bytes(frames).float().div_(255)


def to_bytes(frames: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) -> uint8 (N, 3, H, W)."""
    planes = np.empty((len(frames), 3, *frames.shape[1:3]), np.uint8)
    for frame, channels in zip(frames, planes, strict=True):
        cv2.split(frame, list(channels))  # several times faster than copying the transposed array
    return torch.from_numpy(planes)


def check_sizes(store: FrameStore, sequences: Sequence[PairedSequence], scale: int = 1) -> list[tuple[int, int]]:
    """(height, width) of each sequence's rainy frames, from all frames' headers.

    Args:
        scale: how many times as high and wide clean frames must be.

    Raises:
        CSDError: names the first frame whose size does not follow from that of its clip's first rainy frame.
    """
    sizes = []
    for sequence in tqdm(sequences, desc="sizes of frames", unit="clip", leave=False, delay=2, disable=None):
        size = store.shape(sequence.lq[0])
        for keys, factor in ((sequence.lq, 1), (sequence.gt or (), scale)):
            expected = (size[0] * factor, size[1] * factor)
            for key in keys:
                height, width = store.shape(key)
                if (height, width) != expected:
                    larger = f" at scale {factor}" if factor > 1 else ""
                    raise CSDError(
                        f"{sequence.name}: {key} is {width}x{height}, but {sequence.lq[0]} is {size[1]}x{size[0]}"
                        f"{larger}: restore the frame at the clip's size, or leave the clip out (clips: a list file)"
                    )
        sizes.append(size)
    return sizes

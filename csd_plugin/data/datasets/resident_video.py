"""Training clips that are decoded once and kept, as bytes, on the training device: no loader in between."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from tqdm import tqdm

from csd_plugin.data import augment
from csd_plugin.data.datasets.field import option
from csd_plugin.data.datasets.options import TrainingOptions
from csd_plugin.data.datasets.order import Place
from csd_plugin.data.datasets.paired_video import PairedVideoDataset
from csd_plugin.data.datasets.training_clips import Options, WorkerEntry
from csd_plugin.data.stores.interface import FrameStore
from csd_plugin.devices import pick_device
from csd_plugin.errors import CSDError

_OF_LOADERS = ("num_worker_per_gpu", "persistent_workers", "pin_memory", "prefetch_mode", "cache_mb", "as_uint8")
_FRAMES_PER_WORKER = 100
"""Frames per process: for fewer, starting another process would take longer."""


@dataclass(frozen=True, kw_only=True)
class ResidentVideoOptions(TrainingOptions):
    """The options of `ResidentVideoDataset`."""

    device: str = option(
        "auto",
        "where all decoded frames are kept and cropped: `cpu`, `cuda`, `cuda:1`; `auto` is a GPU if there is one; "
        "needs `num_worker_per_gpu: 0`, without `persistent_workers`, `pin_memory`, `prefetch_mode`, `cache_mb` and "
        "`as_uint8`",
    )


class ResidentVideoDataset(PairedVideoDataset):
    """`PairedVideoDataset` for a GPU that loaders cannot keep busy: the device holds all frames and makes the crops.

    Frames are decoded at the first batch, by several processes that then end, and take their pixels' bytes of memory:
    0.9 MB for a frame of 640x480; truth that several rainy clips share is kept once. Items are those of
    `PairedVideoDataset` with the same draws, on the device; scaled crops are equal to within one grey level.

    Args:
        opt: `ResidentVideoOptions`; cache_mb and as_uint8 cannot be used here.

    Raises:
        CSDError: also for options of loaders, which cannot be used with it, for a device that is not available, and at
            the first batch if the device has too little memory.
    """

    options_class: ClassVar[type[ResidentVideoOptions]] = ResidentVideoOptions

    def __init__(self, opt: Options) -> None:
        given = [key for key in _OF_LOADERS if opt.get(key)]
        if given:
            raise CSDError(
                f"ResidentVideoDataset keeps its frames on the training device; {', '.join(given)} cannot be used "
                f"with it: set num_worker_per_gpu to 0, and leave {', '.join(_OF_LOADERS[1:])} out"
            )
        super().__init__({**opt, "cache_mb": 0})
        self._device = pick_device(str(self.options_class.of(opt).device))
        self._frames: dict[str, Tensor] = {}

    def __getitems__(self, indices: Sequence[int | Place]) -> list[dict[str, Any]]:
        if get_worker_info() is not None:
            raise CSDError("ResidentVideoDataset works only in the training process: set num_worker_per_gpu to 0")
        if not self._frames:
            self._frames = self._decode_all()
        return super().__getitems__(indices)

    def _crops(self, keys: Sequence[str], plan: augment.Augmentation) -> Tensor:
        rows, columns = slice(plan.top, plan.top + plan.side), slice(plan.left, plan.left + plan.side)
        return augment.apply_to_tensor(plan, torch.stack([self._frames[key][rows, columns] for key in keys]))

    def _decode_all(self) -> dict[str, Tensor]:
        """Key -> frame, uint8 (H, W, 3) on the device; memory for all is allocated first."""
        sizes: dict[str, tuple[int, int]] = {}
        for sequence, (height, width) in zip(self.sequences, self.clips.sizes, strict=True):
            scale = self.clips.scale
            sizes |= dict.fromkeys(sequence.lq, (height, width))
            sizes |= dict.fromkeys(sequence.gt or (), (height * scale, width * scale))
        try:
            frames = {key: torch.empty(*size, 3, dtype=torch.uint8, device=self._device) for key, size in sizes.items()}
        except RuntimeError as error:  # includes torch.OutOfMemoryError; the CPU allocator raises RuntimeError itself
            total = sum(height * width * 3 for height, width in sizes.values())
            raise CSDError(
                f"ResidentVideoDataset: {self._device} has no room for all frames ({total / 2**30:.1f} GiB): use "
                f"PairedVideoDataset, or fewer clips (clips: a list file)"
            ) from error
        for frame, decoded in zip(frames.values(), _decoded(self.store, list(frames)), strict=True):
            frame.copy_(decoded)
        return frames


class _Frames(Dataset):
    """Whole frames by their index in a list of keys, uint8 (H, W, 3)."""

    def __init__(self, store: FrameStore, keys: Sequence[str]) -> None:
        self._store, self._keys = store, keys
        self._enter_worker = WorkerEntry(store)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Tensor:
        self._enter_worker()
        return torch.from_numpy(self._store.read(self._keys[index]).copy())


def _decoded(store: FrameStore, keys: Sequence[str]) -> tqdm[Tensor]:
    """The frames in order, with a progress bar. The state of torch's random generator does not change."""
    workers = min(os.cpu_count() or 1, 8, len(keys) // _FRAMES_PER_WORKER)
    generator = torch.Generator()  # not the global one, from which the training draws
    loader = DataLoader(_Frames(store, keys), batch_size=None, num_workers=workers, generator=generator)
    return tqdm(loader, desc="decoding clips", unit="frame", leave=False, delay=2, disable=None)

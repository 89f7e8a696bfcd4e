"""The order of training samples under MMEngine's loops."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from csd_plugin.data.datasets.order import Place


class ClipSampler(Sampler[Place]):
    """Gives places instead of indices, for our training data sets: one epoch, or epoch after epoch, endlessly.

    A sample's draws depend only on the seed and its place, not on workers, processes or a resume: the same run under
    BasicSR, with its `manual_seed`, has the same samples.

    Args:
        dataset: one of our training data sets.
        seed: by default the Runner's.

    Attributes:
        ends: after one epoch, as `EpochBasedTrainLoop` needs it; `DistillHook` sets it.
    """

    def __init__(self, dataset: Any, seed: int | None = None) -> None:
        self._dataset = dataset
        dataset.opt["manual_seed"] = seed or 0
        self._rank, self._world_size = get_dist_info()
        self._epoch, self.ends = 0, False

    def __iter__(self) -> Iterator[Place]:
        for epoch in (self._epoch,) if self.ends else itertools.count():
            yield from self._dataset.places(epoch=epoch, rank=self._rank, world_size=self._world_size)

    def __len__(self) -> int:
        """Samples of this process in a whole epoch."""
        return int(self._dataset.epoch_size) // self._world_size

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration gives, if it `ends`."""
        self._epoch = epoch

    def resume_at(self, epoch: int, batches: int, batch_size: int) -> None:
        """Begin this epoch after so many batches, which were done before."""
        self._dataset.opt["resumed_at"] = (epoch, batches * batch_size * self._world_size)

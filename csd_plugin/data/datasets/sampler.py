"""The order of training samples under other loops than BasicSR's: MMEngine's, and people's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from torch import distributed
from torch.utils.data import Sampler

from csd_plugin.data.datasets.order import Place


class ClipSampler(Sampler[Place]):
    """Gives places instead of indices, for our training data sets: one epoch, or epoch after epoch, endlessly.

    A sample's draws depend only on the seed and its place, not on workers, processes or a resume: the same run under
    BasicSR, with its `manual_seed`, has the same samples. Loaders have to leave out incomplete batches (`drop_last`)
    for a resumed epoch to have the same ones.

    Args:
        dataset: one of our training data sets.
        seed: of the run; MMEngine gives its own.
        ends: after one epoch, as loops over epochs need it.
        rank, world_size: the process and the number of processes; by default those of torch.distributed. 0 and 1 where
            the loop itself deals the batches out, as Accelerate does.
    """

    def __init__(
        self,
        dataset: Any,
        seed: int | None = None,
        *,
        ends: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        several = distributed.is_available() and distributed.is_initialized()
        self._dataset = dataset
        dataset.opt["manual_seed"] = seed or 0
        self._rank = rank if rank is not None else distributed.get_rank() if several else 0
        self._world_size = world_size if world_size is not None else distributed.get_world_size() if several else 1
        self._epoch, self.ends = 0, ends

    def __iter__(self) -> Iterator[Place]:
        for epoch in (self._epoch,) if self.ends else itertools.count():
            yield from self._dataset.places(epoch=epoch, rank=self._rank, world_size=self._world_size)

    def __len__(self) -> int:
        """Samples of this process in a whole epoch."""
        return int(self._dataset.epoch_size) // self._world_size

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration gives, if it `ends`; counted from 0."""
        self._epoch = epoch

    def resume_at(self, epoch: int, batches: int, batch_size: int) -> None:
        """Begin this epoch after so many batches, which were done before."""
        self._dataset.opt["resumed_at"] = (epoch, batches * batch_size * self._world_size)

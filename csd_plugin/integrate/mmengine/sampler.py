"""The order of training samples under MMEngine's loops."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from csd_plugin.data.datasets.order import Place


class ClipSampler(Sampler[Place]):
    """Gives places instead of indices, for our training data sets: epoch after epoch, endlessly.

    A sample's draws depend only on the seed and its place, not on workers or processes: the same run under BasicSR,
    with its `manual_seed`, has the same samples. For `IterBasedTrainLoop`.

    Args:
        dataset: one of our training data sets.
        seed: by default the Runner's.
    """

    def __init__(self, dataset: Any, seed: int | None = None) -> None:
        self._dataset = dataset
        dataset.opt["manual_seed"] = seed or 0
        self._rank, self._world_size = get_dist_info()

    def __iter__(self) -> Iterator[Place]:
        for epoch in itertools.count():
            yield from self._dataset.places(epoch=epoch, rank=self._rank, world_size=self._world_size)

    def __len__(self) -> int:
        """Items of the data set."""
        return len(self._dataset)

    def set_epoch(self, epoch: int) -> None:
        """Does nothing, as the order has no end."""

"""The order of training samples: what is drawn depends on the seed, the epoch and the place in it, on nothing else.

So it does not matter how many workers or processes share the work, nor whether a run was resumed on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Place(NamedTuple):
    """Where a sample stands in a run.

    Attributes:
        seed: of the run.
        epoch: from 0.
        position: in the epoch, over all processes.
        item: of the data set.
    """

    seed: int
    epoch: int
    position: int
    item: int

    def generator(self) -> np.random.Generator:
        """The sample's own random numbers."""
        return np.random.default_rng((self.seed % 2**64, self.epoch, self.position))


def places(
    length: int,
    *,
    seed: int,
    epoch: int,
    count: int,
    shuffle: bool = True,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
) -> Iterator[Place]:
    """One process's share of an epoch, in order; all shares are of one length.

    What cannot be shared evenly at the end is left out. Loaders leave out what is no whole batch, so an epoch has the
    same batches, over all processes, as that of one process with their batches together.

    Args:
        length: items of the data set.
        count: samples of the epoch, of all processes: each item count / length times.
        shuffle: in a random order, another in each epoch; else from the first item to the last, again and again.
        start: positions that are done already, by however many processes.
    """
    order = np.random.default_rng((seed % 2**64, epoch)).permutation(count) if shuffle else range(count)
    rounds = max(count - start, 0) // world_size
    for position in range(start + rank, start + rounds * world_size, world_size):
        yield Place(seed, epoch, position, int(order[position]) % length)

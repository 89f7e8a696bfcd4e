"""The order of training samples: a draw depends only on the seed, the epoch and the position in it.

So neither the number of workers or processes that share the work matters, nor whether the run was resumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Place(NamedTuple):
    """The place of a sample in a run.

    Attributes:
        seed: the run's.
        epoch: counted from 0.
        position: in the epoch, over all processes.
        item: its index in the data set.
    """

    seed: int
    epoch: int
    position: int
    item: int

    def generator(self) -> np.random.Generator:
        """The sample's own random generator."""
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
    """One process's share of an epoch, in order; all shares have the same length.

    The rest that cannot be shared evenly at the end is left out. Loaders leave out incomplete batches, so the batches
    of an epoch, joined over all processes, are those of one process with the larger batch.

    Args:
        length: items of the data set.
        count: samples of the epoch over all processes; each item is used count / length times.
        shuffle: a random order, a different one in each epoch; else from the first item to the last, repeatedly.
        start: positions that are done already, over all processes.
    """
    order = np.random.default_rng((seed % 2**64, epoch)).permutation(count) if shuffle else range(count)
    rounds = max(count - start, 0) // world_size
    for position in range(start + rank, start + rounds * world_size, world_size):
        yield Place(seed, epoch, position, int(order[position]) % length)

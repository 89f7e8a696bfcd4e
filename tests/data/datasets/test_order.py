"""The order of samples: each as often as it should be, shared by processes, whole after a cut."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csd_plugin.data.datasets.order import Place, places


@pytest.mark.parametrize(("length", "ratio"), [(1, 1), (7, 1), (7, 5), (10, 3)])
def test_every_item_comes_as_often_as_asked_for(length, ratio):
    epoch = list(places(length, seed=3, epoch=2, count=length * ratio))
    assert Counter(place.item for place in epoch) == dict.fromkeys(range(length), ratio)
    assert [place.position for place in epoch] == list(range(length * ratio))


def test_an_order_that_is_not_shuffled_is_that_of_the_items():
    """In every epoch, shared by processes, and from where a run was cut; draws differ by epoch all the same."""
    for epoch in (0, 1):
        whole = list(places(3, seed=1, epoch=epoch, count=6, shuffle=False))
        assert [place.item for place in whole] == [0, 1, 2, 0, 1, 2]
        assert [place.position for place in whole] == list(range(6))
        assert {(place.seed, place.epoch) for place in whole} == {(1, epoch)}
        parts = [places(3, seed=1, epoch=epoch, count=6, shuffle=False, rank=r, world_size=2, start=2) for r in (0, 1)]
        assert sorted(itertools.chain(*parts), key=lambda place: place.position) == whole[2:]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_processes_share_one_order(world_size):
    whole = list(places(7, seed=1, epoch=0, count=14))
    shares = [list(places(7, seed=1, epoch=0, count=14, rank=r, world_size=world_size)) for r in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    together = sorted((place for share in shares for place in share), key=lambda place: place.position)
    assert together == whole[: 14 // world_size * world_size]


@given(count=st.integers(1, 60), world_size=st.integers(1, 5), batch=st.integers(1, 6), start=st.integers(0, 60))
def test_batches_are_those_of_one_process(count, world_size, batch, start):
    """Whatever the sizes, also from where any other number of processes has stopped."""

    def batches(size, rank=0, world_size=1):
        share = list(places(7, seed=0, epoch=0, count=count, rank=rank, world_size=world_size, start=start))
        return [share[i : i + size] for i in range(0, len(share) - size + 1, size)]  # as drop_last has it

    shares = [batches(batch, rank, world_size) for rank in range(world_size)]
    together = [sorted(itertools.chain(*parts)) for parts in zip(*shares, strict=True)]
    assert together == [sorted(part) for part in batches(batch * world_size)]


@pytest.mark.parametrize("done", [0, 4, 14, 16])
def test_what_is_done_is_left_out(done):
    for rank in range(2):
        whole = list(places(7, seed=1, epoch=4, count=14, rank=rank, world_size=2))
        rest = list(places(7, seed=1, epoch=4, count=14, rank=rank, world_size=2, start=done))
        assert rest == whole[done // 2 :]


def test_orders_and_draws_differ_by_seed_epoch_and_position():
    orders = {tuple(p.item for p in places(20, seed=s, epoch=e, count=20)) for s in (0, 1) for e in (0, 1)}
    assert len(orders) == 4
    draws = {float(Place(s, e, p, 0).generator().random()) for s in (0, 1, -1) for e in (0, 1) for p in (0, 1)}
    assert len(draws) == 12
    assert Place(0, 1, 2, 3).generator().random() == np.random.default_rng((0, 1, 2)).random()

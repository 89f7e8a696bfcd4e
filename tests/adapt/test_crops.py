"""Batches: the share of other pairs, and that each is the same whenever it is asked for."""

from __future__ import annotations

import itertools
import shutil

import pytest
import torch

from csd_plugin.adapt.batches import TARGETS, Batches, _ended, other_pairs
from csd_plugin.data.datasets.rendered_rain import RenderedRainDataset
from csd_plugin.data.windows import reflect_indices


class Numbers:
    """Items that show which data set they are of."""

    def __init__(self, value):
        self.value = value

    def __len__(self):
        return 5

    def __getitems__(self, drawn):
        return [
            {"lq": torch.full((TARGETS,), self.value), "gt": torch.tensor([place.epoch, place.item])} for place in drawn
        ]


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.3, 1.0])
def test_the_share_of_other_pairs_is_kept_in_the_long_run(keep):
    batches = Batches(Numbers(0.0), Numbers(1.0), keep=keep, clips=3, seed=0)
    seen = torch.cat([batch.rainy for batch in itertools.islice(batches.since(0), 100)])
    assert len(seen) == 300 and seen[:, 0].sum() == pytest.approx(300 * keep, abs=1)


def test_every_sample_comes_once_in_an_epoch():
    batches = Batches(Numbers(0.0), None, keep=0.3, clips=3, seed=0)
    drawn = torch.cat([batch.clean for batch in itertools.islice(batches.since(0), 5)]).tolist()
    assert sorted(map(tuple, drawn)) == [(epoch, item) for epoch in range(3) for item in range(5)]


def test_an_interrupted_run_has_the_batches_that_it_would_have_had():
    batches = Batches(Numbers(0.0), Numbers(1.0), keep=0.3, clips=3, seed=0)
    through = list(itertools.islice(batches.since(0), 9))
    resumed = list(itertools.islice(Batches(Numbers(0.0), Numbers(1.0), keep=0.3, clips=3, seed=0).since(4), 5))
    for one, other in zip(through[4:], resumed, strict=True):
        assert torch.equal(one.rainy, other.rainy) and torch.equal(one.clean, other.clean)


def test_now_and_then_a_clip_ends_with_its_last_target():
    """As at the end of a video, whose frames are reflected; reversed clips begin so."""
    frames = torch.arange(7.0).view(7, 1, 1, 1)  # windows of 5 frames: the targets are 2, 3 and 4
    assert _ended(frames).flatten().tolist() == [0, 1, 2, 3, 4, 3, 2]
    assert _ended(frames)[2:].flatten().tolist() == reflect_indices(4, 5, 5)  # what inference does
    assert torch.equal(_ended(frames[:3]), frames[:3])  # a network of single frames


class Counted(Numbers):
    """Clips of seven frames, each frame its number."""

    def __getitems__(self, drawn):
        return [{"lq": torch.arange(7.0), "gt": torch.zeros(TARGETS)} for _ in drawn]


@pytest.mark.parametrize("clips", [1, 3, 8])
def test_one_clip_in_eight_ends_whatever_the_size_of_batches(clips):
    batches = Batches(Counted(0.0), None, keep=0.0, clips=clips, seed=0)
    seen = torch.cat([batch.rainy for batch in itertools.islice(batches.since(0), 240 // clips)])
    ended = (seen == torch.tensor([0.0, 1, 2, 3, 4, 3, 2])).all(dim=1)
    assert ended.nonzero().flatten().tolist() == list(range(0, 240, 8))
    assert (seen[~ended] == torch.arange(7.0)).all()


def test_pairs_and_clean_clips_are_told_apart_by_their_names(tiny_rain, tmp_path):
    paired = other_pairs(tiny_rain, num_frame=3, crop=16)
    assert not isinstance(paired, RenderedRainDataset)
    shutil.copytree(next(tiny_rain.glob("*/t1_GT")), tmp_path / "walk")
    rendered = other_pairs(tmp_path, num_frame=3, crop=16)
    assert isinstance(rendered, RenderedRainDataset)
    for dataset in (paired, rendered):
        assert dataset[0]["lq"].shape == (TARGETS + 2, 3, 16, 16)

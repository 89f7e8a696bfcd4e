"""Training samples in loops of one's own: the same ones for any number of workers and processes, resumed or not."""

from __future__ import annotations

import pytest
import torch
from synthetic import write_ntu_rain
from torch.utils.data import DataLoader

from csd_plugin.data.datasets.paired_video import PairedVideoDataset
from csd_plugin.data.datasets.sampler import ClipSampler

OPTIONS = {"num_frame": 7, "num_target": 3, "gt_size": 16, "use_hflip": True, "dataset_enlarge_ratio": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_ntu_rain(tmp_path_factory.mktemp("NTURain"))


def epochs(root, *numbers, batch_size=2, workers=0, resumed=None, seed=3, **process):
    """The batches of these epochs, by a loop that may have been stopped in one."""
    clips = PairedVideoDataset({**OPTIONS, "dataroot": str(root)})
    sampler = ClipSampler(clips, seed, ends=True, **process)
    if resumed:
        sampler.resume_at(*resumed, batch_size)
    loader = DataLoader(clips, batch_size, sampler=sampler, num_workers=workers, drop_last=True)
    batches = []
    for epoch in numbers:
        sampler.set_epoch(epoch)
        batches += list(loader)
    return batches


def are_equal(batches, others):
    pairs = zip(batches, others, strict=True)
    return all(torch.equal(a["lq"], b["lq"]) and torch.equal(a["gt"], b["gt"]) for a, b in pairs)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_is_resumed_goes_on_with_the_same_samples(root, workers):
    whole = epochs(root, 0, 1)
    assert len(whole) > 6 and not are_equal(whole[:3], whole[len(whole) // 2 :][:3])
    assert are_equal(whole[2:], epochs(root, 0, 1, workers=workers, resumed=(0, 2)))
    assert are_equal(whole[len(whole) // 2 + 1 :], epochs(root, 1, workers=workers, resumed=(1, 1)))
    assert not are_equal(whole[:1], epochs(root, 0, seed=4)[:1])


def test_processes_share_the_batches_of_one(root):
    alone = epochs(root, 0, batch_size=4)
    shares = [epochs(root, 0, rank=rank, world_size=2) for rank in (0, 1)]
    for whole, *parts in zip(alone, *shares, strict=True):
        joined = torch.stack([part["lq"] for part in parts], dim=1).flatten(0, 1)  # they take turns
        assert torch.equal(whole["lq"], joined)

"""Clips kept decoded on the device: the same samples as through the store, without it after the first batch."""

from __future__ import annotations

import pytest
import torch
from synthetic import write_ntu_rain
from torch.utils.data import DataLoader

from csd_plugin.data.datasets import resident_video
from csd_plugin.data.datasets.paired_video import PairedVideoDataset
from csd_plugin.data.datasets.resident_video import ResidentVideoDataset
from csd_plugin.errors import CSDError

SMALL = {"num_frame": 7, "num_target": 3, "gt_size": 21, "device": "cpu"}
TURNED = {**SMALL, "use_vflip": True, "use_rot": True, "random_reverse": True}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_ntu_rain(tmp_path_factory.mktemp("NTURain"))


def epoch(dataset):
    torch.manual_seed(1)
    return list(DataLoader(dataset, batch_size=4, shuffle=True))


@pytest.mark.parametrize(
    "options, apart", [(SMALL, 0), (TURNED, 0), ({**TURNED, "scale_range": [0.6, 2.0]}, 1.001 / 255)]
)
def test_samples_are_those_of_the_store(root, options, apart):
    ours, plain = (epoch(cls({"dataroot": root, **options})) for cls in (ResidentVideoDataset, PairedVideoDataset))
    assert len(ours) == len(plain) > 0
    for a, b in zip(ours, plain, strict=True):
        assert a["key"] == b["key"]
        for name in ("lq", "gt"):
            assert a[name].shape == b[name].shape and a[name].dtype == torch.float32
            assert (a[name] - b[name]).abs().max() <= apart
            levels = a[name] * 255
            assert torch.allclose(levels, levels.round(), atol=1e-3)


def test_every_frame_is_read_once_and_shared_truth_is_kept_once(root, monkeypatch):
    dataset = ResidentVideoDataset({"dataroot": root, **SMALL})
    read = []
    monkeypatch.setattr(dataset.store, "read", lambda key, really=dataset.store.read: read.append(key) or really(key))
    for _ in range(2):
        epoch(dataset)
    keys = {key for sequence in dataset.sequences for key in (*sequence.lq, *sequence.gt)}
    assert sorted(read) == sorted(keys)
    assert len(dataset.sequences) == 3 and dataset._frames.keys() == keys  # of three rainy clips two share a scene


def test_processes_decode_the_same(root, monkeypatch):
    plain = epoch(ResidentVideoDataset({"dataroot": root, **SMALL}))
    monkeypatch.setattr(resident_video, "_FRAMES_PER_WORKER", 20)
    for a, b in zip(plain, epoch(ResidentVideoDataset({"dataroot": root, **SMALL})), strict=True):
        assert torch.equal(a["lq"], b["lq"]) and torch.equal(a["gt"], b["gt"])


@pytest.mark.parametrize(
    "change",
    [
        {"num_worker_per_gpu": 1, "persistent_workers": True},
        {"pin_memory": True},
        {"cache_mb": 100},
        {"as_uint8": True},
    ],
)
def test_options_of_loaders_cannot_serve_it(root, change):
    with pytest.raises(CSDError, match=f"{', '.join(change)} cannot be used with it: set num_worker_per_gpu to 0"):
        ResidentVideoDataset({"dataroot": root, **SMALL, **change})


def test_a_worker_is_told(root):
    with pytest.raises(CSDError, match="num_worker_per_gpu to 0"):
        next(iter(DataLoader(ResidentVideoDataset({"dataroot": root, **SMALL}), num_workers=1)))


@pytest.mark.parametrize(
    "device, message", [("cuda:99", "device 'cuda:99' cannot be used"), ("cudda", "device 'cudda' is unknown")]
)
def test_a_device_that_is_not_there(root, device, message):
    with pytest.raises(CSDError, match=message):
        ResidentVideoDataset({"dataroot": root, **SMALL, "device": device})[0]


def test_a_device_that_is_too_small(root, monkeypatch):
    def full(*shape, empty=torch.empty, **how):
        if how.get("dtype") == torch.uint8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(*shape, **how)

    dataset = ResidentVideoDataset({"dataroot": root, **SMALL})
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(CSDError, match=r"no room for all frames \(.* GiB\)"):
        dataset[0]

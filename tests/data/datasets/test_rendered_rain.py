"""Clean clips with rain rendered as they are read."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from synthetic import TEST, TRAIN, moving_scene, write_image, write_ntu_rain
from torch.utils.data import DataLoader

from csd_plugin.data.datasets.rendered_rain import RenderedRainDataset, through_jpeg
from csd_plugin.data.layout import find_clean_clips
from csd_plugin.data.rain import RainRenderer, ambient_light
from csd_plugin.errors import CSDError

SMALL = {"num_frame": 5, "num_target": 3, "gt_size": 24, "rain": "heavy"}
AUGMENTED = {**SMALL, "scale_range": [0.6, 2.0], "use_vflip": True, "use_rot": True, "random_reverse": True}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("clean")
    for seed, clip in enumerate(("walk", "park/street")):
        for i, frame in enumerate(moving_scene(8, 48, 64, seed)):
            write_image(root / clip / f"{i}.png", frame)
    return root


def epoch(dataset, seed=1, **loader):
    torch.manual_seed(seed)
    return list(DataLoader(dataset, batch_size=3, **loader))


def same(batches, others):
    assert len(batches) == len(others) > 0
    return all(
        a["key"] == b["key"] and torch.equal(a["lq"], b["lq"]) and torch.equal(a["gt"], b["gt"])
        for a, b in zip(batches, others, strict=True)
    )


def test_items(root):
    dataset = RenderedRainDataset({"dataroot": root, **SMALL})
    assert [sequence.name for sequence in dataset.sequences] == ["park/street", "walk"]
    assert len(dataset) == 2 * (8 - 5 + 1)
    item = dataset[5]
    assert item["key"] == "walk/1.png"
    assert item["lq"].shape == (5, 3, 24, 24) and item["gt"].shape == (3, 3, 24, 24)
    rain = item["lq"][1:4] - item["gt"]
    assert rain.max() > 0.02 and rain.mean() > 0


def test_crops_are_those_of_whole_frames_with_rain(root, monkeypatch):
    """The slow way: whole frames, rained on, and the truth is where the clean crop is found."""
    renderers = []

    class Watched(RainRenderer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            renderers.append(self)

    monkeypatch.setattr("csd_plugin.data.datasets.rendered_rain.RainRenderer", Watched)
    dataset = RenderedRainDataset({"dataroot": root, **SMALL, "use_hflip": False})
    item = dataset[4 + 2]
    clean = moving_scene(8, 48, 64, 0)
    lq, gt = ((item[name] * 255).round().byte().permute(0, 2, 3, 1).numpy() for name in ("lq", "gt"))
    ((top, left),) = [
        (top, left)
        for top in range(48 - 24 + 1)
        for left in range(64 - 24 + 1)
        if np.array_equal(gt[0], clean[3][top : top + 24, left : left + 24])
    ]
    (rain,) = renderers
    assert (rain._drop_light == np.float32(ambient_light(clean[0])) * np.float32(rain.params.brightness)).all()
    for t in range(5):
        assert np.array_equal(lq[t], rain.render(clean[2 + t], t)[top : top + 24, left : left + 24])


def test_new_rain_in_every_sample_and_epoch_by_seed(root):
    dataset = RenderedRainDataset({"dataroot": root, **AUGMENTED})
    first, second = epoch(dataset), list(DataLoader(dataset, batch_size=3))
    assert not same(first, second)
    assert same(first, epoch(RenderedRainDataset({"dataroot": root, **AUGMENTED})))
    items = epoch(RenderedRainDataset({"dataroot": root, **SMALL}), sampler=[3] * 6)
    assert len({lq.numpy().tobytes() for batch in items for lq in batch["lq"]}) == 6


def test_the_number_of_workers_does_not_matter(root):
    dataset = RenderedRainDataset({"dataroot": root, **AUGMENTED, "quality": [60, 95]})
    assert same(epoch(dataset, num_workers=1), epoch(dataset, num_workers=2))


def test_clips_run_backwards_but_rain_does_not(root, monkeypatch):
    monkeypatch.setattr(RainRenderer, "render", lambda self, frame, t, top=0, left=0: np.full_like(frame, t))
    dataset = RenderedRainDataset({"dataroot": root, **SMALL, "use_hflip": False, "random_reverse": True})
    directions = set()
    for _ in range(20):
        item = dataset[4]
        assert [round(float(frame.mean() * 255)) for frame in item["lq"]] == [0, 1, 2, 3, 4]
        one, two = item["gt"][:2]  # the scene moves one pixel a frame
        directions.add((torch.equal(two[..., :-1], one[..., 1:]), torch.equal(one[..., :-1], two[..., 1:])))
    assert directions == {(True, False), (False, True)}


def test_jpeg_blocks_lie_where_they_would_in_the_whole_frame(root, monkeypatch):
    monkeypatch.setattr(RainRenderer, "render", lambda self, frame, t, top=0, left=0: frame.copy())
    dataset = RenderedRainDataset({"dataroot": root, **SMALL, "use_hflip": False, "quality": [60, 60]})
    clean = moving_scene(8, 48, 64, 0)
    for _ in range(5):
        item = dataset[4]
        lq, gt = ((item[name] * 255).round().byte().permute(0, 2, 3, 1).numpy() for name in ("lq", "gt"))
        (place,) = [
            np.s_[top : top + 24, left : left + 24]
            for top in range(25)
            for left in range(41)
            if np.array_equal(gt[0], clean[1][top : top + 24, left : left + 24])
        ]
        expected = through_jpeg(clean[0], 60)[place]
        inner = np.s_[2:-2, 2:-2]  # colour is interpolated over the border of what is decoded
        assert np.array_equal(lq[0][inner], expected[inner])
        assert not np.array_equal(lq[0], clean[0][place])


def test_quality_changes_the_rainy_frames_alone(root):
    plain, stored = (
        epoch(RenderedRainDataset({"dataroot": root, **SMALL, **more})) for more in ({}, {"quality": [50, 50]})
    )
    for a, b in zip(plain, stored, strict=True):
        assert torch.equal(a["gt"], b["gt"])
        assert 0 < (a["lq"] - b["lq"]).abs().mean() < 0.05


def test_of_nturains_layout_only_the_splits_truth(tmp_path):
    write_ntu_rain(tmp_path, frames=5)
    names = [sequence.name for sequence in RenderedRainDataset({"dataroot": tmp_path, **SMALL}).sequences]
    assert names == [f"{TRAIN}/t1_GT", f"{TRAIN}/t2_GT"]
    chosen = RenderedRainDataset({"dataroot": tmp_path / TEST, **SMALL, "split": "test", "clips": ["a1"]})
    assert [sequence.name for sequence in chosen.sequences] == ["a1_GT"]


def test_clips_by_path_and_by_name():
    keys = ["x/walk/1.png", "x/run/1.png", "y/10/1.png", "y/9/1.png", "y/9/2.png", "y/9/10.png"]
    names = [sequence.name for sequence in find_clean_clips(keys)]
    assert names == ["x/run", "x/walk", "y/9", "y/10"]
    (chosen,) = find_clean_clips(keys, clips=["y/9"])
    assert chosen.lq == chosen.gt == ("y/9/1.png", "y/9/2.png", "y/9/10.png")
    assert [sequence.name for sequence in find_clean_clips(keys, clips=["walk"])] == ["x/walk"]
    assert [sequence.name for sequence in find_clean_clips(["1.png", "2.png"], root="some/walk")] == ["walk"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rain": "nturian"}, "did you mean nturain"),
        ({"quality": [90, 60]}, r"quality: \[90, 60\] must be two ascending JPEG qualities"),
        ({"quality": [0, 60]}, r"quality: \[0, 60\]"),
        ({"clips": ["wolk"]}, "no clip 'wolk': did you mean 'walk'"),
        ({"num_frame": 9}, "park/street: 8 frames are fewer than num_frame 9"),
        ({"gt_size": 49}, "park/street: frames of 64x48 are too small for gt_size 49"),
        ({"split": "valid"}, "split: 'valid' is unknown"),
        ({"dataroot": None}, "dataroot is missing"),
    ],
)
def test_what_does_not_fit(root, change, message):
    with pytest.raises(CSDError, match=message) as error:
        RenderedRainDataset({"dataroot": root, **SMALL, **change})
    assert "\n" not in str(error.value)


def test_no_clean_clips(tmp_path):
    write_image(tmp_path / "a_Rain" / "1.png", moving_scene(1, 24, 24, 0)[0])
    with pytest.raises(CSDError, match="no clean clips: give a folder of folders of images"):
        RenderedRainDataset({"dataroot": tmp_path, **SMALL})


def test_can_be_pickled(root):
    dataset = RenderedRainDataset({"dataroot": root, **SMALL})
    dataset[0]
    assert pickle.loads(pickle.dumps(dataset))[3]["lq"].shape == (5, 3, 24, 24)

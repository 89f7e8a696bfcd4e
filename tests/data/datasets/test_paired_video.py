import logging
import pickle
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from synthetic import TEST, TRAIN, moving_scene, rain_on, write_image, write_ntu_rain
from torch.utils.data import DataLoader

from csd_plugin.data.datasets import training_clips
from csd_plugin.data.datasets.paired_video import PairedVideoDataset, PairedVideoTestDataset
from csd_plugin.data.datasets.rendered_rain import RenderedRainDataset
from csd_plugin.data.datasets.resident_video import ResidentVideoDataset
from csd_plugin.data.features import write_features
from csd_plugin.data.layout import find_sequences
from csd_plugin.data.stores import open_store
from csd_plugin.errors import CSDError

SMALL = {"num_frame": 7, "num_target": 3, "gt_size": 21}
AUGMENTED = {**SMALL, "scale_range": [0.6, 2.0], "use_vflip": True, "use_rot": True, "random_reverse": True}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_ntu_rain(tmp_path_factory.mktemp("NTURain"))


@pytest.fixture
def mutable(tmp_path):
    return write_ntu_rain(tmp_path, frames=9)


def epoch(dataset, seed, **loader):
    torch.manual_seed(seed)
    return list(DataLoader(dataset, batch_size=3, **loader))


def assert_same(batches, others):
    assert len(batches) == len(others) > 0
    for a, b in zip(batches, others, strict=True):
        assert a["key"] == b["key"]
        assert torch.equal(a["lq"], b["lq"]) and torch.equal(a["gt"], b["gt"])


def test_training_items(root):
    dataset = PairedVideoDataset({"dataroot": root, **SMALL})
    assert len(dataset) == 3 * (13 - 7 + 1)
    item = dataset[7 + 2]
    assert item["key"] == "t1_Rain_02/00003.png"
    assert item["lq"].shape == (7, 3, 21, 21) and item["gt"].shape == (3, 3, 21, 21)
    assert item["lq"].dtype == item["gt"].dtype == torch.float32
    assert item["lq"].min() >= 0 and item["lq"].max() <= 1


@pytest.mark.parametrize("as_uint8", [False, True])
def test_one_target_has_no_axis(root, as_uint8):
    """As the toolbox's own models take it."""
    for kind in (PairedVideoDataset, RenderedRainDataset, ResidentVideoDataset):
        if as_uint8 and kind is ResidentVideoDataset:
            continue
        options = {"dataroot": root, "num_frame": 5, "num_target": 1, "gt_size": 21, "as_uint8": as_uint8}
        dataset = kind({**options, "device": "cpu"} if kind is ResidentVideoDataset else options)
        assert dataset[0]["lq"].shape == (5, 3, 21, 21) and dataset[0]["gt"].shape == (3, 21, 21)
        batch = next(iter(DataLoader(dataset, batch_size=3)))
        assert batch["lq"].shape == (3, 5, 3, 21, 21) and batch["gt"].shape == (3, 3, 21, 21)
    clean = PairedVideoDataset({"dataroot": root, **SMALL, "num_target": 3, "use_hflip": False})
    torch.manual_seed(0)
    three = next(iter(DataLoader(clean, batch_size=2)))["gt"]
    torch.manual_seed(0)
    one = PairedVideoDataset({"dataroot": root, **SMALL, "num_target": 1, "use_hflip": False})
    assert torch.equal(next(iter(DataLoader(one, batch_size=2)))["gt"], three[:, 1])


def test_rain_and_truth_get_the_same_augmentation(tmp_path):
    """With the truth as its own rain, the targets are the middle of the input, whatever is drawn."""
    clean = moving_scene(9, 40, 52, seed=0)
    for ending in ("GT", "Rain_01"):
        for i, frame in enumerate(clean):
            write_image(tmp_path / TRAIN / f"t1_{ending}" / f"{i}.png", frame)
    dataset = PairedVideoDataset({"dataroot": tmp_path, **AUGMENTED})
    for _ in range(30):
        item = dataset[1]
        assert torch.equal(item["lq"][2:5], item["gt"])


def test_plain_crops_are_parts_of_the_frames(root):
    dataset = PairedVideoDataset({"dataroot": root, **SMALL, "use_hflip": False})
    item = dataset[0]
    rain, clean = rain_on(moving_scene(13, 40, 52, 0), 1), moving_scene(13, 40, 52, 0)
    lq = (item["lq"] * 255).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)
    gt = (item["gt"] * 255).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)
    found = [
        (top, left)
        for top in range(40 - 21 + 1)
        for left in range(52 - 21 + 1)
        if np.array_equal(lq[0], rain[0][top : top + 21, left : left + 21])
    ]
    ((top, left),) = found
    part = np.s_[top : top + 21, left : left + 21]
    assert all(np.array_equal(lq[i], rain[i][part]) for i in range(7))
    assert all(np.array_equal(gt[i], clean[i + 2][part]) for i in range(3))


def test_stored_features_are_those_of_the_targets_and_their_crop(root, tmp_path):
    """Each cell of 4x4 pixels says frame, row and column."""
    grid = np.moveaxis(np.indices((13, 10, 13)), 0, -1).astype(np.float16)
    for clip in ("t1_Rain_01", "t1_Rain_02", "t2_Rain_01"):
        write_features(tmp_path / "f", clip, ([frame] for frame in grid), 13, network="abc", layers=["tail"])
    options = {"dataroot": root, **SMALL, "gt_size": 20, "use_hflip": False}
    dataset = PairedVideoDataset({**options, "features": str(tmp_path / "f")})
    clean = moving_scene(13, 40, 52, 0)
    for start in (0, 3, 6):
        item = dataset[start]
        feature = item["teacher_feature_0"].numpy()
        assert feature.shape == (3, 3, 5, 5) and feature.dtype == np.float16
        assert feature[:, 0, 0, 0].tolist() == [start + 2, start + 3, start + 4]
        top, left = (4 * int(number) for number in feature[0, 1:, 0, 0])
        first = (item["gt"][0] * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
        assert np.array_equal(first, clean[start + 2][top : top + 20, left : left + 20])


def test_runs_repeat_by_seed_and_epochs_differ(root):
    dataset = PairedVideoDataset({"dataroot": root, **AUGMENTED})
    again = PairedVideoDataset({"dataroot": root, **AUGMENTED})
    first, second = epoch(dataset, seed=1), list(DataLoader(dataset, batch_size=3))
    assert_same(first, epoch(again, seed=1))
    assert not torch.equal(first[0]["lq"], second[0]["lq"])
    again = PairedVideoDataset({"dataroot": root, **AUGMENTED})
    assert not torch.equal(first[0]["lq"], epoch(again, seed=2)[0]["lq"])


def test_clips_that_are_not_shuffled_come_by_name_and_frame(root):
    dataset = PairedVideoDataset({"dataroot": root, **AUGMENTED, "manual_seed": 1, "use_shuffle": False})
    clips = [f"{clip}/{first:05d}.png" for clip in ("t1_Rain_01", "t1_Rain_02", "t2_Rain_01") for first in range(1, 8)]
    first, second = ([dataset[place] for place in dataset.places(epoch=epoch)] for epoch in (0, 1))
    assert [item["key"] for item in first] == [item["key"] for item in second] == clips
    assert not any(torch.equal(a["lq"], b["lq"]) for a, b in zip(first, second, strict=True))  # drawn anew
    shuffled = PairedVideoDataset({"dataroot": root, **AUGMENTED, "manual_seed": 1})
    keys = [[shuffled[place]["key"] for place in shuffled.places(epoch=epoch)] for epoch in (0, 1)]
    assert keys[0] != keys[1] and sorted(keys[0]) == sorted(keys[1]) == clips


def test_the_number_of_workers_does_not_matter(root):
    dataset = PairedVideoDataset({"dataroot": root, **AUGMENTED, "cache_mb": 1})
    one = epoch(dataset, seed=1, num_workers=1)
    dataset[0]  # a look from outside changes nothing
    assert_same(one, epoch(dataset, seed=1, num_workers=2))
    torch.manual_seed(1)
    loader = DataLoader(dataset, batch_size=3, num_workers=2)
    epochs = [list(loader), list(loader)]
    assert_same(one, epochs[0])
    assert not torch.equal(epochs[0][0]["lq"], epochs[1][0]["lq"])


def test_spawned_persistent_workers(root):
    dataset = PairedVideoDataset({"dataroot": root, **AUGMENTED})
    forked = epoch(dataset, seed=1, num_workers=1)
    torch.manual_seed(1)
    loader = DataLoader(dataset, batch_size=3, num_workers=1, multiprocessing_context="spawn", persistent_workers=True)
    epochs = [list(loader), list(loader)]
    assert_same(forked, epochs[0])
    assert not torch.equal(epochs[0][0]["lq"], epochs[1][0]["lq"])


def test_an_index_that_a_sampler_repeats_is_drawn_anew(root):
    dataset = PairedVideoDataset({"dataroot": root, **AUGMENTED})
    for workers in (0, 2):
        items = [item for batch in epoch(dataset, 1, sampler=[5] * 12, num_workers=workers) for item in batch["lq"]]
        assert len({item.numpy().tobytes() for item in items}) == 12


@pytest.mark.parametrize("workers", [0, 1])
def test_processes_with_one_seed_draw_apart(root, workers):
    """As Lightning and Accelerate deal indices to processes, and seed all of them alike."""

    class Draws(PairedVideoDataset):
        def item(self, sample):
            return {"draw": sample.rng.random()}

    draws = []
    for process in (0, 1):
        dataset = Draws({"dataroot": root, **AUGMENTED})
        batches = epoch(dataset, 1, sampler=range(process, len(dataset), 2), num_workers=workers)
        draws += [draw for batch in batches for draw in batch["draw"].tolist()]
    assert len(set(draws)) == len(draws) == len(dataset)


def test_cache_changes_nothing_but_speed(root):
    plain = epoch(PairedVideoDataset({"dataroot": root, **AUGMENTED}), seed=3)
    assert_same(plain, epoch(PairedVideoDataset({"dataroot": root, **AUGMENTED, "cache_mb": 50}), seed=3))


def test_bytes_instead_of_floats(root):
    floats = epoch(PairedVideoDataset({"dataroot": root, **AUGMENTED}), seed=3)
    for a, b in zip(
        floats, epoch(PairedVideoDataset({"dataroot": root, **AUGMENTED, "as_uint8": True}), 3), strict=True
    ):
        assert b["lq"].dtype == b["gt"].dtype == torch.uint8
        assert torch.equal(a["lq"], b["lq"].float() / 255) and torch.equal(a["gt"], b["gt"].float() / 255)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frame": 15}, r"t1_Rain_01: 13 frames are fewer than num_frame 15: leave the clip out"),
        ({"num_target": 4}, r"num_frame=7.*num_target=4"),
        ({"gt_size": 41}, r"too small for gt_size 41 at scale_range \[.*\]: set gt_size to 40 or less"),
        ({"dataroot": None}, r"dataroot is missing"),
        ({"split": "real"}, r"ra1: no clean frames to train on"),
        ({"clips": ["t9"]}, r"no clip 't9'"),
    ],
)
def test_training_data_that_does_not_fit(root, change, message):
    with pytest.raises(CSDError, match=message) as error:
        PairedVideoDataset({"dataroot": root, **SMALL, **change})
    assert "\n" not in str(error.value)


def test_unequal_sizes_are_found_at_construction(mutable):
    odd = f"{TRAIN}/t2_GT/00007.png"
    write_image(mutable / odd, moving_scene(1, 40, 48, 0)[0])
    with pytest.raises(CSDError, match=rf"t2_Rain_01: {odd} is 48x40, but .*t2_Rain_01/00001.png is 52x40"):
        PairedVideoDataset({"dataroot": mutable, **SMALL})
    assert len(PairedVideoDataset({"dataroot": mutable, **SMALL, "clips": ["t1"]})) == 2 * 3


@pytest.mark.parametrize("saves", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_a_sigterm_of_others_alone_is_outlived_by_workers_of_a_training_that_saves_on_it(root, monkeypatch, saves, own):
    monkeypatch.setattr(training_clips, "saves_on_ending", asked := threading.Event())
    if saves:
        asked.set()
    batches = iter(DataLoader(PairedVideoDataset({"dataroot": root, **SMALL}), num_workers=1))
    next(batches)
    [worker] = batches._workers
    send = [sys.executable, "-c", f"import os, signal; os.kill({worker.pid}, signal.SIGTERM)"]
    if saves and not own:
        subprocess.run(send, check=True)
        assert len(list(batches)) == 3 * 7 - 1
        return
    with pytest.raises(RuntimeError, match=r"exited unexpectedly|killed by signal"):
        worker.terminate() if own else subprocess.run(send, check=True)  # a process that ends terminates its workers
        worker.join()
        list(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_frame_names_itself(tmp_path, workers):
    root = write_ntu_rain(tmp_path, frames=7, suffix=".jpg")
    broken = root / TRAIN / "t2_GT" / "00004.jpg"
    broken.write_bytes(broken.read_bytes()[:-40])
    dataset = PairedVideoDataset({"dataroot": root, **SMALL, "clips": ["t2"]})
    with pytest.raises(CSDError, match=r"t2_GT/00004\.jpg: the JPEG ends early"):
        list(DataLoader(dataset, num_workers=workers))


def test_test_items(root):
    dataset = PairedVideoTestDataset({"dataroot": root, "num_frame": 7})
    rain, clean = rain_on(moving_scene(13, 40, 52, 2), 201), moving_scene(13, 40, 52, 2)
    sources = find_sequences(open_store(root).keys(), "test")
    assert dataset.sequences == sources and dataset.num_frame == 7 and len(dataset) == 13

    item = dataset[1]
    assert item["folder"] == "a1" and item["idx"] == "1/13" and item["lq_path"] == sources[0].lq[1]
    window = torch.stack([torch.from_numpy(rain[i]).permute(2, 0, 1) / 255 for i in (2, 1, 0, 1, 2, 3, 4)])
    expected = rain_on(clean, 200 + 1)
    assert np.array_equal(expected[0], rain[0])
    assert torch.equal(item["lq"], window)
    assert torch.equal(item["gt"], torch.from_numpy(clean[1]).permute(2, 0, 1) / 255)


def test_data_info_follows_the_toolbox(root):
    dataset = PairedVideoTestDataset({"dataroot": root, "split": "train", "num_frame": 1, "frame_range": [3, 6]})
    assert len(dataset) == 3 * 4
    assert Counter(dataset.data_info["folder"]) == {"t1_Rain_01": 4, "t1_Rain_02": 4, "t2_Rain_01": 4}
    assert dataset.data_info["idx"][:5] == ["0/4", "1/4", "2/4", "3/4", "0/4"]
    frames = [
        f"{clip}/{number:05d}.png" for clip in ("t1_Rain_01", "t1_Rain_02", "t2_Rain_01") for number in range(3, 7)
    ]
    truth = [frame.replace("_Rain_01", "_GT").replace("_Rain_02", "_GT") for frame in frames]
    for key, expected in (("lq_path", frames), ("gt_path", truth)):
        assert [path.removeprefix(f"{TRAIN}/") for path in dataset.data_info[key]] == expected
    for i in range(len(dataset)):
        item = dataset[i]
        assert [item[key] for key in ("folder", "idx", "lq_path")] == [
            dataset.data_info[key][i] for key in ("folder", "idx", "lq_path")
        ]


def test_windows_see_frames_outside_the_asked_range(root):
    whole = PairedVideoTestDataset({"dataroot": root, "num_frame": 5})
    part = PairedVideoTestDataset({"dataroot": root, "num_frame": 5, "frame_range": [3, 4]})
    assert torch.equal(part[0]["lq"], whole[2]["lq"]) and torch.equal(part[1]["gt"], whole[3]["gt"])


def test_without_truth(root, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = PairedVideoTestDataset({"dataroot": root, "split": "real", "num_frame": 3})
    assert len(dataset) == 13 and "gt" not in dataset[0]
    assert dataset.data_info["gt_path"] == [None] * 13
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame_range": [0, 3]}, r"\[0, 3\] is not within a1.*1 \.\. 13"),
        ({"frame_range": [4, 14]}, r"\[4, 14\] is not within a1"),
        ({"num_frame": 4}, r"num_frame=4.*odd"),
        ({"split": "testing"}, r"'testing' is unknown"),
    ],
)
def test_test_options_that_do_not_fit(root, change, message):
    with pytest.raises(CSDError, match=message):
        PairedVideoTestDataset({"dataroot": root, "num_frame": 3, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gt_sise": 32}, "'gt_sise' of a data set is unknown; did you mean gt_size"),
        ({"use_flip": False}, "'use_flip' of a data set is unknown; did you mean use_.flip"),
        ({"gt_size": "32"}, "gt_size of a data set is '32': give a whole number"),
        ({"num_frame": True}, "num_frame of a data set is True: give a whole number"),
        ({"num_target": 0}, "num_target of a data set is 0: give a whole number above 0 and of at most 1024"),
        ({"use_rot": "no"}, "use_rot of a data set is 'no': give true or false"),
    ],
)
def test_training_options_are_checked_without_an_option_file_too(root, change, message):
    with pytest.raises(CSDError, match=message):
        PairedVideoDataset({"dataroot": root, **SMALL, **change})


def test_keys_of_others_and_numbers_of_numpy_are_taken(root):
    theirs = {"name": "t", "type": "PairedVideoDataset", "phase": "train", "scale": 1, "io_backend": {"type": "disk"}}
    dataset = PairedVideoDataset({"dataroot": root, **SMALL, **theirs, "gt_size": np.int64(21)})
    assert dataset[0]["lq"].shape == (7, 3, 21, 21)


def test_rain_and_truth_of_different_sizes(mutable):
    for file in (mutable / TEST / "a1_GT").iterdir():
        write_image(file, moving_scene(1, 20, 26, 0)[0])
    with pytest.raises(CSDError, match=r"a1: .*a1_GT/00001.png is 26x20, but .*a1_Rain/00001.png is 52x40"):
        PairedVideoTestDataset({"dataroot": mutable, "num_frame": 3})


def test_datasets_can_be_pickled(root):
    for dataset in (PairedVideoTestDataset({"dataroot": root}), PairedVideoDataset({"dataroot": root, **SMALL})):
        dataset[0]
        copy = pickle.loads(pickle.dumps(dataset))
        assert copy.sequences == dataset.sequences and copy[3]["lq"].shape == dataset[3]["lq"].shape


def test_real_clips(shared):
    data = shared / "data" / "NTURain"
    synthetic = PairedVideoTestDataset({"dataroot": data, "num_frame": 7, "cache_mb": 20})
    assert [sequence.name for sequence in synthetic.sequences] == ["a1"] and len(synthetic) == 168
    assert synthetic[167]["lq"].shape == (7, 3, 480, 640) and synthetic[167]["gt"].shape == (3, 480, 640)
    real = PairedVideoTestDataset({"dataroot": data, "split": "real", "num_frame": 1})
    assert [sequence.name for sequence in real.sequences] == ["ra1"] and len(real) == 60

"""Training with the teacher's stored features is training with the teacher."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from synthetic import moving_scene, rain_on, write_image
from toolbox import train_options

from csd_plugin.adapt import shots
from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.cli import main
from csd_plugin.data.features import open_features
from csd_plugin.data.stores import open_store
from csd_plugin.locks import alone
from csd_plugin.weights import find_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SIDE, FRAMES = 32, 14
NARROW = {"type": "HalfNet", "num_frame": 3, "num_feat": 4, "num_pair": 1}
WIDE = {"type": "HalfNet", "num_frame": 5, "num_feat": 6, "num_pair": 1}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A folder in which `csd adapt --features` has run on a square clip, by teacher.pth and student.pth."""
    folder = tmp_path_factory.mktemp("adapted")
    for number, frame in enumerate(rain_on(moving_scene(FRAMES, SIDE, SIDE, 0), 1), start=1):
        write_image(folder / "garden" / f"{number:05d}.png", frame)
    torch.manual_seed(0)
    for name, numbers in (("teacher", WIDE), ("student", NARROW)):
        network = HalfNet(**{key: value for key, value in numbers.items() if key != "type"})
        torch.nn.init.normal_(network.tail.weight, std=0.1)
        torch.save({"params": network.state_dict()}, folder / f"{name}.pth")
    with contextlib.chdir(folder):
        assert adapt("--features") == 0
    return folder


@pytest.fixture
def kept(adapted, tmp_path, monkeypatch):
    """The cache in a copy of that folder, which is the current one."""
    shutil.copytree(adapted, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "garden.cache"


def adapt(*more):
    files = ["garden", "--teacher", "teacher.pth", "--student", "student.pth", "--out", "garden.pth"]
    return main(["adapt", *files, "--minutes", "0.01", "--device", "cpu", *more])


def options(kept, **changes):
    """Whole frames as crops, so that features of crops are those of frames."""
    return train_options(
        kept / "frames.lmdb",
        **{
            "model_type": "DistillModel",
            "network_g": NARROW,
            "network_t": WIDE,
            "path.pretrain_network_g": str(kept.parent / "student.pth"),
            "path.pretrain_network_t": str(kept.parent / "teacher.pth"),
            "datasets.train.gt_size": SIDE,
            "datasets.train.num_frame": 6,
            "datasets.train.use_hflip": False,
            "datasets.train.random_reverse": False,
            "datasets.train.dataset_enlarge_ratio": 1,
            "train.total_iter": 2,
            "train.distill_opt": {"type": "CSD", "hidden": 4, "weights": {"spatial": 0.1, "temporal": 0.1}},
        }
        | changes,
    )


def losses(launcher):
    return {name: float(value) for name, value in launcher.models[-1].log_dict.items() if name.startswith("l_")}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_losses_are_those_with_the_teacher(kept, launcher, monkeypatch, accumulate):
    assert launcher.train(options(kept, name="live", **{"train.accumulate": accumulate})) == 0
    live = losses(launcher)
    stored = {"datasets.train.features": str(kept / "features"), "train.accumulate": accumulate}
    monkeypatch.setattr(
        "csd_plugin.distill.distiller.Distiller._teacher_view", lambda *_: pytest.fail("the teacher was run")
    )
    assert launcher.train(options(kept, name="stored", **stored)) == 0
    assert losses(launcher) == pytest.approx(live, rel=2e-2)  # its features in bf16, and stored as fp16
    assert live["l_distill"] > 1e-4


def test_shots_of_a_long_video_have_the_labels_and_features_that_they_have_in_it(kept, monkeypatch):
    monkeypatch.setattr(shots, "_RUN", 12)
    for number, frame in enumerate(rain_on(moving_scene(40, SIDE, SIDE, 3), 1), start=1):
        write_image(Path("long") / f"{number:05d}.png", frame)
    files = ["long", "--teacher", "teacher.pth", "--student", "student.pth", "--out", "long.pth", "--features"]
    for name, frames in (("whole", "40"), ("parts", "24")):
        more = ["--minutes", "0.01", "--device", "cpu", "--cache", name, "--frames", frames, "--overwrite"]
        assert main(["adapt", *files, *more]) == 0
    whole, parts = (open_store(Path(name) / "frames.lmdb") for name in ("whole", "parts"))
    [everything] = open_features(Path("whole/features")).arrays["1-long-000000"]
    stored = open_features(Path("parts/features")).arrays
    clean = {key.rpartition("/")[2]: whole.read(key).copy() for key in whole.keys() if "_GT/" in key}  # noqa: SIM118
    for start in (0, 28):
        name = f"1-long-{start:06d}"
        keys = [key for key in parts.keys() if f"{name}_GT/" in key]  # noqa: SIM118
        assert len(keys) == 12
        for key in keys:
            number = int(Path(key).stem) + start
            np.testing.assert_array_equal(parts.read(key), clean[f"{number:05d}.png"])
        [array] = stored[name]
        there = everything[start : start + 9]  # but for the end, which is held back there
        assert len(array) == 9 and len(there) >= 8
        np.testing.assert_array_equal(array[: len(there)], there)


def test_it_continues_and_says_where_they_are(kept, capsys):
    assert adapt("--features", "--overwrite") == 0
    said = capsys.readouterr().out
    assert "features of 11 frames by teacher.pth (tail)" in said


def test_what_a_command_that_was_killed_left_is_removed_where_no_other_one_writes(kept, capsys):
    folder = kept / "features"
    (folder / "features.json").unlink()
    left = folder / ".garden.0.4711.part.npy"
    left.write_bytes(b"half")
    with alone(folder):
        assert adapt("--features", "--overwrite") == 2
    assert "features: another command is writing there now" in capsys.readouterr().err and left.exists()
    assert adapt("--features", "--overwrite") == 0
    assert not left.exists() and (folder / "features.json").exists()
    with alone(folder):  # nothing is missing
        assert adapt("--features", "--overwrite") == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"datasets.train.scale_range": [0.8, 1.2]}, "set scale_range: [1, 1]"),
        ({"datasets.train.gt_size": 31}, "give a multiple"),
        ({"path.pretrain_network_t": "student.pth", "network_t": NARROW}, "not the features of student.pth"),
        ({"train.distill_opt.taps": {"student": ["body.0"], "teacher": ["body.0"]}}, "set taps.teacher to the former"),
        ({"model_type": "VideoDerainModel", "train.distill_opt": None}, "compares no features"),
        ({"datasets.train.features": "nowhere"}, "holds no features"),
        ({"path.pretrain_network_t": "gone.pth"}, "gone.pth does not exist"),
    ],
)
def test_what_does_not_fit_is_one_line(kept, launcher, capsys, change, said):
    given = {"datasets.train.features": str(kept / "features")} | change
    assert launcher.train(options(kept, **given)) == 2
    assert said in capsys.readouterr().err


def test_one_network_is_needed(kept, capsys):
    for more in (["--ensemble"], ["--teacher", "teacher.pth", "student.pth"]):
        assert adapt("--features", "--overwrite", *more) == 2
        assert "give one --teacher, without --ensemble" in capsys.readouterr().err


RIDNET = {"type": "RIDNet", "in_channels": 3, "mid_channels": 16, "out_channels": 3, "num_block": 1}


@pytest.mark.parametrize(
    ("network", "interface", "channels"),
    [
        (RIDNET, {"layout": "image", "feature": "tail"}, 16),
        ({"type": "TOFlow"}, {"layout": "window", "num_frame": 7, "feature": "conv_4"}, 64),
    ],
    ids=["image", "window"],
)
def test_the_feature_that_an_option_file_names_is_stored_without_padding(kept, network, interface, channels):
    from csd_plugin import registration

    registration.install()
    from basicsr.archs import build_network

    torch.save({"params": build_network(dict(network)).state_dict()}, "theirs.pth")
    content = {
        "name": "theirs",
        "model_type": "VideoDerainModel",
        "num_gpu": 0,
        "datasets": {"test_1": {"name": "a", "type": "PairedVideoTestDataset", "dataroot": "x", "num_frame": 7}},
        "network_g": network,
        "interface_g": interface | {"size_divisor": 48},
        "path": {"pretrain_network_g": "theirs.pth"},
        "val": {"save_img": False},
    }
    Path("theirs.yml").write_text(yaml.safe_dump(content))
    assert adapt("--teacher", "theirs.yml", "--out", "other.pth", "--cache", "other", "--features") == 0
    stored = open_features(Path("other/features"))
    assert stored.layers == (interface["feature"],)
    [[array]] = stored.arrays.values()
    assert array.shape[1:] == (SIDE, SIDE, channels) and array.any()


def test_the_option_file_for_it_trains(tmp_path, monkeypatch, launcher):
    """As the page about adapting says, with the networks that ship."""
    monkeypatch.chdir(tmp_path)
    for number, frame in enumerate(rain_on(moving_scene(FRAMES, 96, 100, 0), 1), start=1):
        write_image(tmp_path / "garden" / f"{number:05d}.png", frame)
    files = ["garden", "--teacher", "wide", "--student", "tiny", "--out", "garden.pth", "--features"]
    assert main(["adapt", *files, "--minutes", "0.01", "--device", "cpu"]) == 0
    options = yaml.safe_load((ROOT / "options/adapt/adapt_cpu.yml").read_text(encoding="utf-8"))
    options["datasets"]["train"] |= {"num_worker_per_gpu": 0, "persistent_workers": False, "dataset_enlarge_ratio": 1}
    options["train"]["total_iter"] = options["val"]["val_freq"] = 2
    options["logger"] |= {"print_freq": 1, "use_tb_logger": False}
    options["path"]["pretrain_network_t"] = str(find_checkpoint("wide"))
    options["path"]["pretrain_network_g"] = str(find_checkpoint("tiny"))
    assert launcher.train(options) == 0
    assert losses(launcher)["l_distill"] > 0

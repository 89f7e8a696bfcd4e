"""Networks whose frames are larger than their input, `scale` times, from data to scores."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
import yaml
from synthetic import moving_scene, write_image
from test_objectives import options_of
from test_pairs import stock
from test_toolbox_networks import checkpoint
from toolbox import changed, scoring_options, train_options

from csd_plugin import registration
from csd_plugin.cli import main
from csd_plugin.models.probe import Probe

SCALE = 2
STUDENT = {"type": "MSRResNet", "num_feat": 4, "num_block": 1, "upscale": SCALE}
TEACHER = STUDENT | {"num_feat": 6, "num_block": 2}
IMAGE = {"layout": "image", "feature": "conv_first:output"}
WINDOWS_OF_6 = {
    "type": "SwinIR",
    "upscale": SCALE,
    "img_size": 12,
    "window_size": 6,
    "embed_dim": 6,
    "depths": [1],
    "num_heads": [1],
    "upsampler": "pixelshuffledirect",
}
"""A network for crops of 12x12, but not for frames of 32x24, nor for crops of 3x3."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two clips of 10 frames: gt of 64x48, lq of 32x24."""
    root = tmp_path_factory.mktemp("pairs")
    for number in range(2):
        for index, frame in enumerate(moving_scene(10, 48, 64, seed=number)):
            write_image(root / f"gt/{number:03d}/{index:08d}.png", frame)
            small = cv2.resize(frame, None, fx=1 / SCALE, fy=1 / SCALE, interpolation=cv2.INTER_AREA)
            write_image(root / f"lq/{number:03d}/{index:08d}.png", small)
    return root


def roots(clips):
    return {"dataroot": ..., "dataroot_lq": str(clips / "lq"), "dataroot_gt": str(clips / "gt")}


def in_train(clips, **more):
    return {f"datasets.train.{key}": value for key, value in (roots(clips) | more).items()}


def images(clips):
    return {
        "type": "PairedImageDataset",
        "name": "train",
        "dataroot_gt": str(clips / "gt/000"),
        "dataroot_lq": str(clips / "lq/000"),
        "io_backend": {"type": "disk"},
        "gt_size": 24,
        "use_hflip": True,
        "use_rot": True,
        "num_worker_per_gpu": 0,
        "batch_size_per_gpu": 2,
    }


def of_toolbox(clips, **more):
    return {
        "type": "VideoTestDataset",
        "name": "Vid4",
        "dataroot_gt": str(clips / "gt"),
        "dataroot_lq": str(clips / "lq"),
        "io_backend": {"type": "disk"},
        "cache_data": False,
        "num_frame": 1,
        "padding": "reflection",
    } | more


def scored(clips, file):
    data = {f"datasets.test_1.{key}": value for key, value in (roots(clips) | {"split": ...}).items()}
    return scoring_options(clips, file, scale=SCALE, network_g=STUDENT, interface_g=IMAGE, **data)


@pytest.mark.parametrize("kind", ["PairedVideoDataset", "ResidentVideoDataset"])
def test_a_student_is_distilled_and_scored_at_the_size_of_the_truth(launcher, clips, kind):
    more = {"type": kind} | ({"device": "cpu"} if kind == "ResidentVideoDataset" else {})
    networks = {"network_g": STUDENT, "interface_g": IMAGE, "network_t": TEACHER, "interface_t": IMAGE, "scale": SCALE}
    options = options_of(clips, checkpoint(launcher.folder, TEACHER), "CSD", **networks, **in_train(clips, **more))
    assert launcher.train(options) == 0
    model = launcher.models[-1]
    assert model.lq.shape == (2, 8, 3, 12, 12) and model.gt.shape == (2, 2, 3, 24, 24)
    assert float(model.log_dict["l_spatial"]) > 0 and model.net_g.conv_first.weight.grad.any()

    file = launcher.folder / "experiments/run/models/net_g_latest.pth"
    assert launcher.test(changed(scored(clips, file), {"val.save_img": True})) == 0
    result = cv2.imread(str(launcher.folder / "results/row/visualization/rain/000/00000001_row.png"))
    truth = cv2.imread(str(clips / "gt/000/00000001.png"))
    assert result.shape == truth.shape == (48, 64, 3)
    psnr = 10 * np.log10(255**2 / np.square(result.astype(float) - truth).mean())
    scores = json.loads((launcher.folder / "results/row/rain.json").read_text())["clips"]["000"]["frames"]
    assert scores["00000001"]["rgb"]["psnr"] == pytest.approx(psnr)


def test_it_is_scored_on_test_clips_of_the_toolbox(launcher, clips):
    row = changed(scored(clips, checkpoint(launcher.folder, STUDENT)), {"path.param_key_g": ...})
    row["datasets"]["test_1"] = of_toolbox(clips)
    assert launcher.test(row) == 0
    frames = json.loads((launcher.folder / "results/row/Vid4.json").read_text())["clips"]["001"]["frames"]
    assert len(frames) == 10


def test_flicker_is_measured_without_truth(launcher, clips):
    """The optical flow is then that of the enlarged input."""
    row = scored(clips, checkpoint(launcher.folder, STUDENT))
    warping = {"val.metrics": {"warping": {"type": "calculate_warping_error", "better": "lower"}}}
    alone = {"datasets.test_1.dataroot_gt": ..., "path.param_key_g": ...}
    assert launcher.test(changed(row, alone | warping)) == 0
    content = json.loads((launcher.folder / "results/row/rain.json").read_text())["clips"]["000"]["frames"]
    assert content["00000001"]["measures"]["warping"] > 0


@pytest.mark.parametrize("name", ["VideoDerainModel", "DistillModel"])
def test_data_sets_of_the_toolbox_give_pairs_of_two_sizes(launcher, clips, name):
    options = train_options(clips, network_g=STUDENT, interface_g=IMAGE, scale=SCALE)
    if name == "DistillModel":
        more = {"network_g": STUDENT, "interface_g": IMAGE, "network_t": TEACHER, "interface_t": IMAGE, "scale": SCALE}
        options = options_of(clips, checkpoint(launcher.folder, TEACHER), "OutputDistillation", **more)
    options["datasets"]["train"] = images(clips)
    assert launcher.train(options) == 0
    assert launcher.models[-1].lq.shape == (2, 1, 3, 12, 12) and launcher.models[-1].gt.shape == (2, 1, 3, 24, 24)


def table_of(clips, folder, rows, **more):
    """`csd table` of these rows, with the student's option files."""
    train = train_options(clips, network_g=STUDENT, interface_g=IMAGE, scale=SCALE, **in_train(clips))
    files = {"base": train, "test": scored(clips, "x.pth"), "table": {"base": "base.yml", "test": "test.yml"}}
    files["table"] |= {"name": "table", "runs": "sr", "rows": rows} | more
    for name, content in files.items():
        (folder / f"{name}.yml").write_text(yaml.safe_dump(content))
    return main(["table", str(folder / "table.yml")])


def test_the_input_in_a_table_is_enlarged(clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert table_of(clips, tmp_path, {"input": {"input": True}}) == 0
    frame, truth = (cv2.imread(str(clips / side / "001/00000002.png")) for side in ("lq", "gt"))
    enlarged = cv2.resize(frame, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
    psnr = 10 * np.log10(255**2 / np.square(enlarged.astype(float) - truth).mean())
    scores = json.loads((tmp_path / "results/sr_input/rain.json").read_text())["clips"]["001"]["frames"]
    assert scores["00000002"]["rgb"]["psnr"] == pytest.approx(psnr)


def test_frames_in_a_table_are_scored_against_the_folder_of_the_truth(clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in (clips / "gt").rglob("*.png"):
        made = cv2.imread(str(file))[..., ::-1] // 2 * 2
        write_image(tmp_path / "made" / file.relative_to(clips / "gt"), made)
    assert table_of(clips, tmp_path, {"given": {"frames": "made"}}) == 0
    truth = cv2.imread(str(clips / "gt/001/00000002.png")).astype(float)
    psnr = 10 * np.log10(255**2 / np.square(truth // 2 * 2 - truth).mean())
    scores = json.loads((tmp_path / "results/sr_given/rain.json").read_text())["clips"]["001"]["frames"]
    assert scores["00000002"]["rgb"]["psnr"] == pytest.approx(psnr) and len(scores) == 3


def test_the_cost_of_a_network_in_a_table(clips, tmp_path, monkeypatch, capsys):
    """It is called as the base file says; a mistake is told before the other rows are trained."""
    monkeypatch.chdir(tmp_path)
    assert table_of(clips, tmp_path, {"large": {"network": TEACHER}}, complexity=True) == 0
    weights = torch.load(checkpoint(tmp_path, TEACHER), weights_only=True)
    assert f"| large | {sum(map(torch.numel, weights.values())):,} |" in capsys.readouterr().out
    rows = {"learns": {}, "large": {"network": TEACHER | {"type": "MSRResNt"}}}
    assert table_of(clips, tmp_path, rows, complexity=True) == 2
    assert "the row large: network_g.type: 'MSRResNt' is unknown; did you mean" in capsys.readouterr().err
    assert not (tmp_path / "experiments").exists()


def test_crops_of_both_sizes_show_the_same(clips):
    from csd_plugin.data.datasets.paired_video import PairedVideoDataset

    augmented = {"scale_range": [0.7, 1.5], "use_vflip": True, "use_rot": True, "random_reverse": True}
    for drawn in ({}, augmented):
        options = {"num_frame": 5, "num_target": 3, "gt_size": 24, "scale": SCALE} | drawn
        dataset = PairedVideoDataset({"dataroot_lq": clips / "lq", "dataroot_gt": clips / "gt", **options})
        torch.manual_seed(1)
        for index in range(len(dataset)):
            item = dataset[index]
            shrunk = torch.nn.functional.avg_pool2d(item["gt"], SCALE)
            # exact but for rounding to grey levels, as the rainy frames are such means; scaled crops are blurred first
            assert (item["lq"][1:4] - shrunk).abs().mean() < (0.03 if drawn else 1.1 / 255)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale": 3}, "000/00000000.png is 64x48, but lq/000/00000000.png is 32x24 at scale 3: restore the frame at"),
        ({"scale": 1}, "000/00000000.png is 64x48, but lq/000/00000000.png is 32x24: restore the frame at the clip's"),
        ({"datasets.train.gt_size": 25}, "gt_size 25 is no multiple of the scale, 2: give one"),
        (
            {"datasets.train.gt_size": 64},
            "too small for gt_size 64 at scale_range [1, 1] and scale 2: set gt_size to 48",
        ),
        ({"scale": 0}, "scale is 0"),
        ({"scale": 17}, ": scale is 17: input should be less than or equal to 16"),
        ({"scale": 1.5}, "scale is 1.5"),
        ({"scale": "2"}, "scale is '2'"),
        ({"network_g.upscale": 4}, "the network returns (4, 3, 48, 48) where frames (4, 3, 24, 24) are needed"),
        (
            {"network_g": {"type": "HalfNet", "preset": "tiny"}, "interface_g": ...},
            "network_g: frames from HalfNet are as large as its input, but the file's scale is 2; set scale: 1, or use",
        ),
    ],
)
def test_what_does_not_fit_the_scale_is_one_line(launcher, clips, capsys, changes, words):
    options = train_options(clips, network_g=STUDENT, interface_g=IMAGE, scale=SCALE, **in_train(clips))
    assert launcher.train(changed(options, changes)) == 2
    assert words in capsys.readouterr().err
    assert launcher.written() == []


@pytest.mark.parametrize("wrong", [{}, {"type": "PairedImageDataset", "name": "images"}], ids=["clips", "images"])
def test_truth_of_another_scale_in_sets_of_the_toolbox_is_one_line(launcher, clips, tmp_path, capsys, wrong):
    """The toolbox's images would be scored against the corner of the truth that fits them."""
    third = tmp_path / "third/000/00000000.png"
    write_image(third, cv2.resize(cv2.imread(str(clips / "gt/000/00000000.png")), (20, 15)))
    write_image(tmp_path / "truth/000/00000000.png", cv2.imread(str(clips / "gt/000/00000000.png")))
    folders = {"dataroot_lq": third.parent.parent, "dataroot_gt": tmp_path / "truth"}
    content = of_toolbox(clips, **wrong)
    content |= {key: str(folder / "000" if wrong else folder) for key, folder in folders.items()}
    row = changed(scored(clips, checkpoint(launcher.folder, STUDENT)), {"path.param_key_g": ...})
    row["datasets"]["test_1"] = content
    before = launcher.written()
    assert launcher.test(row) == 2
    error = capsys.readouterr().err
    assert "frame 00000000: the truth is 64x48, but the frame is 20x15 at scale 2; check the scale" in error
    assert launcher.written() == before


def test_truth_of_another_scale_further_on_is_named(launcher, clips, tmp_path, capsys):
    frame = cv2.imread(str(clips / "gt/000/00000000.png"))
    for name, size in {"gt/0": (64, 48), "lq/0": (32, 24), "gt/1": (64, 48), "lq/1": (30, 24)}.items():
        write_image(tmp_path / f"{name}.png", cv2.resize(frame, size))
    row = changed(scored(clips, checkpoint(launcher.folder, STUDENT)), {"path.param_key_g": ...})
    row["datasets"]["test_1"] = of_toolbox(clips, type="PairedImageDataset", name="images") | {
        f"dataroot_{side}": str(tmp_path / side) for side in ("lq", "gt")
    }
    assert launcher.test(row) == 2
    assert "images, clip images, frame 1: the truth is 64x48, but the frame is 30x24" in capsys.readouterr().err


def test_every_test_clip_of_the_toolbox_is_looked_at_before_the_start(launcher, clips, tmp_path, capsys):
    frame = cv2.imread(str(clips / "gt/000/00000000.png"))
    for clip, size in {"000": (32, 24), "001": (30, 24)}.items():
        write_image(tmp_path / f"gt/{clip}/00000000.png", frame)
        write_image(tmp_path / f"lq/{clip}/00000000.png", cv2.resize(frame, size))
    row = changed(scored(clips, checkpoint(launcher.folder, STUDENT)), {"path.param_key_g": ...})
    folders = {f"dataroot_{side}": str(tmp_path / side) for side in ("lq", "gt")}
    row["datasets"]["test_1"] = of_toolbox(clips, **folders)
    before = launcher.written()
    assert launcher.test(row) == 2
    assert "clip 001, frame 00000000: the truth is 64x48, but the frame is 30x24" in capsys.readouterr().err
    assert launcher.written() == before


@pytest.fixture
def twice():
    """A network of another package, for the toolbox's own models: windows of one frame, and results twice as large."""
    registration.install()
    from basicsr.utils.registry import ARCH_REGISTRY

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3, padding=1), torch.nn.PixelShuffle(SCALE))

        def forward(self, window):
            return self.layers(window[:, 0])

    ARCH_REGISTRY.register(Twice)
    yield {"type": "Twice"}
    ARCH_REGISTRY._obj_map.pop("Twice")


def test_models_of_the_toolbox_train_on_our_pairs_of_two_sizes(launcher, clips, twice, capsys):
    single = in_train(clips, num_frame=1, num_target=1)
    options = stock(train_options(clips, scale=SCALE, **single), "SRModel", twice)
    assert launcher.train(options) == 0
    assert launcher.models[-1].lq.shape == (2, 1, 3, 12, 12) and launcher.models[-1].gt.shape == (2, 3, 24, 24)
    before = launcher.written()
    assert launcher.train(changed(options, {"scale": 1, "datasets.train.dataroot_gt": str(clips / "lq")})) == 2
    assert "(2, 3, 48, 48)" in capsys.readouterr().err and launcher.written() == before


@pytest.mark.parametrize("kind", ["ours", "toolbox"])
def test_frames_that_a_network_cannot_process_are_told_before_the_training(launcher, clips, capsys, kind):
    options = train_options(clips, network_g=WINDOWS_OF_6, interface_g=IMAGE, scale=SCALE, **in_train(clips))
    ours = {"type": "PairedVideoTestDataset", "name": "val", "num_frame": 1} | roots(clips)
    ours.pop("dataroot")
    options["datasets"]["val"] = ours if kind == "ours" else of_toolbox(clips)
    options["val"] = {"val_freq": 2, "save_img": False}
    assert launcher.train(options) == 2
    error = capsys.readouterr().err
    assert "network_g: SwinIR cannot process clips (1, 1, 3, 24, 32) of datasets.val, clip 00" in error
    assert "multiples of 6; set interface_g.size_divisor: 6, and frames are padded for it" in error
    assert launcher.written() == []
    options["interface_g"] = IMAGE | {"size_divisor": 6}
    assert launcher.train(options) == 0


def test_pooled_crops_that_a_network_cannot_process_are_told_before_the_training(launcher, clips, capsys):
    sections = {"network_g": WINDOWS_OF_6, "interface_g": IMAGE, "network_t": WINDOWS_OF_6, "interface_t": IMAGE}
    options = options_of(clips, checkpoint(launcher.folder, WINDOWS_OF_6), "CSD", scale=SCALE, **sections)
    options = changed(options, in_train(clips) | {"train.distill_opt.scale_source": "frames"})
    before = launcher.written()
    assert launcher.train(options) == 2
    error = capsys.readouterr().err
    assert "SwinIR cannot process clips (2, 8, 3, 3, 3), crops of 12 pooled by 4 for train.distill_opt" in error
    assert "multiples of 6; set datasets.train.gt_size to a multiple of 48" in error
    assert launcher.written() == before
    assert main(["inspect", "options.yml"]) == 2
    assert "crops of 12 pooled by 4 for train.distill_opt" in capsys.readouterr().err
    assert main(["inspect", "options.yml", "--size", "13"]) == 2
    assert "network_g: SwinIR cannot process clips (2, 8, 3, 13, 13)" in capsys.readouterr().err
    options = changed(options, {"train.total_iter": 1, "datasets.train.batch_size_per_gpu": 1, "train.health": False})
    assert launcher.train(changed(options, {"train.distill_opt.num_scale": 2})) == 0
    assert launcher.train(changed(options, {"datasets.train.gt_size": 48, "name": "whole"})) == 0
    off = {"train.distill_opt.weights": {"spatial": 0, "temporal": 0}}  # nothing is pooled
    assert launcher.train(changed(options, off)) == 0


def test_steps_are_timed_at_both_sizes(clips):
    registration.install()
    probe = Probe(train_options(clips, network_g=STUDENT, interface_g=IMAGE, scale=SCALE, **in_train(clips)))
    probe.step()
    assert probe.batch["lq"].shape == (2, 8, 3, 12, 12) and probe.batch["gt"].shape == (2, 2, 3, 24, 24)
    assert torch.equal(probe.batch["gt"][..., ::SCALE, ::SCALE], probe.batch["lq"][:, 3:5])


def test_messages_of_the_toolbox_in_two_parts_are_one_sentence(launcher, clips, capsys):
    options = train_options(clips, network_g=STUDENT, interface_g=IMAGE, scale=3)
    options["datasets"]["train"] = images(clips)
    assert launcher.train(options) == 2
    assert "Scale mismatches. GT (48, 64) is not 3x multiplication of LQ (24, 32).; check" in capsys.readouterr().err


def test_rain_is_rendered_at_one_size_only(clips):
    from csd_plugin.data.datasets.rendered_rain import RenderedRainDataset
    from csd_plugin.errors import CSDError

    with pytest.raises(CSDError, match="renders rain on frames of their own size, but the scale is 2: use Paired"):
        RenderedRainDataset({"dataroot": clips / "gt", "num_frame": 5, "num_target": 1, "gt_size": 24, "scale": 2})

"""Our models with the toolbox's data sets, its models with ours, and mixes of both: right losses, or one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from synthetic import moving_scene, rain_on, write_image
from toolbox import STUDENT, TEACHER, changed, distill_options, equal, scored_set, scoring_options, train_options
from torch.nn import functional as F

from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.errors import CSDError
from csd_plugin.losses.ssim import PyramidSSIMLoss
from csd_plugin.metrics.protocols import score_frame
from csd_plugin.metrics.warping import warping_error

SIZE = 24
SINGLE = {"type": "SLDNet", "preset": "student3", "num_feat": 4}
SEQUENCE = {"type": "S2VD", "num_feat": 4, "num_block": 1}
RIDNET = {"type": "RIDNet", "in_channels": 3, "mid_channels": 16, "out_channels": 3, "num_block": 1}
LOSSES = {
    "L1Loss": lambda output, truth: (output - truth).abs().mean(),
    "CharbonnierLoss": lambda output, truth: ((output - truth) ** 2 + 1e-12).sqrt().mean(),
    "MSELoss": lambda output, truth: ((output - truth) ** 2).mean(),
    "PyramidSSIMLoss": lambda output, truth: PyramidSSIMLoss()(output, truth),  # of known values: tests/losses
}


# ---------------------------------------------------------------------- data in the toolbox's layouts
@pytest.fixture(scope="module")
def toolbox_data(tmp_path_factory) -> Path:
    """REDS: two clips of 100 frames, which the toolbox takes for granted, of ten pictures; Vimeo-90K: two of seven;
    test clips of four frames; images. 32x36, rain in lq, truth in gt."""
    root = tmp_path_factory.mktemp("toolbox_data")
    for seed, clip in enumerate(("001", "002")):
        scene = moving_scene(10, 32, 36, seed)
        for kind, frames in (("gt", scene), ("lq", rain_on(scene, seed))):
            for i, frame in enumerate(frames):
                write_image(root / f"reds/{kind}/{clip}/{i:08d}.png", frame)
                if i < 7:
                    write_image(root / f"vimeo/{kind}/00001/{clip}/im{i + 1}.png", frame)
                if i < 4:
                    write_image(root / f"test/{kind}/clip{clip}/{i:04d}.png", frame)
            for i in range(10, 100):
                os.link(root / f"reds/{kind}/{clip}/{i % 10:08d}.png", root / f"reds/{kind}/{clip}/{i:08d}.png")
    (root / "reds.txt").write_text("001 100 (32,36,3)\n002 100 (32,36,3)\n")
    (root / "vimeo.txt").write_text("00001/001 7 (32,36,3)\n00001/002 7 (32,36,3)\n")
    return root


def roots(data: Path, folder: str) -> dict:
    return {
        "dataroot_gt": str(data / folder.format("gt")),
        "dataroot_lq": str(data / folder.format("lq")),
        "io_backend": {"type": "disk"},
    }


LOADER = {"gt_size": SIZE, "use_hflip": True, "use_rot": True, "num_worker_per_gpu": 0, "batch_size_per_gpu": 2}


def training_set(data: Path, kind: str, num_frame: int, batch: int = 2) -> dict:
    """One of the toolbox's, by its options."""
    loader = {"name": kind, "type": kind, "num_frame": num_frame, **LOADER, "batch_size_per_gpu": batch}
    if kind.startswith("REDS"):
        meta = {"meta_info_file": str(data / "reds.txt"), "val_partition": "REDS4", "test_mode": False}
        times = {"interval_list": [1], "random_reverse": True, "dataroot_flow": None}
        return {**loader, **meta, **times, **roots(data, "reds/{}")}
    if kind.startswith("Vimeo"):
        meta = {"meta_info_file": str(data / "vimeo.txt"), "random_reverse": False, "flip_sequence": False}
        return {**loader, **meta, "dataset_enlarge_ratio": 4, **roots(data, "vimeo/{}")}
    del loader["num_frame"]
    return {**loader, **roots(data, "reds/{}/001")}


def test_set(data: Path, kind: str, num_frame: int = 3, **changes) -> dict:
    windows = {"name": "Vid4", "type": kind, "num_frame": num_frame, "cache_data": False, "padding": "reflection"}
    if kind == "VideoTestVimeo90KDataset":
        return {**windows, "name": "vimeo", **roots(data, "vimeo/{}"), "meta_info_file": str(data / "vimeo.txt")}
    if kind == "VideoTestDUFDataset":
        windows["use_duf_downsampling"] = False
    if kind.startswith("Video"):
        return {**windows, **roots(data, "test/{}"), **changes}
    images = {"name": "images", "type": kind, **roots(data, "test/{}/clip001")}
    return {key: value for key, value in (images | changes).items() if value is not None}


test_set.__test__ = False  # pytest: no test


# ---------------------------------------------------------------------- what the losses must be
@pytest.fixture
def batches(monkeypatch):
    """What loaders have given to the toolbox's and to our models, newest last."""
    from basicsr.models.sr_model import SRModel

    from csd_plugin.models.video_derain_model import VideoDerainModel

    fed = []
    for model in (SRModel, VideoDerainModel):

        def record(self, data, feed_data=model.feed_data):
            fed.append({key: value.clone() for key, value in data.items() if isinstance(value, torch.Tensor)})
            feed_data(self, data)

        monkeypatch.setattr(model, "feed_data", record)
    return fed


def still(options: dict) -> dict:
    """The same run without learning: what it logs is of weights that are there in the end."""
    return changed(options, {"train.optim_g": {"type": "Adam", "lr": 1e-30}, "train.total_iter": 1})


@torch.no_grad()
def direct(network, batch, num_frame: int, loss: str) -> float:
    """The loss of a batch as a loader gives it, frame by frame, of a network of windows of `num_frame`.

    Truth is of the middle frame, or of every frame.
    """
    lq, gt = batch["lq"], batch["gt"]
    lq = lq[:, None] if lq.ndim == 4 else lq
    length, radius = lq.shape[1], num_frame // 2
    truths = {length // 2: gt} if gt.ndim == 4 else {i: gt[:, i] for i in range(length)}
    if gt.ndim == 5 and gt.shape[1] != length:
        first = (length - gt.shape[1]) // 2
        truths = {first + i: gt[:, i] for i in range(gt.shape[1])}
    outputs, wanted = [], []
    for i, truth in truths.items():
        if radius <= i < length - radius:
            window = lq[:, i - radius : i + radius + 1]
            outputs.append(network(window))
            wanted.append(truth)
    assert outputs
    return float(LOSSES[loss](torch.cat(outputs), torch.cat(wanted)))


def rough(network) -> dict:
    """A start from which no loss is by chance that of another pairing: a network that is not the identity."""
    return network | {"init_type": "kaiming"} if network["type"] == "SLDNet" else network


# ---------------------------------------------------------------------- our models with the toolbox's data sets
# Each set with a batch of two; each batch and loss with windows and with clips, whose frames are numbered otherwise.
@pytest.mark.parametrize(
    ("kind", "num_frame", "loss", "batch"),
    [
        ("REDSDataset", 3, "L1Loss", 2),
        ("REDSDataset", 5, "L1Loss", 2),
        ("REDSRecurrentDataset", 5, "L1Loss", 2),
        ("REDSRecurrentDataset", 4, "L1Loss", 2),
        ("Vimeo90KDataset", 7, "L1Loss", 2),
        ("Vimeo90KRecurrentDataset", 7, "L1Loss", 2),
        *(
            (*content, loss, batch)
            for content in (("REDSDataset", 5), ("REDSRecurrentDataset", 5))
            for loss, batch in (
                ("L1Loss", 1),
                ("L1Loss", 3),
                ("CharbonnierLoss", 1),
                ("MSELoss", 3),
                ("PyramidSSIMLoss", 1),
            )
        ),
    ],
)
def test_stage_1_on_clips_of_the_toolbox(launcher, toolbox_data, batches, kind, num_frame, batch, loss):
    train = {"datasets.train": training_set(toolbox_data, kind, num_frame, batch), "train.pixel_opt": {"type": loss}}
    assert launcher.train(still(train_options(toolbox_data, **train, network_g=rough(STUDENT)))) == 0
    model = launcher.models[-1]
    assert float(model.log_dict["l_recon"]) == pytest.approx(direct(model.net_g, batches[-1], 3, loss), rel=1e-5)


@pytest.mark.parametrize(
    ("network", "interface"), [(SINGLE, None), ({"type": "PReNet", "num_feat": 4}, None), (RIDNET, {"layout": "image"})]
)
@pytest.mark.parametrize("kind", ["PairedImageDataset", "RealESRGANPairedDataset"])
def test_networks_of_single_frames_on_images_of_the_toolbox(launcher, toolbox_data, batches, kind, network, interface):
    options = train_options(toolbox_data, **{"datasets.train": training_set(toolbox_data, kind, 1)})
    options |= {"network_g": rough(network), "interface_g": interface}
    assert launcher.train(still(changed(options, {"train.pixel_opt": {"type": "L1Loss"}}))) == 0
    model = launcher.models[-1]
    with torch.no_grad():
        lq, gt = batches[-1]["lq"], batches[-1]["gt"]
        expected = F.l1_loss(model.net_g(lq if interface else lq[:, None]), gt)
    assert float(model.log_dict["l_recon"]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "num_frame", "targets"),
    [
        ("REDSDataset", 7, 1),
        ("REDSDataset", 9, 1),
        ("REDSRecurrentDataset", 9, 3),
        ("Vimeo90KDataset", 7, 1),
        ("Vimeo90KRecurrentDataset", 7, 1),
    ],
)
def test_stage_2_on_clips_of_the_toolbox(launcher, toolbox_data, tiny_teacher, batches, kind, num_frame, targets):
    """The student's targets are those that the teacher has whole windows for; both see their own windows."""
    train = {"datasets.train": training_set(toolbox_data, kind, num_frame, 1), "train.pixel_opt": {"type": "L1Loss"}}
    output = {"type": "OutputDistillation", "weights": {"output": 1.0}}
    options = distill_options(toolbox_data, tiny_teacher, **train, network_g=rough(STUDENT))
    assert launcher.train(still(changed(options, {"train.distill_opt": output}))) == 0
    model, lq = launcher.models[-1], batches[-1]["lq"]
    gt = batches[-1]["gt"] if batches[-1]["gt"].ndim == 5 else batches[-1]["gt"][:, None]
    middle = slice((num_frame - targets) // 2, (num_frame + targets) // 2)
    truth = gt if gt.shape[1] == 1 else gt[:, middle]
    assert model.gt.shape[1] == truth.shape[1] == targets
    teacher = SLDNet(preset="teacher", num_feat=4).eval()
    teacher.load_state_dict(torch.load(tiny_teacher, weights_only=True)["params_ema"])
    with torch.no_grad():
        at = range(num_frame)[middle]
        student = torch.stack([model.net_g(lq[:, i - 1 : i + 2]) for i in at], 1)
        taught = torch.stack([teacher(lq[:, i - 3 : i + 4]) for i in at], 1)
    assert float(model.log_dict["l_recon"]) == pytest.approx(float((student - truth).abs().mean()), rel=1e-5)
    assert float(model.log_dict["l_output"]) == pytest.approx(float((student - taught).abs().mean()), rel=1e-4)


def test_adapters_where_the_data_set_names_no_frames(launcher, toolbox_data):
    torch.save(SLDNet(preset="student3", num_feat=6).state_dict(), launcher.folder / "wide.pth")
    options = distill_options(
        toolbox_data,
        "wide.pth",
        **{"datasets.train": training_set(toolbox_data, "PairedImageDataset", 1), "network_g": SINGLE},
        network_t=SINGLE | {"num_feat": 6},
    )
    taps = {"student": ["conv22"], "teacher": ["conv22"], "adapters": ["conv1x1"]}
    options["train"]["distill_opt"] |= {"taps": taps}
    assert launcher.train(options) == 0
    assert launcher.models[-1].teachers[0].objective.convs[0].weight.shape[:2] == (6, 4)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(
    ("kind", "num_frame", "words"),
    [
        ("REDSDataset", 5, ["a network needs 7; set its num_frame to 7 or more"]),
        ("REDSRecurrentDataset", 5, ["the clips need 7 frames or more; set its num_frame to that"]),
        ("PairedImageDataset", 1, ["PairedImageDataset gives lq (2, 3, 24, 24)", "networks of single frames"]),
        ("RealESRGANPairedDataset", 1, ["single frames", "use a data set of clips"]),
        ("SingleImageDataset", 1, ["SingleImageDataset gives no gt", "learn from pairs", "PairedVideoDataset"]),
    ],
)
def test_pairs_that_cannot_be_are_one_line(launcher, toolbox_data, tiny_teacher, capfd, stage, kind, num_frame, words):
    train = {"datasets.train": training_set(toolbox_data, kind, num_frame)}
    teacher = {"network_g": TEACHER, "path.param_key_g": "params"}
    if stage == 1:
        options = train_options(toolbox_data, **train, **teacher)
    else:
        options = distill_options(toolbox_data, tiny_teacher, **train)
    assert launcher.train(options) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: options.yml: line ") and ": datasets.train: " in error
    assert all(word in error for word in words), error
    assert launcher.written() == []


LACKING = [
    ("io_backend", "PairedImageDataset needs it, but it is missing; give it"),
    ("gt_size", "PairedImageDataset needs it, but it is missing; give it"),
    ("dataroot_flow", "REDSDataset needs it, but it is missing; give it"),
    ("interval_list", "REDSDataset needs it, but it is missing; give it"),
    ("batch_size_per_gpu", " is missing: give a whole number, 1 or more"),
    ("num_worker_per_gpu", " is missing: give a whole number, 0 or more"),
    ("name", " is None: give the set a name"),
]


@pytest.mark.parametrize(("key", "words"), LACKING)
def test_what_a_set_of_the_toolbox_lacks_is_said_before_the_start(launcher, toolbox_data, capfd, key, words):
    kind = words.split()[0] if words[0] != " " else "REDSDataset"
    content = training_set(toolbox_data, kind, 3)
    del content[key]
    network = {"network_g": STUDENT if kind == "REDSDataset" else SINGLE}
    assert launcher.train(train_options(toolbox_data, **{"datasets.train": content}, **network)) == 2
    [error] = capfd.readouterr().err.strip().splitlines()
    assert f": datasets.train.{key}" in error and words in error
    assert launcher.written() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"io_backend": None}, "datasets.val.io_backend: PairedImageDataset needs it, but it is missing; give it"),
        ({"dataroot_gt": "nowhere"}, "datasets.val: nowhere: no such file or directory; check the path"),
        ({"name": None}, "datasets.val.name is None: give the set a name"),
    ],
)
def test_a_validation_set_of_the_toolbox_is_found_before_the_start(launcher, toolbox_data, capfd, changes, words):
    options = train_options(toolbox_data, network_g=SINGLE, val={"val_freq": 2, "save_img": False})
    options["datasets"] = {
        "train": training_set(toolbox_data, "PairedImageDataset", 1),
        "val": test_set(toolbox_data, "PairedImageDataset", **changes),
    }
    assert launcher.train(options) == 2
    [error] = capfd.readouterr().err.strip().splitlines()
    assert words in error
    assert launcher.written() == []


@pytest.fixture
def twelve(launcher, toolbox_data):
    """Options of a training on twelve images, with batches of a given size."""
    for kind in ("gt", "lq"):
        folder = launcher.folder / "few" / kind
        folder.mkdir(parents=True)
        for i in range(12):
            os.link(toolbox_data / f"reds/{kind}/001/{i:08d}.png", folder / f"{i}.png")

    def options(batch: int) -> dict:
        few = training_set(toolbox_data, "PairedImageDataset", 1, batch) | roots(Path("few"), "{}")
        return train_options(toolbox_data, network_g=SINGLE, **{"datasets.train": few, "train.total_iter": 52})

    return options


class Placed(list):
    """A data set of ours, of which a process gets the whole samples of its share alone."""

    places = None


@pytest.mark.parametrize(
    ("dataset", "ratio", "batch", "processes", "done", "advice"),
    [
        (Placed(range(7)), 1, 2, 2, 11, 4),
        (range(3), 5, 2, 1, 98, 10),
        (range(5), 1.4, 3, 1, 70, 6),
    ],
)
def test_epochs_of_several_processes_and_parts_that_end_too_soon(dataset, ratio, batch, processes, done, advice):
    from csd_plugin.models.data_checks import _check_epochs

    total = 20 if processes == 2 else 100
    content = {"dataset_enlarge_ratio": ratio, "batch_size_per_gpu": batch}
    opt = {"world_size": processes, "train": {"total_iter": total}}
    with pytest.raises(CSDError, match=f"after {done} of {total} iterations; set dataset_enlarge_ratio to {advice}$"):
        _check_epochs(dataset, "clips", content, opt)
    _check_epochs(dataset, "clips", content | {"dataset_enlarge_ratio": advice}, opt)


@pytest.mark.parametrize(("batch", "done", "ratio"), [(16, 0, 4), (27, 0, 9), (7, 27, 7)])
def test_sets_of_the_toolbox_that_end_too_soon(launcher, twelve, capfd, monkeypatch, batch, done, ratio):
    from csd_plugin.models import data_checks

    assert launcher.train(twelve(batch)) == 2
    [error] = capfd.readouterr().err.strip().splitlines()
    assert f": datasets.train: with 12 samples and batches of {batch}, training would end after {done} of 52" in error
    assert error.endswith(f"set dataset_enlarge_ratio to {ratio}")
    assert launcher.written() == ["few"]
    enlarged = {"datasets.train.dataset_enlarge_ratio": ratio, "train.total_iter": 3, "name": "enlarged"}
    assert launcher.train(changed(twelve(batch), enlarged)) == 0

    monkeypatch.setattr(data_checks, "_check_epochs", lambda *arguments: None)  # so many it does
    assert launcher.train(twelve(batch)) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: datasets.train: training has ended after {done} of 52 iterations, as its epochs")
    experiment = launcher.folder / "experiments/run"
    states = {int(path.stem) for path in experiment.glob("training_states/*.state")}
    assert max(states, default=0) == done
    assert not (experiment / "models/net_g_latest.pth").exists()


@pytest.mark.parametrize("kind", ["REDSDataset", "PairedImageDataset"])
def test_the_trial_of_a_set_of_the_toolbox_changes_nothing_of_the_run(
    launcher, toolbox_data, batches, monkeypatch, kind
):
    from csd_plugin.models import data_checks

    network = STUDENT if kind == "REDSDataset" else SINGLE
    options = train_options(toolbox_data, **{"datasets.train": training_set(toolbox_data, kind, 3)}, network_g=network)
    assert launcher.train(options) == 0
    experiment = launcher.folder / "experiments"
    assert "is built." in next(experiment.glob("run/train_run_*.log")).read_text()
    tried = len(batches)
    monkeypatch.setattr(data_checks, "_try_foreign_set", lambda *arguments: None)
    assert launcher.train(changed(options, {"name": "untried"})) == 0
    for one, two in zip(batches[:tried], batches[tried:], strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert equal(launcher.weights("net_g_latest"), launcher.weights("net_g_latest", "untried"))


@pytest.mark.parametrize("stage", [1, 2])
def test_networks_that_cannot_run_are_one_line(launcher, tiny_rain, tiny_teacher, capfd, stage):
    """Attention over 8 channels that are reduced to none; the toolbox builds it."""
    broken = {"network_g": RIDNET | {"mid_channels": 8}, "interface_g": {"layout": "image", "feature": "tail"}}
    options = train_options(tiny_rain, **broken) if stage == 1 else distill_options(tiny_rain, tiny_teacher, **broken)
    assert launcher.train(options) == 2
    [error] = capfd.readouterr().err.strip().splitlines()
    assert "network_g: RIDNet fails on clips (2, 8, 3, 24, 24) (" in error and "gt_size" in error
    assert launcher.written() == []


def test_a_layer_without_its_compiled_part_is_one_line(launcher, tiny_rain, capfd):
    """StyleGAN2's activation, which runs on a GPU alone, and there only where the toolbox was compiled."""
    network = {"network_g": {"type": "StyleGAN2Discriminator", "out_size": 32}, "interface_g": {"layout": "image"}}
    assert launcher.train(train_options(tiny_rain, **network)) == 2
    assert "network_g: StyleGAN2Discriminator fails on clips" in capfd.readouterr().err.strip().splitlines()[-1]
    assert launcher.written() == []


def test_the_advice_works(launcher, toolbox_data, tiny_teacher):
    for kind, num_frame in (("REDSDataset", 7), ("REDSRecurrentDataset", 7)):
        train = {"datasets.train": training_set(toolbox_data, kind, num_frame)}
        assert launcher.train(distill_options(toolbox_data, tiny_teacher, name=kind, **train)) == 0


# ---------------------------------------------------------------------- and scored on its test sets
@pytest.fixture
def identity(launcher):
    """Checkpoints of networks that return their middle frame exactly."""
    for name in ("student2", "student3"):
        network = SLDNet(preset=name, num_feat=4)
        torch.nn.init.zeros_(network.conv22.weight[:, 3:].detach())
        torch.save({"params_ema": network.state_dict()}, launcher.folder / f"{name}.pth")


def read(path: Path) -> np.ndarray:
    return np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])


WARPING = {"warping": {"type": "calculate_warping_error", "better": "lower"}}


@pytest.mark.parametrize("model", ["VideoDerainModel", "DistillModel"])
@pytest.mark.parametrize("num_frame", [3, 5])
@pytest.mark.parametrize("kind", ["VideoTestDataset", "VideoTestDUFDataset", "VideoTestVimeo90KDataset"])
def test_our_models_are_scored_on_test_clips_of_the_toolbox(launcher, toolbox_data, identity, kind, num_frame, model):
    options = scoring_options(toolbox_data, "student2.pth", model_type=model, **{"val.metrics": WARPING})
    options["datasets"] = {"test_1": test_set(toolbox_data, kind, num_frame)}
    options["val"]["save_img"] = True
    assert launcher.test(options) == 0
    name = options["datasets"]["test_1"]["name"]
    clips = json.loads((launcher.folder / f"results/row/{name}.json").read_text())["clips"]
    if kind == "VideoTestVimeo90KDataset":  # single frames, of many clips under one name
        files = {("vimeo90k", f"00001_{clip}_im4"): f"vimeo/{{}}/00001/{clip}/im4.png" for clip in ("001", "002")}
    else:
        files = {
            (clip, f"{i:04d}"): f"test/{{}}/{clip}/{i:04d}.png" for clip in ("clip001", "clip002") for i in range(4)
        }
    assert {(clip, frame) for clip, content in clips.items() for frame in content["frames"]} == files.keys()
    for (clip, frame), file in files.items():
        rain, truth = (read(toolbox_data / file.format(kind)) for kind in ("lq", "gt"))
        scored = clips[clip]["frames"][frame]
        for protocol, quality in score_frame(rain, truth).items():
            assert scored[protocol] == pytest.approx(quality._asdict(), abs=1e-9)
        if frame in ("0000", "00001_001_im4", "00001_002_im4"):
            assert "measures" not in scored  # no frame of another clip is the one before
        else:
            previous = file.replace(frame, f"{int(frame) - 1:04d}")
            before = [read(toolbox_data / previous.format(kind)) for kind in ("lq", "gt")]
            expected = warping_error(rain, before[0], truth, before[1])
            assert scored["measures"]["warping"] == pytest.approx(expected)
    written = {path.name for path in (launcher.folder / f"results/row/visualization/{name}").rglob("*.png")}
    assert written == {f"{frame}_row.png" for _, frame in files}


@pytest.mark.parametrize("model", ["VideoDerainModel", "DistillModel"])
@pytest.mark.parametrize("kind", ["PairedImageDataset", "RealESRGANPairedDataset"])
def test_our_models_are_scored_on_images(launcher, toolbox_data, identity, kind, model):
    options = scoring_options(toolbox_data, "student3.pth", model_type=model, network_g=SINGLE)
    options["datasets"] = {"test_1": test_set(toolbox_data, kind)}
    options["val"]["metrics"] = WARPING  # of neighbours, which images have not
    assert launcher.test(options) == 0
    [(clip, content)] = json.loads((launcher.folder / "results/row/images.json").read_text())["clips"].items()
    assert (clip, sorted(content["frames"])) == ("images", [f"{i:04d}" for i in range(4)])
    for frame, scored in content["frames"].items():
        images = (read(toolbox_data / f"test/{kind}/clip001/{frame}.png") for kind in ("lq", "gt"))
        expected = {protocol: quality._asdict() for protocol, quality in score_frame(*images).items()}
        assert scored == {protocol: pytest.approx(quality, abs=1e-9) for protocol, quality in expected.items()}


def test_images_without_truth_are_derained(launcher, toolbox_data, identity):
    options = scoring_options(toolbox_data, "student3.pth", network_g=SINGLE, **{"val.save_img": True})
    options["datasets"] = {"test_1": test_set(toolbox_data, "SingleImageDataset", dataroot_gt=None)}
    assert launcher.test(options) == 0
    written = launcher.folder / "results/row/visualization/images/images"
    for i in range(4):
        rain = read(toolbox_data / f"test/lq/clip001/{i:04d}.png")
        assert np.array_equal(read(written / f"{i:04d}_row.png"), rain)


def test_a_network_of_sequences_sees_no_frames_of_others(launcher, toolbox_data):
    """Items of Vimeo-90K follow each other in the set, and not in time."""
    from csd_plugin.archs.s2vd import S2VD

    net = S2VD(num_feat=4, num_block=1).eval()
    torch.save({"params_ema": net.state_dict()}, launcher.folder / "s2vd.pth")
    options = scoring_options(toolbox_data, "s2vd.pth", network_g=SEQUENCE, **{"val.save_img": True})
    options["datasets"] = {"test_1": test_set(toolbox_data, "VideoTestVimeo90KDataset", 5)}
    assert launcher.test(options) == 0
    for clip in ("001", "002"):
        frames = [read(toolbox_data / f"vimeo/lq/00001/{clip}/im{i}.png") for i in range(2, 7)]
        window = torch.from_numpy(np.stack(frames)).movedim(-1, 1)[None].float() / 255
        with torch.no_grad():
            expected = (net(window)[0, 2].clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
        name = f"results/row/visualization/vimeo/vimeo90k/00001_{clip}_im4_row.png"
        assert np.abs(read(launcher.folder / name).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("model", ["VideoDerainModel", "DistillModel"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (("VideoRecurrentTestDataset", {"cache_data": True}), ["whole clips; use type: VideoTestDataset", "e: 3"]),
        (("VideoRecurrentTestDataset", {}), ["whole clips; use type: VideoTestDataset", "num_frame: 3"]),
        (("VideoTestDataset", {"name": "mine"}), ["datasets.test_1.name is 'mine'", "vid4, reds4, redsofficial"]),
        (("VideoTestDataset", {"num_frame": 1}), ["num_frame of the data set to 3 or more"]),
        (("PairedImageDataset", {}), ["single images, but network_g needs 3 frames", "num_frame: 3"]),
        (("REDSDataset", {}), ["REDSDataset is for training", "VideoTestDataset"]),
        (("Vimeo90KDataset", {}), ["Vimeo90KDataset is for training"]),
        (("REDSRecurrentDataset", {}), ["whole clips; use type: VideoTestDataset"]),
    ],
)
def test_test_sets_that_cannot_be_are_one_line(launcher, toolbox_data, identity, capfd, content, words, model):
    kind, changes = content
    if kind.startswith(("REDS", "Vimeo")):
        dataset = training_set(toolbox_data, kind, 3) | {"phase": "test"}
    else:
        dataset = test_set(toolbox_data, kind, **changes)
    options = scoring_options(toolbox_data, "student2.pth", model_type=model, datasets={"test_1": dataset})
    assert launcher.test(options) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and all(word in error for word in words), error


# ---------------------------------------------------------------------- the toolbox's models with our data sets
def stock(options: dict, model: str, network: dict, **changes) -> dict:
    return changed(still(options), {"model_type": model, "network_g": rough(network), **changes})


def ours(data: Path, kind: str, num_frame: int, num_target: int, batch: int) -> dict:
    frames = {"num_frame": num_frame, "num_target": num_target, "batch_size_per_gpu": batch}
    changes = {f"datasets.train.{key}": value for key, value in frames.items()}
    if kind == "RenderedRainDataset":
        changes["datasets.train.dataroot"] = str(data / "Dataset_Training_Synthetic")
        changes["datasets.train.split"] = "train"
    return train_options(data, **changes, **{"datasets.train.type": kind, "datasets.train.dataset_enlarge_ratio": 6})


OURS = ["PairedVideoDataset", "RenderedRainDataset", "ResidentVideoDataset"]


@pytest.mark.parametrize(
    ("kind", "model", "network", "num_frame", "num_target", "batch", "loss"),
    [
        *((kind, "VideoBaseModel", STUDENT, 3, 1, 3, "L1Loss") for kind in OURS),
        ("PairedVideoDataset", "VideoBaseModel", STUDENT, 3, 1, 1, "PyramidSSIMLoss"),
        ("PairedVideoDataset", "SRModel", STUDENT, 3, 1, 3, "L1Loss"),
        ("PairedVideoDataset", "SRModel", SINGLE, 1, 1, 1, "L1Loss"),
        ("PairedVideoDataset", "SRModel", SINGLE, 1, 1, 3, "L1Loss"),
        ("PairedVideoDataset", "EDVRModel", STUDENT, 3, 1, 3, "L1Loss"),
        ("PairedVideoDataset", "VideoRecurrentModel", SEQUENCE, 5, 5, 1, "PyramidSSIMLoss"),
        ("PairedVideoDataset", "VideoRecurrentModel", SEQUENCE, 5, 5, 3, "L1Loss"),
        ("ResidentVideoDataset", "VideoRecurrentModel", SEQUENCE, 5, 5, 3, "L1Loss"),
    ],
)
def test_the_toolboxs_models_on_our_clips(
    launcher, tiny_rain, batches, model, network, num_frame, num_target, kind, batch, loss
):
    options = ours(tiny_rain, kind, num_frame, num_target, batch)
    assert launcher.train(stock(options, model, network, **{"train.pixel_opt": {"type": loss}})) == 0
    net, fed = launcher.models[-1].net_g, batches[-1]
    shape = (batch, 3, SIZE, SIZE)
    assert fed["gt"].shape == (shape if num_target == 1 else (batch, num_target, *shape[1:]))
    with torch.no_grad():
        output = net(fed["lq"])
        expected = LOSSES[loss](output.reshape(-1, *shape[1:]), fed["gt"].reshape(-1, *shape[1:]))
    assert float(launcher.models[-1].log_dict["l_pix"]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("model", "network", "frames", "words"),
    [
        ("SRModel", STUDENT, (9, 5), ["cannot process", "num_frame"]),
        (
            "VideoBaseModel",
            STUDENT,
            (3, 3),
            ["would compare different frames", "set num_target of datasets.train to 1"],
        ),
        ("VideoBaseModel", STUDENT, (5, 1), ["expected (B, 3, 3, H, W)", "set num_frame to what it needs"]),
        ("VideoBaseModel", SEQUENCE, (5, 5), ["network of sequences", "VideoRecurrentModel"]),
        ("VideoRecurrentModel", STUDENT, (3, 3), ["network of windows", "VideoBaseModel"]),
        ("VideoRecurrentModel", SEQUENCE, (5, 1), ["set num_target of datasets.train to its num_frame"]),
        ("VideoRecurrentModel", SEQUENCE, (5, 3), ["set num_target of datasets.train to its num_frame"]),
        ("SRModel", RIDNET, (1, 1), ["RIDNet) cannot process", "interface_g"]),
        ("RealESRNetModel", SINGLE, (1, 1), ["does not take pairs of frames", "high_order_degradation: false"]),
    ],
)
def test_mixes_that_would_train_wrongly_are_one_line(launcher, tiny_rain, capfd, model, network, frames, words):
    options = stock(ours(tiny_rain, "PairedVideoDataset", *frames, 2), model, network)
    assert launcher.train(options) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert all(word in lines[0] for word in words), lines[0]
    assert launcher.written() == []


def test_bytes_are_for_models_that_divide(launcher, tiny_rain, capfd):
    options = stock(ours(tiny_rain, "PairedVideoDataset", 3, 1, 2), "VideoBaseModel", STUDENT)
    assert launcher.train(changed(options, {"datasets.train.as_uint8": True})) == 2
    assert "datasets.train.as_uint8" in capfd.readouterr().err


GAN = {
    "network_d": {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4},
    "train.gan_opt": {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 0.1},
    "train.optim_d": {"type": "Adam", "lr": 1e-30},
    "train.pixel_opt": {"type": "L1Loss"},
}


@pytest.mark.parametrize("model", ["SRGANModel", "ESRGANModel", "VideoGANModel"])
def test_the_toolboxs_gans_on_our_clips(launcher, tiny_rain, batches, model):
    options = stock(ours(tiny_rain, "PairedVideoDataset", 3, 1, 2), model, STUDENT, **GAN)
    assert launcher.train(options) == 0
    expected = direct(launcher.models[-1].net_g, batches[-1], 3, "L1Loss")
    assert float(launcher.models[-1].log_dict["l_g_pix"]) == pytest.approx(expected, rel=1e-5)


def test_the_toolboxs_models_validate_on_our_clips(launcher, tiny_rain):
    options = stock(ours(tiny_rain, "PairedVideoDataset", 3, 1, 2), "VideoBaseModel", STUDENT)
    options["datasets"]["val"] = scored_set(tiny_rain)
    options["val"] = {"val_freq": 1, "save_img": False, "metrics": None}
    assert launcher.train(options) == 0
    image = changed(options, {"model_type": "SRModel", "name": "image"})
    image["val"]["metrics"] = {"psnr": {"type": "calculate_psnr", "crop_border": 0}}
    assert launcher.train(image) == 0
    model = launcher.models[-1]
    folder = tiny_rain / "Dataset_Testing_Synthetic"
    psnrs = []
    for clip in ("a1", "b1"):
        rain = [read(folder / f"{clip}_Rain/{i:05d}.png") for i in range(1, 5)]
        for i in range(3):
            frames = np.stack([rain[abs(i + step)] for step in (-1, 0, 1)])
            with torch.no_grad():
                window = torch.from_numpy(frames).movedim(-1, 1)[None].float() / 255
                result = model.net_g_ema(window)[0].clamp(0, 1).mul(255).round().byte().movedim(0, -1).numpy()
            psnrs.append(cv2.PSNR(result, read(folder / f"{clip}_GT/{i + 1:05d}.png")))
    assert model.metric_results["psnr"] == pytest.approx(np.mean(psnrs), abs=1e-3)


@pytest.mark.parametrize(
    ("model", "network", "changes", "words"),
    [
        ("VideoRecurrentModel", SEQUENCE, {}, ["cannot validate on a CPU"]),
        ("VideoBaseModel", STUDENT, {"val.metrics": ...}, ["val.metrics is missing", "metrics: ~"]),
        ("VideoBaseModel", STUDENT, {"datasets.val.split": "real"}, ["ra1 has no truth", "VideoDerainModel"]),
        ("VideoBaseModel", STUDENT, {"datasets.val.num_frame": 5}, ["datasets.val gives clips (1, 5, 3, 30, 40)"]),
        ("SRModel", STUDENT, {"datasets.val.type": "PairedVideoDataset"}, ["is for training"]),
        (
            "VideoBaseModel",
            STUDENT,
            {"val.metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 0}}},
            ["computes metrics only on a GPU"],
        ),
    ],
)
def test_validations_that_would_be_wrong_are_one_line(launcher, tiny_rain, capfd, model, network, changes, words):
    frames = (5, 5) if network is SEQUENCE else (3, 1)
    options = stock(ours(tiny_rain, "PairedVideoDataset", *frames, 2), model, network)
    options["datasets"]["val"] = scored_set(tiny_rain)
    options["val"] = {"val_freq": 1, "save_img": False, "metrics": None}
    assert launcher.train(changed(options, changes)) == 2
    [error] = capfd.readouterr().err.strip().splitlines()
    assert all(word in error for word in words), error


def test_the_recurrent_model_validates_middle_frames_where_it_is_told(tiny_rain):
    """On a GPU alone: on a CPU it takes the first axis off the frames that it is about to derain."""
    from basicsr.archs import build_network

    from csd_plugin.models.pairing import check_pairs

    options = stock(ours(tiny_rain, "PairedVideoDataset", 5, 5, 2), "VideoRecurrentModel", SEQUENCE)
    options["datasets"] = {"val": scored_set(tiny_rain) | {"phase": "val"}}
    options |= {"num_gpu": 1, "val": {"save_img": False, "metrics": None, "center_frame_only": True}}

    def check(options):
        check_pairs(options, lambda: build_network(dict(SEQUENCE)))

    check(options)
    with pytest.raises(CSDError, match=r"compares whole clips; set val\.center_frame_only: true"):
        check(changed(options, {"val.center_frame_only": ...}))


@pytest.mark.parametrize("model", ["VideoDerainModel", "SRModel"])
def test_data_sets_in_the_wrong_place_are_one_line(launcher, tiny_rain, capfd, model):
    options = stock(ours(tiny_rain, "PairedVideoDataset", 3, 1, 2), model, STUDENT)
    train = {"name": "t", "type": "PairedVideoTestDataset", "dataroot": str(tiny_rain), "num_frame": 3}
    assert launcher.train(changed(options, {"datasets.train": train})) == 2
    assert "PairedVideoTestDataset is for tests; use type: PairedVideoDataset" in capfd.readouterr().err


# ---------------------------------------------------------------------- our networks, its models, its data
@pytest.mark.parametrize(
    ("model", "network", "kind", "num_frame"),
    [
        ("VideoBaseModel", STUDENT, "REDSDataset", 3),
        ("VideoBaseModel", TEACHER, "Vimeo90KDataset", 7),
        ("SRModel", SINGLE, "PairedImageDataset", 1),
        ("SRModel", {"type": "PReNet", "num_feat": 4}, "PairedImageDataset", 1),
        ("VideoRecurrentModel", SEQUENCE, "REDSRecurrentDataset", 5),
        ("VideoRecurrentModel", SEQUENCE, "Vimeo90KRecurrentDataset", 7),
    ],
)
def test_our_networks_in_the_toolboxs_models_on_its_data(
    launcher, toolbox_data, batches, model, network, kind, num_frame
):
    train = {"datasets.train": training_set(toolbox_data, kind, num_frame), "train.pixel_opt": {"type": "L1Loss"}}
    assert launcher.train(stock(train_options(toolbox_data, **train), model, network)) == 0
    net, fed = launcher.models[-1].net_g, batches[-1]
    with torch.no_grad():
        output = net(fed["lq"])
    assert output.shape == fed["gt"].shape
    expected = float((output - fed["gt"]).abs().mean())
    assert float(launcher.models[-1].log_dict["l_pix"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("model", "metrics", "words"),
    [
        ("VideoBaseModel", {"psnr": {"type": "calculate_psnr", "crop_border": 0}}, "metrics only on a GPU"),
        ("VideoRecurrentModel", None, "VideoRecurrentModel cannot validate on a CPU"),
    ],
)
def test_what_the_toolbox_cannot_validate_is_one_line(launcher, toolbox_data, capfd, model, metrics, words):
    recurrent = model == "VideoRecurrentModel"
    train = training_set(toolbox_data, "REDSRecurrentDataset" if recurrent else "REDSDataset", 3)
    options = train_options(toolbox_data, **{"datasets.train": train})
    options = stock(options, model, SEQUENCE if recurrent else STUDENT)
    kind = "VideoRecurrentTestDataset" if recurrent else "VideoTestDataset"
    options["datasets"]["val"] = test_set(toolbox_data, kind, cache_data=True)
    options["val"] = {"val_freq": 1, "save_img": False, "metrics": metrics}
    assert launcher.train(options) == 2
    [error] = capfd.readouterr().err.strip().splitlines()
    assert words in error


@pytest.mark.parametrize(
    ("model", "network", "kind", "words"),
    [
        (
            "VideoRecurrentModel",
            SEQUENCE,
            "REDSDataset",
            ["L1Loss: the network's output is (1, 5", "REDSRecurrentDataset"],
        ),
        ("VideoBaseModel", SEQUENCE, "REDSDataset", ["network of sequences"]),
        ("VideoBaseModel", STUDENT, "REDSDataset", ["expected (B, 3, 3, H, W)", "check num_frame"]),
    ],
)
def test_mixes_of_three_that_would_train_wrongly_are_one_line(
    launcher, toolbox_data, capfd, model, network, kind, words
):
    train = {"datasets.train": training_set(toolbox_data, kind, 5, 1), "train.pixel_opt": {"type": "L1Loss"}}
    assert launcher.train(stock(train_options(toolbox_data, **train), model, network)) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and all(word in error for word in words), error

"""Our networks and clips under each of the toolbox's models: trained, resumed, validated and tested, or one line."""

from __future__ import annotations

import pytest
from toolbox import SHALLOW_STUDENT, changed, equal, scored_set, scoring_options, train_options

WINDOWS = {"type": "SLDNet", **SHALLOW_STUDENT}
IMAGES = {"type": "SLDNet", "num_frame": 1, "num_feat": 4, "num_pair": 1, "num_transition": 0, "reducing": []}
SEQUENCES = {"type": "S2VD", "num_feat": 4, "num_block": 1}
FRAMES = {"windows": (WINDOWS, 3, 1), "images": (IMAGES, 1, 1), "sequences": (SEQUENCES, 3, 3)}
"""A network, and num_frame and num_target of the clips that it learns from."""
GAN = {
    "network_d": {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4},
    "train.gan_opt": {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 0.1},
    "train.optim_d": {"type": "Adam", "lr": 0.001},
}
PSNR = {"psnr": {"type": "calculate_psnr", "crop_border": 0}}

OF_IMAGES, OF_VIDEOS = ("SRModel", "SRGANModel", "ESRGANModel"), ("VideoBaseModel", "EDVRModel", "VideoGANModel")
TESTED = [(model, kind) for model in OF_IMAGES + OF_VIDEOS for kind in ("windows", "images")]
RECURRENT = [("VideoRecurrentModel", "sequences"), ("VideoRecurrentGANModel", "sequences")]
"""These cannot validate on a CPU, which `test_pairs` has."""


def options_of(data, model: str, kind: str, **changes) -> dict:
    network, num_frame, num_target = FRAMES[kind]
    frames = {"datasets.train.num_frame": num_frame, "datasets.train.num_target": num_target}
    parts = {"model_type": model, "network_g": network, "train.pixel_opt": {"type": "L1Loss"}}
    recurrent = {"train.fix_flow": 0} if model == "VideoRecurrentGANModel" else {}
    return changed(train_options(data, **frames, **parts, **(GAN if "GAN" in model else {}), **recurrent), changes)


@pytest.mark.parametrize(("model", "kind"), TESTED + RECURRENT)
def test_they_train_and_resume(launcher, tiny_rain, capfd, model, kind):
    options = options_of(tiny_rain, model, kind, **{"train.total_iter": 1, "logger.save_checkpoint_freq": 1})
    assert launcher.train(options) == 0
    assert launcher.train(changed(options, {"train.total_iter": 2}), "--auto_resume") == 0
    assert "Resuming training from epoch: 0, iter: 1" in capfd.readouterr().err
    for name in ("net_g", "net_d") if "GAN" in model else ("net_g",):
        assert not equal(launcher.weights(f"{name}_2"), launcher.weights(f"{name}_1"))


@pytest.mark.parametrize(("model", "kind"), TESTED)
def test_they_validate_and_test_our_clips(launcher, tiny_rain, capfd, model, kind):
    """Models of images by their metric; those of videos, which need a GPU for it, by the frames that they write."""
    video = model in OF_VIDEOS
    clips = scored_set(tiny_rain, num_frame=FRAMES[kind][1])
    options = options_of(tiny_rain, model, kind, **{"datasets.val": clips, "train.total_iter": 1})
    options["val"] = {"val_freq": 1, "save_img": False, "metrics": None if video else PSNR}
    assert launcher.train(options) == 0
    assert video or "# psnr: " in capfd.readouterr().err

    checkpoint = launcher.folder / "experiments/run/models/net_g_latest.pth"
    test = scoring_options(tiny_rain, checkpoint, model_type=model, network_g=FRAMES[kind][0])
    test["datasets"]["test_1"] = clips
    test["val"] = {"save_img": video, "suffix": None, "metrics": None if video else PSNR}
    assert launcher.test(test) == 0
    written = (launcher.folder / "results/row/visualization").rglob("*.png")
    frames = {f"{clip}/{number:05d}_row.png" for clip in ("a1", "b1") for number in (1, 2, 3)}
    assert {f"{path.parent.name}/{path.name}" for path in written} == (frames if video else set())
    assert video or "# psnr: " in capfd.readouterr().err


@pytest.mark.parametrize("model", ["SRModel", "SRGANModel"])
def test_frames_that_would_overwrite_each_other_are_one_line(launcher, tiny_rain, capfd, model):
    """Models of images write frames by their names alone, which all clips have."""
    options = options_of(tiny_rain, model, "windows", **{"datasets.val": scored_set(tiny_rain)})
    options["val"] = {"val_freq": 2, "save_img": True, "metrics": PSNR}
    assert launcher.train(options) == 2
    [error] = capfd.readouterr().err.strip().splitlines()
    assert "val.save_img: " in error and "2 clips of datasets.val have a 00001" in error
    assert launcher.written() == []
    options["datasets"]["val"]["clips"] = ["a1"]
    assert launcher.train(options) == 0
    assert len(list(launcher.folder.rglob("0000[123]_2.png"))) == 3


@pytest.mark.parametrize(
    ("model", "kind", "changes", "words"),
    [
        ("SRGANModel", "windows", {"datasets.train.num_target": 3}, "set num_target of datasets.train to 1"),
        ("ESRGANModel", "sequences", {}, "use model_type: VideoDerainModel, or VideoRecurrentModel"),
        ("VideoGANModel", "sequences", {}, "use model_type: VideoDerainModel, or VideoRecurrentModel"),
        ("EDVRModel", "sequences", {}, "use model_type: VideoDerainModel, or VideoRecurrentModel"),
        ("VideoRecurrentGANModel", "windows", {}, "use model_type: VideoDerainModel, or VideoBaseModel"),
        (
            "VideoRecurrentGANModel",
            "sequences",
            {"datasets.train.num_target": 1},
            "num_target of datasets.train to its",
        ),
        ("VideoRecurrentGANModel", "sequences", {"train.fix_flow": ...}, "write `fix_flow: 0` for none"),
        ("SRGANModel", "windows", {"network_d": ...}, "network_d is missing, but SRGANModel needs it"),
        ("VideoGANModel", "windows", {"train.gan_opt": ...}, "train.gan_opt is missing"),
        ("ESRGANModel", "images", {"train.optim_d": ...}, "train.optim_d is missing"),
        ("VideoDerainModel", "windows", GAN, "network_d: models of csd-plugin have no discriminator"),
    ],
)
def test_what_does_not_fit_is_one_line(launcher, tiny_rain, capfd, model, kind, changes, words):
    assert launcher.train(options_of(tiny_rain, model, kind, **changes)) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == (4 if changes is GAN else 1)  # a count, and network_d, gan_opt, optim_d
    assert any(words in line for line in lines), lines
    assert launcher.written() == []

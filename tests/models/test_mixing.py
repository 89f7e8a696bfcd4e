"""Losses and metrics of the toolbox under our models: they work, or are one line before anything is written."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from toolbox import scored_set, train_options

from csd_plugin import registration
from csd_plugin.errors import CSDError
from csd_plugin.metrics.results import load_results
from csd_plugin.models.mixing import check_loss, check_metric, check_metric_size

METRICS = {
    "psnr": {"type": "calculate_psnr", "crop_border": 0},
    "ssim": {"type": "calculate_ssim", "crop_border": 0, "test_y_channel": True},
}


@pytest.mark.parametrize(
    "loss",
    [
        {"type": "L1Loss", "loss_weight": 0.5},
        {"type": "MSELoss"},
        {"type": "CharbonnierLoss", "reduction": "sum"},
        {"type": "PyramidSSIMLoss"},
    ],
)
def test_losses_of_the_toolbox_train_and_its_metrics_are_computed(launcher, tiny_rain, capfd, loss):
    options = train_options(tiny_rain, **{"train.pixel_opt": loss})
    options["datasets"]["val"] = scored_set(tiny_rain)
    assert launcher.train(options | {"val": {"val_freq": 2, "save_img": False, "metrics": METRICS}}) == 0
    said = capfd.readouterr().err
    assert all(f"# {name}: " in said for name in METRICS)
    assert launcher.models[-1].net_g.conv1.weight.grad.any()


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ({"type": "WeightedTVLoss"}, "WeightedTVLoss: it does not compare the output with the truth"),
        ({"type": "GANLoss", "gan_type": "vanilla"}, "GANLoss: it cannot compare an output with the truth"),
        ({"type": "MultiScaleGANLoss", "gan_type": "vanilla"}, "MultiScaleGANLoss: it cannot compare an output"),
        ({"type": "L1Loss", "reduction": "none"}, "L1Loss: it returns a tensor of (1, 3, 64, 64), not one number"),
    ],
)
def test_losses_that_are_for_something_else_are_one_line(launcher, tiny_rain, capfd, loss, words):
    assert launcher.train(train_options(tiny_rain, **{"train.pixel_opt": loss})) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: options.yml: line ") and ": train.pixel_opt: " in error and words in error
    assert launcher.written() == []


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ({"type": "calculate_psnr"}, "missing 1 required positional argument: 'crop_border'"),
        ({"type": "calculate_psnr_pt", "crop_border": 0}, "it cannot be computed"),
        ({"type": "calculate_psnr", "crop_border": 200}, "nan"),
    ],
)
def test_metrics_that_are_for_something_else_are_one_line(launcher, tiny_rain, capfd, metric, words):
    options = train_options(tiny_rain)
    options["datasets"]["val"] = scored_set(tiny_rain)
    assert launcher.train(options | {"val": {"val_freq": 2, "save_img": False, "metrics": {"m": metric}}}) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: options.yml: line ") and ": val.metrics.m: " in error and words in error
    assert launcher.written() == []


NIQE = {"type": "calculate_niqe", "crop_border": 0, "better": "lower"}


def test_frames_that_are_too_small_for_a_metric_are_one_line_before_the_run(launcher, tiny_rain, capfd):
    options = train_options(tiny_rain)
    options["datasets"]["val"] = scored_set(tiny_rain)
    assert launcher.train(options | {"val": {"val_freq": 2, "save_img": False, "metrics": {"niqe": NIQE}}}) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert "val.metrics.niqe: it cannot be computed on frames of 40x30 (datasets.val, clip a1): " in error
    assert error.endswith("leave it out, or use larger frames")
    assert launcher.written() == []


@pytest.mark.parametrize(
    ("size", "works"), [((95, 640), False), ((96, 96), False), ((96, 192), True), ((480, 640), True)]
)
def test_niqe_needs_two_blocks(size, works):
    registration.install()
    from basicsr.metrics import calculate_niqe

    if works:
        check_metric_size(calculate_niqe, size, {"crop_border": 0}, "a1")
        return
    with pytest.raises(CSDError, match=f"frames of {size[1]}x{size[0]} .a1.: .*; leave it out"):
        check_metric_size(calculate_niqe, size, {"crop_border": 0}, "a1")


def test_a_metric_that_fails_in_the_middle_of_a_validation(caplog, monkeypatch):
    """By the size of the frames, which show late in data sets of others: a line. By what is in one: it has no value."""
    registration.install()
    from basicsr.utils import get_root_logger
    from basicsr.utils.registry import METRIC_REGISTRY

    from csd_plugin.models.validation import ValidationMixin

    monkeypatch.setattr(get_root_logger(), "propagate", True)  # off, once a run has set up its log in this process

    def picky(img, **keywords):
        if min(img.shape[:2]) < 64 or not img.any():
            raise IndexError("nothing there")
        return 1.0

    model = ValidationMixin()
    model.opt = {"val": {"metrics": {"m": {"type": "picky"}}}}
    METRIC_REGISTRY._obj_map["picky"] = picky
    try:
        assert model._toolbox_metrics({"img": np.full((70, 80, 3), 9, np.uint8)}, "clip c, frame 1") == {"m": 1.0}
        assert model._toolbox_metrics({"img": np.zeros((70, 80, 3), np.uint8)}, "clip c, frame 2") == {}
        with pytest.raises(CSDError, match=r"val.metrics.m: .* frames of 70x50 .clip c, frame 3.: nothing there"):
            model._toolbox_metrics({"img": np.full((50, 70, 3), 9, np.uint8)}, "clip c, frame 3")
    finally:
        del METRIC_REGISTRY._obj_map["picky"]
    assert "val.metrics.m: clip c, frame 2 has no value: nothing there" in caplog.text


def test_nan_in_a_validation_is_no_value_and_never_the_best(launcher, tiny_rain, monkeypatch, capfd):
    registration.install()
    given = iter([np.nan, 5.0, 4.0, 4.0])  # the toolbox validates once more at the end
    monkeypatch.setattr("csd_plugin.models.validation.calculate_metric", lambda *_: next(given))
    metrics = {"m": METRICS["psnr"] | {"better": "lower"}}
    options = train_options(tiny_rain, **{"logger.keep_best": "m", "train.total_iter": 3})
    options["datasets"]["val"] = scored_set(tiny_rain, clips=["a1"], frame_range=[1, 1])
    assert launcher.train(options | {"val": {"val_freq": 1, "save_img": False, "metrics": metrics}}) == 0
    said = capfd.readouterr().err
    assert "WARNING: val.metrics.m: clip a1, frame 00001 has no value: it is nan" in said
    folder = launcher.folder / "experiments/run"
    means = [load_results(folder / f"metrics/rain_{i}.json").scores.metric_means() for i in (1, 2, 3)]
    assert means == [{}, {"m": 5.0}, {"m": 4.0}]
    assert launcher.models[-1].best_metric_results["rain"]["m"] == (4.0, 3)
    assert (folder / "models/net_g_best.pth").is_file()


@pytest.fixture
def offline(monkeypatch, tmp_path_factory) -> Path:
    """Without a network, the folder where torch keeps weights."""

    def refuse(*arguments, **keywords):
        raise URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    home = tmp_path_factory.mktemp("torch")
    monkeypatch.setenv("TORCH_HOME", str(home))
    return home / "hub/checkpoints"


def test_weights_that_cannot_be_downloaded_are_one_line(launcher, tiny_rain, capfd, offline):
    loss, fetch = {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1.0}}, torch.hub.download_url_to_file
    assert launcher.train(train_options(tiny_rain, **{"train.pixel_opt": loss})) == 2
    assert torch.hub.download_url_to_file is fetch
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: options.yml: line ") and ": train.pixel_opt: vgg19-" in error
    assert f".pth is not in {offline}, and cannot be downloaded (" in error
    assert error.endswith(", and put it there") and "https://" in error
    assert launcher.written() == []


class Anything(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, output, truth):
        return self.function(output, truth)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda output, truth: (output, None), "a tuple, not one number"),
        (lambda output, truth: None, "a NoneType, not one number"),
        (lambda output, truth: output.mean(), "does not compare"),
        (lambda output, truth: -(output - truth).abs().mean(), "does not compare"),
        (lambda output, truth: (output.detach() - truth).abs().mean(), "does not compare"),
        (lambda output, truth: output @ torch.zeros(3), "cannot compare"),
    ],
)
def test_what_no_training_could_use(function, words):
    with pytest.raises(CSDError, match=words):
        check_loss(Anything(function), 16)


def test_what_it_could():
    check_loss(Anything(lambda output, truth: -torch.exp(-(output - truth).square().mean())), 16)
    check_metric(lambda img: 1.0)
    check_metric(lambda img, img2, **keywords: keywords["factor"] * (img == img2).mean(), factor=2)

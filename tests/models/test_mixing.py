"""Losses and metrics of the toolbox under our models: they work, or are one line before anything is written."""

from __future__ import annotations

import pytest
import torch
from toolbox import scored_set, train_options

from csd_plugin.errors import CSDError
from csd_plugin.models.mixing import check_loss, check_metric

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
        ({"type": "L1Loss", "reduction": "none"}, "L1Loss: it gives a tensor of (1, 3, 64, 64), not one number"),
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

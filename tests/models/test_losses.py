"""Losses in addition to `pixel_opt`: BasicSR's perceptual one, and others by name."""

from __future__ import annotations

import pytest
import torch
from test_objectives import options_of
from toolbox import changed, train_options

from csd_plugin import registration

EXTRA = {"edge": {"type": "L1Loss", "loss_weight": 0.5}, "square": {"type": "MSELoss"}}


@pytest.fixture
def vgg(monkeypatch):
    """VGG19 without weights to download: its first block, narrow."""
    registration.install()
    from basicsr.archs import vgg_arch

    class Narrow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                layers = [torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3, padding=1)]
                self.features = torch.nn.Sequential(*layers)

    monkeypatch.setattr(vgg_arch.vgg, "vgg19", lambda pretrained: Narrow())
    return {"type": "PerceptualLoss", "layer_weights": {"conv1_2": 1.0}, "perceptual_weight": 0.1, "style_weight": 0.2}


def test_they_are_added_and_logged_by_name(launcher, tiny_rain, vgg):
    more = {"train.perceptual_opt": vgg, "train.extra_opt": EXTRA, "train.total_iter": 1, "train.ema_decay": 0}
    assert launcher.train(train_options(tiny_rain, **more)) == 0
    assert launcher.train(train_options(tiny_rain, name="alone", **{"train.total_iter": 1, "train.ema_decay": 0})) == 0
    log, alone = (model.log_dict for model in launcher.models)
    parts = {name: log[f"recon/{name}"] for name in ("pixel", "perceptual", "edge", "square")}
    assert all(value > 0 for value in parts.values())
    assert log["l_recon"] == pytest.approx(sum(parts.values()), rel=1e-6)
    assert parts["pixel"] == alone["l_recon"] and not any(name.startswith("recon/") for name in alone)

    model = launcher.models[0]
    frames, truth = torch.rand(2, 3, 24, 24), torch.rand(2, 3, 24, 24)
    features, style = model.cri_perceptual(frames, truth)
    total = model.cri_pix(frames, truth) + features + style
    total += 0.5 * (frames - truth).abs().mean() + (frames - truth).square().mean()
    assert sum(model.reconstruction(frames, truth).values()).item() == pytest.approx(total.item(), rel=1e-6)
    assert not any("vgg" in name for name in launcher.weights("net_g_latest"))


def test_a_student_learns_from_them_and_from_its_teacher(launcher, tiny_rain, tiny_teacher, vgg):
    more = {"train.perceptual_opt": vgg, "train.extra_opt": EXTRA}
    options = options_of(tiny_rain, tiny_teacher, "CSD", **more)
    options["train"]["distill_opt"]["weights"] = {"spatial": {"balance": 0.3}, "temporal": 0.1}
    assert launcher.train(options) == 0
    model = launcher.models[-1]
    parts = [model.log_dict[f"recon/{name}"] for name in ("pixel", "perceptual", "edge", "square")]
    assert model.log_dict["l_recon"] == pytest.approx(sum(parts), rel=1e-6) and min(parts) > 0
    assert model.log_dict["l_distill"] > 0
    assert not any("reconstruction" in name for name in model.distiller.state_dict())


def test_the_perceptual_loss_may_stand_alone(launcher, tiny_rain, vgg):
    assert launcher.train(train_options(tiny_rain, **{"train.pixel_opt": vgg})) == 0
    assert launcher.models[-1].log_dict["l_recon"] > 0


def test_any_word_is_a_name(launcher, tiny_rain):
    """Also those of attributes of torch's modules."""
    names = ["keys", "type", "forward", "training"]
    options = train_options(tiny_rain, **{"train.extra_opt": {name: {"type": "L1Loss"} for name in names}})
    assert launcher.train(options) == 0
    assert all(launcher.models[-1].log_dict[f"recon/{name}"] > 0 for name in names)


def test_a_balance_needs_one_loss_with_a_weight(launcher, tiny_rain, tiny_teacher, capsys):
    balance = {"spatial": {"balance": 0.3}, "temporal": 0.1}
    off = {"train.pixel_opt.loss_weight": 0, "train.extra_opt": {"edge": {"type": "L1Loss", "loss_weight": 0}}}
    options = options_of(tiny_rain, tiny_teacher, "CSD", **off)
    options["train"]["distill_opt"]["weights"] = balance
    before = launcher.written()
    assert launcher.train(options) == 2
    expected = "but train.pixel_opt.loss_weight is 0, as are those of all others; set that, or give the term a number"
    assert expected in capsys.readouterr().err and launcher.written() == before
    assert launcher.train(changed(options, {"train.extra_opt": None})) == 2
    assert "but train.pixel_opt.loss_weight is 0; set that, or" in capsys.readouterr().err
    assert launcher.train(changed(options, {"train.extra_opt.edge.loss_weight": 1})) == 0


def test_a_loss_that_has_come_is_named_on_resume(launcher, tiny_rain, capfd):
    options = train_options(tiny_rain)
    assert launcher.train(options) == 0
    more = {"train.total_iter": 3, "train.extra_opt": {"edge": {"type": "L1Loss"}}}
    assert launcher.train(changed(options, more), "--auto_resume") == 0
    assert "train.extra_opt" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.extra_opt": {"type": "L1Loss"}}, "train.extra_opt.type is 'L1Loss'"),
        ({"train.extra_opt": {"edge": {"type": "L1Los"}}}, "train.extra_opt.edge.type: 'L1Los' is unknown; did you"),
        ({"train.extra_opt": {"edge": {"type": "L1Loss", "loss_wait": 1}}}, "train.extra_opt.edge: "),
        ({"train.extra_opt": {"smooth": {"type": "WeightedTVLoss"}}}, "train.extra_opt.smooth: WeightedTVLoss: it"),
        ({"train.extra_opt": {"pixel": {"type": "L1Loss"}}}, "train.extra_opt.pixel: name it by letters, digits"),
        ({"train.extra_opt": {"perceptual": {"type": "L1Loss"}}}, "train.extra_opt.perceptual: name it by letters"),
        ({"train.extra_opt": {"a.b": {"type": "L1Loss"}}}, "train.extra_opt.a.b: name it by letters, digits"),
        ({"train.perceptual_opt": {"type": "PerceptualLoss"}}, "train.perceptual_opt: "),
        (
            {"train.perceptual_opt": {"type": "PerceptualLoss", "layer_weights": {}, "perceptual_weight": -1}},
            "train.perceptual_opt.perceptual_weight is -1: input should be greater than or equal to 0",
        ),
        ({"train.pixel_opt": {}}, "train.pixel_opt.type is missing"),
        ({"train.perceptual_opt": {}}, "train.perceptual_opt.type is missing"),
        ({"train.perceptual_opt": 3}, "train.perceptual_opt is 3"),
        (
            {"train.extra_opt": {"edge": {"type": "L1Loss", "loss_weight": "1e-2"}}},
            "train.extra_opt.edge.loss_weight is '1e-2': input should be a valid number; YAML reads 1e-2 as text",
        ),
        ({"train.pixel_opt": {"type": "L1Loss", "loss_weight": -1}}, "train.pixel_opt.loss_weight is -1: input should"),
        (
            {"train.perceptual_opt": {"type": "PerceptualLoss", "layer_weights": {}, "style_weight": "1e-2"}},
            "train.perceptual_opt.style_weight is '1e-2': input should be a valid number",
        ),
    ],
)
def test_mistakes_are_one_line(launcher, tiny_rain, capsys, changes, words):
    assert launcher.train(train_options(tiny_rain, **changes)) == 2
    [error] = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert words in error
    assert launcher.written() == []

"""`train.layers`: layers that learn at a rate of their own, later than the others, or not at all."""

from __future__ import annotations

import pytest
import torch
from test_exact_resume import assert_same, resumed_and_whole
from toolbox import changed, distill_options, train_options, two_processes

SGD = {"train.optim_g": {"type": "SGD", "lr": 0.01}, "train.ema_decay": 0, "train.total_iter": 1}


def steps(launcher, options, name, layers, total=1):
    """How much each weight changes in `total` steps of a run."""
    more = {"name": name, "train.layers": layers, "train.total_iter": total, "logger.save_checkpoint_freq": 1}
    options = changed(options, more)
    assert launcher.train(options) == 0
    start = options["path"]["pretrain_network_g"]
    before = torch.load(start, weights_only=True)["params"]
    return {key: value - before[key] for key, value in launcher.weights("net_g_latest", name).items()}


@pytest.fixture
def options(launcher, tiny_rain):
    """Training by plain gradients, from the weights of an earlier run."""
    options = train_options(tiny_rain, **SGD)
    assert launcher.train(changed(options, {"name": "start"})) == 0
    start = launcher.folder / "experiments/start/models/net_g_latest.pth"
    return changed(options, {"path.pretrain_network_g": str(start)})


def test_a_rate_of_its_own_scales_the_steps_of_a_layer(launcher, options):
    usual = steps(launcher, options, "usual", None)
    scaled = steps(launcher, options, "scaled", {"conv1": {"lr_mul": 0.5}, "conv13.weight": {"lr_mul": 4.0}})
    for name, step in usual.items():
        # conv10 to conv13 have conv1 in their names, and the longest key counts
        factor = 4.0 if name == "conv13.weight" else 0.5 if name.startswith("conv1") else 1.0
        torch.testing.assert_close(scaled[name], step * factor, rtol=1e-3, atol=1e-7)
    assert launcher.models[-1].get_current_learning_rate() == [0.01, 0.005, 0.04]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_frozen_layers_wait_and_then_learn(launcher, options, accumulate):
    options = changed(options, {"train.accumulate": accumulate})
    layers = {"conv7": {"frozen": 1}, "conv22": {"frozen": True}, "conv8": {"frozen": 5e3, "lr_mul": 0.5}}
    first = steps(launcher, options, "first", layers, 1)
    two = steps(launcher, options, "two", layers, 2)
    usual = steps(launcher, options, "usual", None, 1)
    for name, step in usual.items():
        waits, never = name.startswith(("conv7", "conv8")), name.startswith("conv22")
        expected = torch.zeros_like(step) if waits or never else step
        torch.testing.assert_close(first[name], expected, rtol=1e-3, atol=1e-7)
        assert two[name].any() == (not never and not name.startswith("conv8"))
    network = launcher.models[0].net_g
    assert all(weight.requires_grad for weight in network.parameters())
    frozen = {name for name, weight in launcher.models[-2].net_g.named_parameters() if not weight.requires_grad}
    assert frozen == {"conv22.weight", "conv22.bias"}
    log = next((launcher.folder / "experiments/two").glob("*.log")).read_text()
    assert "train.layers.conv22: 327 weights, frozen." in log
    assert "train.layers.conv8: 436 weights, learning rate x 0.5, frozen for 5,000 iterations." in log


def test_the_norm_of_the_gradient_is_without_frozen_layers(launcher, options):
    options = changed(options, {"train.grad_clip": 100.0})
    steps(launcher, options, "all", None)
    norm = launcher.models[-1].log_dict["grad_norm"]
    network = launcher.models[-1].net_g
    expected = torch.cat([weight.grad.flatten() for name, weight in network.named_parameters() if "conv22" not in name])
    for name, frozen in {"for_good": True, "for_now": 1}.items():
        steps(launcher, options, name, {"conv22": {"frozen": frozen}})
        assert launcher.models[-1].log_dict["grad_norm"] == pytest.approx(expected.norm().item(), rel=1e-4)
    assert expected.norm() < norm


def test_a_student_with_frozen_layers_is_resumed_to_the_last_bit(launcher, tiny_rain, tiny_teacher):
    layers = {"conv8": {"frozen": 3}, "conv7": {"lr_mul": 0.5}, "conv1.": {"frozen": True, "lr_mul": 2.0}}
    options = distill_options(tiny_rain, tiny_teacher, **{"train.layers": layers})
    whole, cut = resumed_and_whole(launcher, options, cut=2, total=4)
    assert_same(whole, cut)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"conv8": {"frozen": 1}}, {"conv8": {"frozen": 2}}, "train.layers.conv8.frozen 1 -> 2"),
        ({}, {"conv8": {"lr_mul": 0.5}}, "train.layers.conv8.lr_mul None -> 0.5"),
        ({"conv8": {"frozen": True}}, {}, "train.layers.conv8.frozen True -> None"),
    ],
)
def test_layers_that_have_changed_are_named(launcher, tiny_rain, capfd, before, after, words):
    options = train_options(tiny_rain, **{"train.layers": before})
    assert launcher.train(options) == 0
    status = launcher.train(changed(options, {"train.layers": after, "train.total_iter": 4}), "--auto_resume")
    assert words in capfd.readouterr().err
    fits = before.keys() == after.keys()
    assert status == (0 if fits else 2)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({"convv22": {"frozen": True}}, "train.layers.convv22: is unknown; did you mean conv22"),
        ({"conv22": {}}, "train.layers.conv22: nothing is said of it; give lr_mul or frozen"),
        ({"conv22": {"lr_mul": 0}}, "train.layers.conv22.lr_mul is 0"),
        ({"conv22": {"frozen": -1}}, "train.layers.conv22.frozen is -1: input should be greater than or equal to 1"),
        ({"conv22": {"frozen": 1.5}}, "train.layers.conv22.frozen is 1.5: input should be a multiple of 1"),
        ({"": {"frozen": True}}, "train.layers: an empty key names no layer"),
        ({"conv22": {"freeze": 1}}, "train.layers.conv22.freeze is unknown; did you mean frozen"),
        ({"conv22": True}, "train.layers.conv22 is True"),
        ({"conv": {"frozen": True}}, "all weights of network_g are frozen"),
        ({"conv": {"frozen": 3}}, "all weights of network_g are frozen"),
        (
            {"conv22": {"lr_mul": 2.0}, "conv22.weight": {"frozen": 1}, "conv22.bias": {"frozen": 1}},
            "train.layers.conv22: longer keys name all of its weights",
        ),
    ],
)
def test_layers_that_make_no_sense_are_one_line(launcher, tiny_rain, capsys, layers, words):
    assert launcher.train(train_options(tiny_rain, **{"train.layers": layers})) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert launcher.written() == []


class Bare(torch.nn.Module):
    """A network of windows with such layers."""

    num_frame = 3

    def __init__(self, *layers):
        super().__init__()
        self.layers = torch.nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Bare(), "network_g: Bare cannot be trained: it has no weights"),
        (Bare(torch.nn.Conv2d(3, 3, 1)).requires_grad_(False), "all of its weights are frozen (requires_grad is Fal"),
    ],
)
def test_a_network_without_weights_that_learn_is_one_line(
    launcher, tiny_rain, tiny_teacher, capsys, monkeypatch, network, words
):
    from csd_plugin.models import preflight

    monkeypatch.setattr(preflight, "build_network", lambda content, where: network)
    for options in (train_options(tiny_rain), distill_options(tiny_rain, tiny_teacher)):
        assert launcher.train(options) == 2
        assert words in capsys.readouterr().err
        assert launcher.written() == []


def test_layers_to_freeze_count_with_those_that_the_network_froze():
    from csd_plugin.errors import CSDError
    from csd_plugin.models.layers import check_layers

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1).requires_grad_(False), torch.nn.Conv2d(3, 3, 1))
    check_layers({"1.weight": {"frozen": True}}, network)
    with pytest.raises(CSDError, match="all weights of network_g are frozen"):
        check_layers({"1": {"frozen": True}}, network)


@pytest.mark.parametrize(
    ("key", "instead"), [("fix_flow", "spynet: {frozen: 5000}"), ("dcn_lr_mul", "dcn: {lr_mul: 0.5}")]
)
def test_the_keys_of_the_toolbox_are_translated(launcher, tiny_rain, capsys, key, instead):
    assert launcher.train(train_options(tiny_rain, **{f"train.{key}": 0.5})) == 2
    assert instead in capsys.readouterr().err


def test_several_processes_freeze_the_same_layers(tmp_path, launcher, options):
    layers = {"conv7": {"frozen": 1}, "conv22": {"frozen": True}, "conv8": {"lr_mul": 0.5}}
    one = steps(launcher, options, "run", layers, 2)
    options = changed(options, {"train.layers": layers, "train.total_iter": 2})
    options["datasets"]["train"]["batch_size_per_gpu"] = 1
    run = two_processes(tmp_path, options)
    assert run.returncode == 0, run.stderr[-3000:]
    before = torch.load(options["path"]["pretrain_network_g"], weights_only=True)["params"]
    after = torch.load(tmp_path / "experiments/run/models/net_g_latest.pth", weights_only=True)["params"]
    for name, step in one.items():
        torch.testing.assert_close(after[name] - before[name], step, rtol=1e-3, atol=1e-7)

"""The averaged weights against the sum that defines them, how much of the start they keep, and what is said of it."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from toolbox import changed, equal, train_options
from torch import nn

from csd_plugin.cli import main
from csd_plugin.distill.average import average_warnings, decay_at, update_average


def test_the_decay_grows_with_the_steps_up_to_the_one_asked_for():
    assert decay_at(1, 0.999) == pytest.approx(2 / 11)
    assert decay_at(90, 0.999) == pytest.approx(0.91)
    assert decay_at(8_990, 0.999) == 0.999
    assert decay_at(5, 0.1) == 0.1


def test_a_short_run_forgets_its_start():
    start, rest = 1.0, 1.0
    for step in range(1, 501):
        start *= decay_at(step, 0.999)
        rest *= 0.999
    assert start < 1e-6
    assert rest == pytest.approx(0.606, abs=1e-3)  # a constant decay keeps 61 % of it


def test_weights_are_averaged_and_buffers_copied():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    average = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    network[1].running_mean.fill_(5.0)
    expected = {
        name: 0.9 * p.detach() + 0.1 * dict(network.named_parameters())[name] for name, p in average.named_parameters()
    }
    update_average(average, network, 0.9)
    for name, parameter in average.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name].detach())
    assert average[1].running_mean.tolist() == [5.0] * 3


class Counts(nn.Module):
    """Saves a number that is neither a weight nor a buffer."""

    passes = 0

    def get_extra_state(self):
        return torch.tensor(self.passes)

    def set_extra_state(self, state):
        self.passes = int(state)


def test_extra_states_are_copied():
    network, average = (nn.Sequential(nn.Linear(1, 1), Counts()) for _ in range(2))
    network[1].passes = 7
    update_average(average, network, 0.9)
    assert average[1].passes == 7


def test_layers_that_torch_has_compiled_are_averaged():
    network, average = (torch.jit.script(nn.BatchNorm2d(2)) for _ in range(2))
    network.running_mean.fill_(5.0)
    network.weight.data.fill_(3.0)
    update_average(average, network, 0.5)
    assert average.running_mean.tolist() == [5.0, 5.0] and average.weight.tolist() == [2.0, 2.0]


class Buffers(nn.Module):
    """Saved buffers that change: of size, from none and to none; and a cache that is not saved."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        for name in ("grows", "shrinks", "ends"):
            self.register_buffer(name, torch.zeros(2))
        self.register_buffer("begins", None)
        self.register_buffer("table", torch.zeros(2), persistent=False)
        self.register_buffer("cache", torch.zeros(2), persistent=False)


def test_buffers_that_change_are_followed_as_far_as_they_are_saved():
    average, network = (nn.Sequential(nn.Identity(), Buffers()) for _ in range(2))
    changing = network[1]
    changing.grows, changing.shrinks, changing.begins, changing.ends = *map(torch.ones, (3, 1, 4)), None
    changing.register_buffer("late", torch.ones(2))
    changing.register_buffer("late_cache", torch.ones(2), persistent=False)
    changing.table, changing.cache = torch.ones(2), torch.ones(5)
    average[1].register_buffer("own_cache", torch.zeros(2), persistent=False)
    for _ in range(2):
        update_average(average, network, 0.9)
        assert equal(average[1].state_dict(), network[1].state_dict())
    assert average[1].state_dict().keys() == {"weight", "grows", "shrinks", "begins", "late"}
    assert average[1].table.tolist() == [1, 1] and average[1].cache.tolist() == [0, 0]
    changing.grows.fill_(7)
    assert average[1].grows.tolist() == [1, 1, 1]


@pytest.mark.parametrize("persistent", [True, False])
def test_buffers_that_cannot_be_written_to_are_replaced_if_they_are_saved(persistent):
    average, network = nn.Linear(1, 1), nn.Linear(1, 1)
    with torch.inference_mode():
        average.register_buffer("inferred", torch.zeros(3), persistent)
    average.register_buffer("expanded", torch.zeros(1).expand(3), persistent)
    for name in ("inferred", "expanded"):
        network.register_buffer(name, torch.ones(3), persistent)
    update_average(average, network, 0.9)
    assert average.inferred.tolist() == average.expanded.tolist() == [float(persistent)] * 3


def _followed(launcher, monkeypatch) -> list[float]:
    """The decays that a run's average is updated with, but for the copy at its start."""
    from csd_plugin.models.video_derain_model import VideoDerainModel

    decays = []
    model_ema = VideoDerainModel.model_ema

    def record(self, decay=0.999):
        decays.append(decay)
        model_ema(self, decay)

    monkeypatch.setattr(VideoDerainModel, "model_ema", record)
    return decays


def test_runs_warm_up_and_resumed_runs_go_on_with_it(launcher, tiny_rain, monkeypatch):
    decays = _followed(launcher, monkeypatch)
    options = train_options(tiny_rain, **{"train.ema_decay": 0.999, "train.total_iter": 2})
    assert launcher.train(options) == 0
    assert launcher.train(changed(options, {"train.total_iter": 4}), "--auto_resume") == 0
    assert [decay for decay in decays if decay] == [decay_at(step, 0.999) for step in (1, 2, 3, 4)]

    decays.clear()
    assert launcher.train(changed(options, {"train.ema_warmup": False, "name": "constant"})) == 0
    assert [decay for decay in decays if decay] == [0.999, 0.999]


def test_the_average_of_a_run_is_the_one_that_the_formula_gives(launcher, tiny_rain):
    options = train_options(tiny_rain, **{"train.ema_decay": 0.999, "train.total_iter": 2})
    options["logger"]["save_checkpoint_freq"] = 1
    assert launcher.train(options) == 0
    first, second = launcher.weights("net_g_1"), launcher.weights("net_g_2")
    averaged = [launcher.weights(f"net_g_{step}", key="params_ema") for step in (1, 2)]
    for name in second:
        expected = decay_at(2, 0.999) * averaged[0][name] + (1 - decay_at(2, 0.999)) * second[name]
        torch.testing.assert_close(averaged[1][name], expected)
    assert not equal(averaged[0], first)


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"ema_decay": 0.999, "total_iter": 500, "ema_warmup": False}, ["61%", "0.994"]),
        ({"ema_decay": 0.999, "total_iter": 1000, "ema_warmup": False}, ["37%", "still"]),
        ({"ema_decay": 0.999, "total_iter": 2900, "ema_warmup": False}, ["5%", "still"]),
        ({"ema_decay": 0.999, "total_iter": 3000, "ema_warmup": False}, None),  # 4.97 %
        ({"ema_decay": 0.999, "total_iter": 8000, "ema_warmup": False}, None),
        ({"ema_decay": 0.999, "total_iter": 500}, None),
        ({"ema_decay": 0.999, "total_iter": 2500, "ema_warmup": True}, None),
        ({"ema_decay": 0, "total_iter": 5, "ema_warmup": False}, None),
        ({"total_iter": 5}, None),
    ],
)
def test_an_average_that_is_long_for_its_run_is_named(train, expected):
    lines = average_warnings(train)
    assert len(lines) == (expected is not None)
    for part in expected or ():
        assert part in lines[0]


@given(steps=st.integers(1, 10**7), decay=st.floats(0.01, 1, exclude_max=True))
@example(steps=2500, decay=0.999)
def test_the_decay_that_is_advised_is_shorter_and_draws_no_warning(steps, decay):
    train = {"total_iter": steps, "ema_warmup": False}
    for line in average_warnings(train | {"ema_decay": decay}):
        advised = float(re.search(r"ema_decay (\S+) or less fits", line)[1])
        assert 0 < advised < decay
        assert average_warnings(train | {"ema_decay": advised}) == []


def test_inspect_and_the_start_of_a_run_warn(launcher, tiny_rain, capsys):
    options = train_options(tiny_rain, **{"train.ema_decay": 0.999, "train.ema_warmup": False})
    assert launcher.train(options) == 0
    assert main(["inspect", "options.yml"]) == 0
    assert "warning    train.ema_decay 0.999 without ema_warmup: after 2 steps" in capsys.readouterr().out
    [log] = (launcher.folder / "experiments" / "run").glob("train_*.log")
    assert "train.ema_decay 0.999 without ema_warmup: after 2 steps" in log.read_text()

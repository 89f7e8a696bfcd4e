"""Networks that compute something else the next time: after other frames, or when they are built anew."""

from __future__ import annotations

import pytest
import torch
from toolbox import train_options
from torch import nn

from csd_plugin.archs.interface import interface_of
from csd_plugin.cli import main
from csd_plugin.errors import CSDError
from csd_plugin.models.repeating import carry_warnings, check_rebuilt

FIXED = torch.linspace(0, 0.1, 4).view(1, 4, 1, 1)


class Plain(nn.Module):
    """(B, 1, 3, H, W) to (B, 3, H, W)."""

    num_frame, feature_tap = 1, "tail"

    def __init__(self):
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

    def body(self, x):
        return x

    def forward(self, window):
        return self.tail(self.body(self.head(window[:, 0])))


class HiddenState(Plain):
    state = None

    def body(self, x):
        before = torch.zeros_like(x) if self.state is None or self.state.shape != x.shape else self.state
        self.state = (x + before).detach()
        return self.state


class HiddenGraph(Plain):
    state = 0

    def body(self, x):
        self.state = torch.tanh(x + self.state)
        return self.state


class HiddenBuffer(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 4, 1, 1))

    def body(self, x):
        self.mean.lerp_(x.detach().mean((0, 2, 3), keepdim=True), 0.5)
        return x - self.mean


class Stale(Plain):
    """Keeps what it made of the first clip, as if it were a table."""

    table = None

    def body(self, x):
        self.table = x if self.table is None else self.table
        return x * self.table.mean()


class Keeps(Plain):
    """Its latest feature, which it does not read, and a table for a size of frames."""

    latest = table = None

    def body(self, x):
        if self.table is None or self.table.shape != x.shape[2:]:
            self.table = torch.rand(x.shape[2:], generator=torch.Generator().manual_seed(0))
        self.latest = x + self.table
        return self.latest


class Noisy(Plain):
    def body(self, x):
        return x + torch.randn_like(x)


class Normalises(Plain):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def body(self, x):
        return self.norm(x)


class Reads(Plain):
    """A tensor, or layers, that it does not register."""

    def __init__(self, held):
        super().__init__()
        self.held = held

    def body(self, x):
        held = self.held[0] if isinstance(self.held, list) else self.held
        return held(x) if isinstance(held, nn.Module) else x + held


class ReadsBuffer(Plain):
    def __init__(self, held):
        super().__init__()
        self.register_buffer("held", held, persistent=False)

    def body(self, x):
        return x + self.held


class ReadsSaved(Plain):
    """A layer in a list that is also an attribute, and a weight that is computed from two that are saved."""

    def __init__(self):
        super().__init__()
        self.one = nn.utils.weight_norm(nn.Conv2d(4, 4, 1))
        self.layers = [self.one]

    def body(self, x):
        return self.layers[0](x)


@pytest.mark.parametrize(
    ("cls", "keeps"), [(HiddenState, "state"), (HiddenGraph, "state"), (HiddenBuffer, "mean"), (Stale, "table")]
)
def test_what_a_network_carries_to_the_next_frames_is_told(cls, keeps):
    network, before = cls(), torch.get_rng_state()
    [line] = carry_warnings("network_g", network, interface_of(network), 24)
    assert f"network_g: {cls.__name__} makes other frames of a clip if another" in line
    assert f"as it keeps {keeps}:" in line
    assert network.training and torch.equal(torch.get_rng_state(), before)
    assert not torch.is_tensor(kept := getattr(network, keeps)) or not kept.any()


@pytest.mark.parametrize("cls", [Plain, Keeps, Noisy, Normalises])
def test_networks_that_begin_anew_are_left_alone(cls):
    network = cls()
    assert carry_warnings("network_g", network, interface_of(network), 24) == []


def anew():
    return torch.rand(1, 4, 1, 1)


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: Reads(anew()), "held"),
        (lambda: Reads([anew()]), "held"),
        (lambda: Reads([nn.Conv2d(4, 4, 1)]), "held"),
        (lambda: ReadsBuffer(anew()), "held"),
        (lambda: Reads(FIXED), ""),
        (lambda: ReadsBuffer(FIXED.clone()), ""),
        (ReadsSaved, ""),
        (Plain, ""),
    ],
)
def test_random_numbers_that_no_checkpoint_would_hold_are_refused(build, word):
    network = build()
    arguments = "network_g", network, build, interface_of(network), 24
    if not word:
        check_rebuilt(*arguments)
        return
    with pytest.raises(CSDError, match=rf"checkpoints would lack \({word}\); keep tensors as parameters or buffers"):
        check_rebuilt(*arguments)


@pytest.fixture
def registered(monkeypatch):
    """Puts a class into the table; what BasicSR's registry has of it is removed at the end."""
    from basicsr.utils.registry import ARCH_REGISTRY

    from csd_plugin.archs import NETWORKS

    def register(cls):
        monkeypatch.setitem(NETWORKS._rows, cls.__name__, cls)
        return {"type": cls.__name__}

    yield register
    for cls in (HiddenState, HiddenGraph, Unsaved):
        ARCH_REGISTRY._obj_map.pop(cls.__name__, None)


class Unsaved(Reads):
    def __init__(self):
        super().__init__([nn.Conv2d(4, 4, 1)])


def test_a_run_warns_of_what_is_carried(launcher, tiny_rain, registered, capfd):
    options = train_options(tiny_rain, network_g=registered(HiddenState))
    assert launcher.train(options) == 0
    assert "network_g: HiddenState makes other frames of a clip" in capfd.readouterr().err
    assert main(["inspect", "options.yml"]) == 0
    assert "warning    network_g: HiddenState makes other frames of a clip" in capfd.readouterr().out


def test_a_graph_that_is_carried_to_the_next_batch_is_one_line(launcher, tiny_rain, registered, capfd):
    assert launcher.train(train_options(tiny_rain, network_g=registered(HiddenGraph))) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: the student keeps something of one batch, such as a hidden state")


def test_a_run_of_layers_that_are_not_saved_does_not_begin(launcher, tiny_rain, registered, capfd):
    assert launcher.train(train_options(tiny_rain, network_g=registered(Unsaved))) == 2
    assert launcher.written() == []
    assert main(["inspect", "options.yml"]) == 2
    errors = capfd.readouterr().err.strip().splitlines()
    words = "network_g: Unsaved computes with random numbers that its checkpoints would lack (held)"
    assert [words in error for error in errors] == [True, True]

"""A dry run gives shapes, and leaves the network that it was asked about as it was."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from csd_plugin.archs.interface import interface_of
from csd_plugin.distill.dry_run import Clips, DryRunError, dry_run
from csd_plugin.errors import CSDError

CLIPS = Clips(batch=2, num_frame=5, num_target=3, size=8)


class Keeps(nn.Module):
    """Counts its passes, and keeps what it made for a size of frames: in an attribute, a buffer and a dict."""

    layout, feature_tap = "image", "tail"

    def __init__(self):
        super().__init__()
        self.head = nn.utils.weight_norm(nn.Conv2d(4, 6, 3, padding=1))  # its weight is of a graph after a pass
        self.norm, self.tail = nn.BatchNorm2d(6), nn.Conv2d(6, 3, 3, padding=1)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("grid", torch.zeros(1, 1), persistent=False)
        self.latest, self.cache, self._lock = None, {}, threading.Lock()

    def forward(self, x):
        size = x.shape[2:]
        if size not in self.cache:
            self.cache[size] = torch.linspace(0, 1, size[1]).expand(size)
        self.grid = self.cache[size] * 1.0
        with self._lock:
            self.calls += 1
        self.latest = self.norm(self.head(torch.cat([x, self.grid.expand(len(x), 1, *size)], dim=1)))
        self.cache["latest"] = self.latest
        return x + self.tail(self.latest)


@pytest.mark.parametrize("passes", [0, 1], ids=["new", "run before"])
def test_the_network_stays_as_it_was(passes):
    torch.manual_seed(0)
    network = Keeps()
    for _ in range(passes):
        network(torch.rand(1, 3, 6, 6))
    state = copy.deepcopy(network.state_dict())
    attributes = {path: {**vars(module), **module._buffers} for path, module in network.named_modules()}
    cache, hooks = dict(network.cache), [len(module._forward_hooks) for module in network.modules()]

    dry = dry_run(network, interface_of(network), CLIPS, None, tapped=True)
    assert dry.features == {"tail": (2, 3, 6, 8, 8)} and dry.layers["head"] == (6, 6, 8, 8)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    for path, module in network.named_modules():
        now = {**vars(module), **module._buffers}
        assert now.keys() == attributes[path].keys() and all(now[name] is attributes[path][name] for name in now)
    assert network.cache == cache and [len(module._forward_hooks) for module in network.modules()] == hooks
    assert type(network(torch.rand(1, 3, 8, 8)).sum().item()) is float


@pytest.mark.filterwarnings("error")
def test_a_network_that_was_run_without_values_before_is_run_once_more():
    network = nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 6, 3, padding=1)), nn.Conv2d(6, 3, 3, padding=1))
    network.layout, network.feature_tap = "image", "1"
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        network.eval()(torch.empty(1, 3, 8, 8))
    assert dry_run(network, interface_of(network), CLIPS, None, tapped=True).features == {"1": (2, 3, 6, 8, 8)}


def test_torch_does_not_log_what_it_raises(caplog):
    network = nn.Sequential(nn.AvgPool2d(16), nn.Conv2d(3, 3, 3))
    network.layout = "image"
    with pytest.raises(RuntimeError):
        dry_run(network, interface_of(network), CLIPS, None, tapped=False)
    assert not caplog.records


class Decides(nn.Module):
    """Looks at its frames' values, as networks do that compare a sequence with its mirror image."""

    layout, num_frame, feature_tap = "sequence", 1, "tail"

    def __init__(self):
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)
        self.kept = []

    def forward(self, clip):
        self.kept.append(clip)
        mirrored = (clip - clip.flip(1)).norm() == 0
        assert not mirrored
        return self.tail(self.head(clip.flatten(0, 1))).unflatten(0, clip.shape[:2])


def test_a_network_that_looks_at_values_is_run_if_it_may_be():
    network, random = Decides(), torch.get_rng_state()
    with pytest.raises(DryRunError, match="Decides has a control flow that depends on values"):
        dry_run(network, interface_of(network), CLIPS, None, tapped=True)
    dry = dry_run(network, interface_of(network), CLIPS, None, tapped=True, may_compute=True)
    assert dry.features == {"tail": (2, 3, 6, 8, 8)} and dry.layers == {"head": (6, 6, 8, 8), "tail": (6, 3, 8, 8)}
    assert dry.kept == 4 * 6 * (6 + 3) * 8 * 8 and dry.largest == 4 * 6 * 6 * 8 * 8
    assert not network.kept and torch.equal(torch.get_rng_state(), random)


def test_layers_that_torch_has_compiled_are_run_but_not_tapped():
    network = nn.Sequential(torch.jit.script(nn.Conv2d(3, 4, 1)), nn.Conv2d(4, 3, 1))
    interface = interface_of(network, {"layout": "image"})
    dry = dry_run(network, interface, CLIPS, ["1"], tapped=True)
    assert dry.features == {"1": (2, 3, 4, 8, 8)} and list(dry.layers) == ["1"]
    with pytest.raises(CSDError, match=r"feature tap '0': torch\.jit has compiled this layer"):
        dry_run(network, interface, CLIPS, ["0"], tapped=True)

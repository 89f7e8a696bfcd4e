"""What follows a convolution goes along with it, and nothing else changes."""

from __future__ import annotations

import operator
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_map

from csd_plugin.archs.checkpoint import load_network
from csd_plugin.archs.s2vd import S2VD
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.inference import folding, fusing
from csd_plugin.inference.folding import ALL_FILLED, DirectConv, FoldedConv3d
from csd_plugin.inference.fusing import Waiting, computed
from csd_plugin.inference.graph import ready
from csd_plugin.inference.runner import Derainer
from csd_plugin.weights import NETWORKS, find_checkpoint

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture(params=[(6, 7), (1, 1)], ids=["", "a pixel"])
def size(request):
    return request.param


@pytest.fixture(params=[lambda layer: FoldedConv3d(layer, 2), DirectConv], ids=["folded", "direct"])
def pair(request, size):
    """A 3-D convolution, the same in another form, and an input."""
    torch.manual_seed(0)
    layer = nn.Conv3d(4, 4, 3, padding=1).requires_grad_(False)
    return layer, request.param(layer), torch.randn(1, 4, 2, *size)


FOLLOWS = {
    "nothing": lambda y, x: y,
    "relu": lambda y, x: torch.relu(y),
    "module": lambda y, x: nn.ReLU()(y),
    "sum": lambda y, x: y + x,
    "sum, from the left": lambda y, x: x + y,
    "sum and relu": lambda y, x: F.relu(torch.add(x, y)),
    "two sums": lambda y, x: torch.relu(y + x + x),
    "itself": lambda y, x: torch.relu(y + y),
    "broadcast": lambda y, x: torch.relu(y + x[:, :, :1]),
    "number": lambda y, x: torch.relu(1 + y + 2),
    "weighted sum": lambda y, x: torch.add(y, x, alpha=0.5),
    "both ways": lambda y, x: torch.relu(y) + torch.sigmoid(y) + y.mean() + torch.relu(y + x),
    "list": lambda y, x: torch.cat([y, x, y], dim=1),
    "shape": lambda y, x: y.new_ones(y.shape) * y.dim(),
    "differences": lambda y, x: (y - x, x - y, 1 - y, y - 1, -y, +y, abs(y)),
    "products": lambda y, x: (0.5 * y, y * x, x * y, y @ x.transpose(-1, -2), x @ y.transpose(-1, -2)),
    "quotients": lambda y, x: (y / 2, y / (x + 9), y // 2),
    "powers": lambda y, x: (y**2, 2**y),
    "comparisons": lambda y, x: (y < 0, y <= 0, y > 0, y >= 0, y == y.clone(), y != x),
    "parts": lambda y, x: (y[:, 1:, ..., ::2], len(y), *y),
    "in place": lambda y, x: y.mul_(2),
    "augmented": lambda y, x: operator.imul(y, 3),
    "relu in place": lambda y, x: (nn.ReLU(inplace=True)(y), y),
    "relu in place, by position": lambda y, x: (F.relu(y, True), y),
    "relu_": lambda y, x: (F.relu_(y), torch.relu_(y), y.relu_(), y),
    "relu in place, seen by a view": lambda y, x: (view := y[:], F.relu_(y), view)[1:],
    "relu in place of a sum": lambda y, x: (nn.ReLU(inplace=True)(y + x), y),
    "augmented sum": lambda y, x: (torch.relu(operator.iadd(y, x)), y),
    "augmented sums": lambda y, x: (operator.iadd(operator.iadd(y, x), x), operator.iadd(y, 1), y),
    "augmented sum of what was seen": lambda y, x: (y.mean(), operator.iadd(y, x), y),
    "augmented others": lambda y, x: (operator.isub(y, x), operator.imul(y, x), operator.itruediv(y, 2), y),
    "a sum, and then in place": lambda y, x: (y + x, torch.relu_(y), y),
}


@pytest.mark.parametrize("follows", FOLLOWS.values(), ids=FOLLOWS)
def test_whatever_follows_the_result_is_the_same(pair, follows):
    layer, form, x = pair
    assert isinstance(form(x), Waiting)
    found = tree_map(computed, follows(form(x), x.clone()))
    torch.testing.assert_close(found, follows(layer(x), x.clone()), rtol=1e-5, atol=1e-5)


class Careless(nn.Module):
    """Changes what a convolution that waits has not read yet: its input, or what is added to it."""

    num_frame = 1

    def __init__(self, *, before: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.before = before

    def forward(self, window):
        x = torch.sigmoid(window[:, 0])
        y = self.first(x)
        if not self.before:
            y = y + x
        x.mul_(2)
        return torch.relu(y) + self.second(x)


class Curious(Careless):
    """Wants a tensor, and says what of torch takes none of ours."""

    def forward(self, window):
        y = self.first(window[:, 0])
        if not isinstance(y, torch.Tensor):
            raise TypeError("no tensor")
        return torch.relu(y)


class Shared(Careless):
    """Changes its input, which a layer shares where it need not copy it."""

    def forward(self, window):
        x = window[:, 0] - 0.5
        skip = self.first(x)
        y = self.second(nn.ReLU(inplace=True)(x))
        return torch.relu(skip) + y


class Changing(Careless):
    """Changes what it is given."""

    def forward(self, window):
        x = window[:, 0]
        x -= 0.5
        return torch.relu(self.second(torch.relu(self.first(x))))


class Deep(Curious):
    """With 3-D layers, which stay folded if they can."""

    def __init__(self, *, before: bool) -> None:
        super().__init__(before=before)
        self.first, self.second = (nn.Conv3d(3, 3, (1, 3, 3), padding=(0, 1, 1)) for _ in range(2))

    def forward(self, window):
        y = self.first(window.transpose(1, 2))
        if not isinstance(y, torch.Tensor):
            raise TypeError("no tensor")
        return torch.relu(self.second(y)).squeeze(2)


@pytest.mark.parametrize("network", [Careless, Shared, Changing, Curious, Deep])
@pytest.mark.parametrize("before", [True, False])
@torch.inference_mode()
def test_networks_that_cannot_wait_give_their_frames(network, before):
    torch.manual_seed(0)
    network = network(before=before)
    window = torch.rand(1, 12, 14, 1, 3).permute(0, 3, 4, 1, 2)
    for layout in (window, window.contiguous()):
        found = computed(folding.fold(network)(layout.clone()))
        torch.testing.assert_close(found, network(layout.clone()), rtol=1e-5, atol=1e-5)


def test_the_frames_of_a_careless_network_are_derained_by_it_and_that_is_said(caplog):
    torch.manual_seed(0)
    network = Shared(before=True).eval()
    folding._slower.clear()
    frames = [np.random.default_rng(i).integers(0, 256, (20, 24, 3), np.uint8) for i in range(3)]
    found = list(Derainer(network, device="cpu")(frames))
    [record] = caplog.records
    assert record.getMessage().startswith("Shared runs in a slower form")
    with torch.inference_mode():
        for ours, frame in zip(found, frames, strict=True):
            window = torch.from_numpy(frame).permute(2, 0, 1)[None, None] / 255
            exact = (network(window)[0].clamp(0, 1) * 255).permute(1, 2, 0).numpy()
            assert np.abs(ours - exact).max() <= 0.51


def test_a_network_that_changes_its_input_keeps_the_fast_form():
    folded = folding.fold(Changing(before=True))
    assert isinstance(folded.first, DirectConv) and folded.first.waits


def test_one_convolution_into_the_next(pair):
    layer, form, x = pair
    torch.testing.assert_close(computed(form(form(x))), layer(layer(x)), rtol=1e-5, atol=1e-5)


def test_sums_and_activations_of_a_network_all_go_along():
    calls = []

    def note(x, weight, bias, padding, other, relu, *stride):
        calls.append((other is not None, relu))
        return fusing.convolve(x, weight, bias, padding, other, relu, *stride)

    network = SLDNet(preset="student1", num_feat=4).eval()
    with mock.patch.object(folding, "convolve", note), torch.inference_mode():
        run = ready(network, least=ALL_FILLED)
        calls.clear()  # those of the trial
        run(torch.rand(1, 3, 3, 8, 9))
    plain, summed = (False, True), (True, True)
    assert calls == [plain, *([plain, summed, plain] * 7)[:-1], (False, False)]


@pytest.mark.parametrize("name", [*NETWORKS, "s2vd"])
@torch.inference_mode()
def test_trained_networks_give_their_frames(name, request):
    if name == "s2vd":
        network = load_network(request.getfixturevalue("shared") / "weights" / "s2vd_derainer_rho05.pt")
        assert isinstance(network, S2VD)
    else:
        network = load_network(find_checkpoint(name))
    window = torch.rand(1, network.num_frame, 3, 26, 32, generator=torch.Generator().manual_seed(0))
    for least in (folding.MIN_FILLED, ALL_FILLED):
        assert (ready(network, least=least)(window) - network(window)).abs().max() < 1e-5


@torch.inference_mode()
def test_half_precision_is_near_and_graphs_hold_plain_layers(pair):
    layer, form, x = pair
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert (computed(torch.relu(form.bfloat16()(x.bfloat16()))).float() - torch.relu(layer(x))).abs().max() < 0.05
    with mock.patch.object(torch.compiler, "is_compiling", lambda: True):
        torch.testing.assert_close(form.float()(x), layer(x), rtol=0.02, atol=0.02)

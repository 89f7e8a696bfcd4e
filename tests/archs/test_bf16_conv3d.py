"""3-D convolutions in bf16 on a CPU, of which torch's own give garbage for sizes that depend on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from csd_plugin.archs import bf16_conv3d
from csd_plugin.archs.bf16_conv3d import repair_bf16_conv3d
from csd_plugin.archs.interface import Interface
from csd_plugin.archs.short_conv import ShortConv3d


@pytest.fixture
def of_torch(monkeypatch) -> Iterator[None]:
    """torch's own layers, before and after the test."""
    with monkeypatch.context() as change:
        change.setattr(nn.Conv3d, "_conv_forward", bf16_conv3d._of_torch)
        change.setattr(nn.ConvTranspose3d, "forward", bf16_conv3d._transposed_of_torch)
        yield


@pytest.fixture
def repaired(of_torch) -> None:
    repair_bf16_conv3d()


def assert_right(network: nn.Module, x: Tensor, call: Callable[[Tensor], Tensor]) -> None:
    """What comes out in bf16, and all gradients, are those in float32."""
    results, towards = [], None
    for bf16 in (False, True):
        network.zero_grad()
        x.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = call(x).float()
        towards = torch.randn_like(output) if towards is None else towards
        output.backward(towards)
        results.append([output.detach(), x.grad, *(p.grad.clone() for p in network.parameters() if p.grad is not None)])
    for exact, ours in zip(*results, strict=True):
        assert (ours - exact).norm() < 0.02 * exact.norm()


@pytest.mark.usefixtures("repaired")
@pytest.mark.parametrize("frames", range(1, 8))
@pytest.mark.parametrize("kernel, padding", [(3, 1), (2, 0)])
def test_any_number_of_frames(frames, kernel, padding):
    torch.manual_seed(0)
    conv = nn.Conv3d(16, 16, (kernel, 3, 3), padding=(padding, 1, 1))
    x = torch.randn(3, 16, max(frames, kernel - 2 * padding), 12, 12, requires_grad=True)
    assert_right(conv, x, conv)


@pytest.mark.parametrize(
    "size, frames, settings",
    [
        ((6, 32, 64), 3, {"kernel_size": 3, "padding": 1}),
        ((4, 32, 64), 3, {"kernel_size": 3, "padding": 1}),
        ((4, 3, 15), 1, {"kernel_size": 3, "padding": 1}),
        ((2, 8, 12), 1, {"kernel_size": (2, 3, 3), "padding": 1}),
        ((2, 8, 12), 3, {"kernel_size": (5, 3, 3), "padding": (2, 1, 1)}),
        ((2, 8, 12), 5, {"kernel_size": 3, "padding": 1, "stride": (2, 1, 1)}),
        ((2, 8, 12), 5, {"kernel_size": 3, "padding": (2, 1, 1), "dilation": (2, 1, 1), "bias": False}),
        ((2, 8, 12), 4, {"kernel_size": 3, "padding": 1, "groups": 2}),
        ((2, 8, 12), 4, {"kernel_size": (2, 3, 3), "padding": "same"}),
        ((2, 8, 12), 4, {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"}),
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.usefixtures("repaired")
def test_every_kind_of_3d_convolution(size, frames, settings, memory_format):
    torch.manual_seed(0)
    batch, channels, side = size
    conv = nn.Conv3d(channels, channels, **settings)
    x = torch.randn(batch, channels, frames, side, side).contiguous(memory_format=memory_format).requires_grad_()
    assert_right(conv, x, conv)


@pytest.mark.usefixtures("repaired")
@pytest.mark.parametrize("frames", range(1, 5))
def test_transposed_ones(frames):
    torch.manual_seed(0)
    conv = nn.ConvTranspose3d(16, 16, 3, padding=1)
    x = torch.randn(2, 16, frames, 12, 12, requires_grad=True)
    assert_right(conv, x, conv)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
    conv.zero_grad()
    half = conv.to(torch.bfloat16)(x.bfloat16(), output_size=list(x.shape[2:]))
    assert half.dtype == torch.bfloat16 and half.shape == x.shape
    towards = torch.randn_like(half)
    half.backward(towards)
    ours = conv.weight.grad.float()
    exact = conv.float()
    exact.zero_grad()
    exact(x.bfloat16().float()).backward(towards.float())
    assert (ours - exact.weight.grad).norm() < 0.02 * exact.weight.grad.norm()


@pytest.mark.usefixtures("repaired")
@pytest.mark.parametrize("layer", [nn.Conv3d, nn.ConvTranspose3d])
def test_a_clip_alone(layer):
    torch.manual_seed(0)
    conv = layer(16, 16, 3, padding=1)
    assert_right(conv, torch.randn(16, 2, 12, 12, requires_grad=True), conv)


class Foreign(nn.Module):
    """Somebody's network of 3 frames, of which a layer sees two."""

    num_frame = 3

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(3, 16, (2, 3, 3), padding=(0, 1, 1))
        self.middle = nn.Conv3d(16, 16, 3, padding=1)
        self.last = nn.Conv3d(16, 3, (2, 3, 3), padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x.transpose(1, 2)))).squeeze(2)


@pytest.mark.usefixtures("of_torch")
def test_whatever_network_an_interface_runs():
    """Models, `csd adapt`, MMEngine and loops of one's own all call networks by it."""
    torch.manual_seed(0)
    network = Foreign()
    x = torch.rand(4, 4, 3, 12, 12, requires_grad=True)
    assert_right(network, x, lambda clips: Interface(3, "window").run(network, clips, 2))


@pytest.mark.usefixtures("of_torch")
def test_a_layer_of_our_networks_whoever_calls_it():
    torch.manual_seed(0)
    conv = ShortConv3d(16, 16, 3, padding=1)
    assert_right(conv, torch.rand(2, 16, 2, 12, 12, requires_grad=True), conv)


LAYERS = pytest.mark.parametrize("layer", [nn.Conv3d, nn.ConvTranspose3d])


def penalty(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Gradients of the size of a gradient."""
    result = layer(x).float().tanh().sum()
    [gradient] = torch.autograd.grad(result, x, create_graph=True)
    return list(torch.autograd.grad(gradient.float().square().sum(), (x, layer.weight)))


def of_func(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Gradients of weights and of each clip, by transforms."""
    weights = dict(layer.named_parameters())

    def loss(weights, x):
        return torch.func.functional_call(layer, weights, (x,)).float().tanh().sum()

    gradients, by_x = torch.func.grad(loss, argnums=(0, 1))(weights, x)
    by_clip = torch.func.vmap(torch.func.grad(loss, argnums=1), in_dims=(None, 0))(weights, x)
    return [*gradients.values(), by_x, by_clip]


@pytest.mark.usefixtures("repaired")
@LAYERS
@pytest.mark.parametrize("asked", [penalty, of_func])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_higher_derivatives_and_transforms(layer, asked, frames):
    torch.manual_seed(0)
    conv = layer(8, 8, 3, padding=1)
    x = torch.randn(2, 8, frames, 8, 8, requires_grad=True)
    exact = asked(conv, x)
    with torch.autocast("cpu", torch.bfloat16):
        ours = asked(conv, x)
    for one, other in zip(exact, ours, strict=True):
        assert (other - one).norm() < 0.03 * one.norm()


@pytest.mark.usefixtures("repaired")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("layer", "mode"), [(nn.Conv3d, "zeros"), (nn.Conv3d, "circular"), (nn.ConvTranspose3d, "zeros")]
)
def test_the_repaired_layers_can_be_scripted(layer, mode):
    conv, x = nn.Sequential(layer(3, 3, 3, padding=1, padding_mode=mode)), torch.rand(1, 3, 3, 8, 8)
    assert torch.equal(torch.jit.script(conv)(x), conv(x))


@pytest.mark.usefixtures("repaired")
def test_the_repaired_convolution_compiles():
    torch.manual_seed(0)
    conv = nn.Conv3d(4, 4, 3, padding=1)
    x = torch.randn(2, 4, 2, 8, 8)
    gradients = []
    for call in (conv, torch.compile(conv, backend="aot_eager", fullgraph=True)):
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            call(x).float().square().mean().backward()
        gradients.append(conv.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=0.02, atol=1e-4)

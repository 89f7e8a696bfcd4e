"""Convolutions over few frames: the numbers of torch's own, by fewer products."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from csd_plugin.archs.short_conv import ShortConv3d
from csd_plugin.archs.sldnet import SLDNet

PADDED, REDUCING = ((3, 3, 3), (1, 1, 1)), ((2, 3, 3), (0, 1, 1))


def counted(monkeypatch):
    """The weights that 2-D convolutions got."""
    flat, plain = [], F.conv2d
    monkeypatch.setattr(
        F, "conv2d", lambda x, weight, *rest: flat.append(tuple(weight.shape)) or plain(x, weight, *rest)
    )
    return flat


def passed(layer, x):
    x = x.clone().requires_grad_()
    out = layer(x)
    out.square().mean().backward()
    return [out.detach(), x.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize(
    ("shape", "frames", "weight"),
    [
        (PADDED, 1, (4, 3, 3, 3)),
        (PADDED, 2, (8, 6, 3, 3)),
        (PADDED, 3, None),
        (REDUCING, 2, (4, 6, 3, 3)),
        (REDUCING, 3, None),
    ],
    ids=["one frame", "two frames", "three frames", "two frames to one", "three frames to two"],
)
def test_results_and_gradients_are_those_of_conv3d(shape, frames, weight, monkeypatch):
    torch.manual_seed(0)
    kernel, padding = shape
    layer = ShortConv3d(3, 4, kernel, padding=padding).double()
    theirs = nn.Conv3d(3, 4, kernel, padding=padding).double()
    theirs.load_state_dict(layer.state_dict())
    x = torch.rand(2, 3, frames, 7, 5)
    expected = passed(theirs.float(), x)
    flat = counted(monkeypatch)
    found = passed(layer.float(), x)
    assert flat == ([] if weight is None else [weight])
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)


def test_where_nothing_is_learned_or_in_16_bits_it_is_torchs_own(monkeypatch):
    layer, x = ShortConv3d(3, 4, 3, padding=1), torch.rand(1, 3, 1, 5, 5)
    theirs, forward = [], nn.Conv3d.forward
    monkeypatch.setattr(nn.Conv3d, "forward", lambda layer, x: theirs.append(layer) or forward(layer, x))
    layer(x)
    assert not theirs
    with torch.no_grad():
        layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    layer.double()(x.double())
    assert len(theirs) == 3


@pytest.mark.parametrize("preset", ["teacher", "student1", "student2"])
def test_networks_learn_the_same(preset, monkeypatch):
    torch.manual_seed(0)
    network = SLDNet(preset=preset, num_feat=4, init_type="kaiming")
    window = torch.rand(2, network.num_frame, 3, 9, 8)

    def gradients(network):
        network(window).square().mean().backward()
        return [weight.grad for weight in network.parameters()]

    found = gradients(copy.deepcopy(network))
    monkeypatch.setattr(ShortConv3d, "_is_flat", lambda self, x: False)
    for ours, theirs in zip(found, gradients(network), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())

"""PReNet against a plain evaluation of its formula, with its authors' weights where they are at hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d

from csd_plugin.archs.checkpoint import load_network, read_state_dict
from csd_plugin.archs.prenet import PReNet
from csd_plugin.errors import CSDError


def plain(state, rainy, num_stage=6):
    """(B, 3, H, W) -> (B, 3, H, W), written from the paper's formulas on bare tensors."""

    def conv(name, x):
        return conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    result, h, c = rainy, 0, 0
    for _ in range(num_stage):
        x = conv("conv0.0", torch.cat([rainy, result], 1)).clamp(min=0)
        x = torch.cat([x, torch.zeros_like(x) + h], 1)
        i, f, o = (1 / (1 + torch.exp(-conv(f"conv_{gate}.0", x))) for gate in "ifo")
        c = f * c + i * conv("conv_g.0", x).tanh()
        x = h = o * c.tanh()
        for block in range(1, 6):
            inner = conv(f"res_conv{block}.0", x).clamp(min=0)
            x = (conv(f"res_conv{block}.2", inner).clamp(min=0) + x).clamp(min=0)
        result = conv("conv.0", x) + rainy
    return result


def test_parameters():
    assert sum(p.numel() for p in PReNet().parameters()) == 168_963


@pytest.mark.parametrize("num_stage", [1, 2, 6])
def test_forward_is_the_formula(num_stage):
    torch.manual_seed(0)
    network = PReNet(num_feat=5, num_stage=num_stage).double().eval()
    window = torch.rand(2, 1, 3, 9, 11, dtype=torch.float64)
    expected = plain(network.state_dict(), window[:, 0], num_stage)
    torch.testing.assert_close(network(window), expected, rtol=1e-10, atol=1e-10)


def test_published_weights_give_the_formulas_frames(shared):
    path = shared / "weights" / "prenet6_rain100h.pth"
    network = load_network(path)
    assert isinstance(network, PReNet)
    window = torch.rand(1, 1, 3, 24, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(window), plain(read_state_dict(path), window[:, 0]), rtol=1e-4, atol=1e-5)


def test_reach_is_how_far_it_sees():
    torch.manual_seed(0)
    network = PReNet(num_feat=16, num_stage=2).double()
    window = torch.rand(1, 1, 3, 5, 61, dtype=torch.float64, requires_grad=True)
    network(window)[..., 30].sum().backward()
    seen = window.grad.abs().sum(dim=(0, 1, 2, 3)).nonzero()
    assert (seen - 30).abs().max() == network.reach == 26


def test_every_weight_learns():
    network = PReNet(num_feat=4)
    network(torch.rand(1, 1, 3, 8, 8)).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_mistakes():
    with pytest.raises(CSDError, match="num_stage is 0"):
        PReNet(num_stage=0)
    with pytest.raises(CSDError, match="single frames"):
        PReNet(num_feat=2)(torch.rand(1, 3, 3, 8, 8))


def test_images_are_windows_of_one_frame():
    network, images = PReNet(num_feat=4, num_stage=2), torch.rand(2, 3, 8, 9)
    assert torch.equal(network(images), network(images[:, None]))

"""S2VD's derain network against a plain evaluation of its formula, with its authors' weights where at hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d

from csd_plugin.archs.checkpoint import load_network, read_state_dict
from csd_plugin.archs.s2vd import S2VD
from csd_plugin.errors import CSDError


def plain(state, frames):
    """(T, 3, H, W), H and W even -> (T, 3, H, W): frame by frame, each 3-D convolution as three 2-D ones."""

    def conv(name, x):
        weight, bias = state[f"{name}.conv.weight"], state.get(f"{name}.conv.bias")
        last = len(x) - 1
        near = [[x[max(t - 1, 0)], x[t], x[min(t + 1, last)]] for t in range(len(x))]
        taps = [sum(conv2d(frame[None], weight[:, :, k], padding=1) for k, frame in enumerate(n)) for n in near]
        return torch.cat(taps) + (0 if bias is None else bias.view(-1, 1, 1))

    def norm(name, x):
        mean, var, weight, bias = (
            state[f"{name}.{key}"].view(-1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x = torch.stack([frames[:, c, i::2, j::2] for c in range(3) for i in (0, 1) for j in (0, 1)], dim=1)
    x = conv("head.2", conv("head.0", x).relu())
    block = 0
    while f"body.{block}.res.0.weight" in state:
        inner = conv(f"body.{block}.res.2", norm(f"body.{block}.res.0", x).relu())
        x = x + conv(f"body.{block}.res.5", norm(f"body.{block}.res.3", inner).relu())
        block += 1
    x = conv(f"body.{block + 2}", norm(f"body.{block}", x).relu())
    rain = torch.zeros_like(frames)
    for channel in range(12):
        c, i, j = channel // 4, channel // 2 % 2, channel % 2
        rain[:, c, i::2, j::2] = x[:, channel]
    return conv("tail.4", conv("tail.2", conv("tail.0", frames - rain).relu()).relu())


def small(num_block=2):
    """A network with BatchNorm statistics that differ from their start."""
    torch.manual_seed(0)
    network = S2VD(num_feat=4, num_block=num_block)
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(2, 3, 3, 8, 8))
    return network.double().eval()


def test_parameters():
    assert sum(p.numel() for p in S2VD().parameters()) == 525_260


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_forward_is_the_formula(frames):
    network = small()
    sequence = torch.rand(2, frames, 3, 8, 10, dtype=torch.float64)
    result = network(sequence)
    for clip, expected in zip(sequence, result, strict=True):
        torch.testing.assert_close(plain(network.state_dict(), clip), expected, rtol=1e-10, atol=1e-10)


def test_odd_sizes_are_as_if_the_last_row_and_column_came_twice_in_the_half_size_part():
    network = small()
    sequence = torch.rand(1, 3, 3, 7, 9, dtype=torch.float64)
    result = network(sequence)
    assert result.shape == sequence.shape
    even = torch.cat([sequence, sequence[..., -1:, :]], dim=3)
    even = torch.cat([even, even[..., -1:]], dim=4)
    inside = (..., slice(0, 4), slice(0, 6))  # what the three last convolutions do not reach from the border
    torch.testing.assert_close(result[inside], network(even)[inside])


def test_published_weights_give_the_formulas_frames(shared):
    path = shared / "weights" / "s2vd_derainer_rho05.pt"
    network = load_network(path)
    assert isinstance(network, S2VD)
    clip = torch.rand(3, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(clip[None])[0], plain(read_state_dict(path), clip), rtol=1e-4, atol=1e-5)


def test_numbers_are_read_off_the_weights(tmp_path):
    torch.save({"params": small(num_block=3).state_dict()}, tmp_path / "net.pth")
    network = load_network(tmp_path / "net.pth")
    assert len(network.body) == 3 + 3
    assert not network.training


def test_every_weight_learns():
    network = S2VD(num_feat=4, num_block=1)
    network(torch.rand(2, 3, 3, 8, 8)).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_mistakes():
    with pytest.raises(CSDError, match="num_frame is 4"):
        S2VD(num_frame=4)
    with pytest.raises(CSDError, match="num_block 0"):
        S2VD(num_block=0)
    with pytest.raises(CSDError, match=r"expected \(B, T, 3, H, W\)"):
        S2VD(num_feat=2, num_block=1)(torch.rand(3, 8, 8))

"""The half-resolution family: sizes counted by hand, its plain formula, branches, and which frames it sees."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from csd_plugin.archs.checkpoint import load_network
from csd_plugin.archs.halfnet import PRESETS, HalfNet
from csd_plugin.errors import CSDError


def randomised(**numbers) -> HalfNet:
    """A network all of whose layers matter."""
    torch.manual_seed(1)
    network = HalfNet(**numbers)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def test_parameters_counted_by_hand():
    pair = 2 * (32 * 32 * 9 + 32)
    flat = (36 * 32 * 9 + 32) + 6 * pair + (32 * 12 * 9 + 12)
    assert count(HalfNet(preset="realtime", num_pair=6, num_deep=0)) == flat == 124_844
    deep = 2 * 2 * (64 * 64 * 9 + 64) + (32 * 64 * 9 + 64) + (64 * 128 + 128)
    assert count(HalfNet(preset="realtime")) == flat - 2 * pair + deep == 262_380
    half = (36 * 16 * 9 + 16) + 2 * (16 * 16 * 9 + 16) + (16 * 12 * 9 + 12)
    deep = 3 * 2 * (32 * 32 * 9 + 32) + (16 * 32 * 9 + 32) + (32 * 64 + 64)
    assert count(HalfNet(preset="tiny")) == half + deep == 73_820


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(8, 12), (13, 7)])
def test_it_starts_near_the_identity_at_any_size(preset, size):
    torch.manual_seed(0)
    network = HalfNet(preset=preset)
    window = torch.rand(2, network.num_frame, 3, *size)
    result = network(window)
    assert result.shape == (2, 3, *size)
    assert (result - window[:, network.num_frame // 2]).abs().mean() < 0.02


@pytest.mark.parametrize(("num_pair", "num_deep", "before"), [(2, 0, 2), (4, 2, 2), (3, 1, 2), (1, 3, 1)])
def test_the_plain_formula(num_pair, num_deep, before):
    network = randomised(num_frame=3, num_feat=4, num_pair=num_pair, num_deep=num_deep)
    window = torch.rand(1, 3, 3, 12, 8)
    x = torch.cat(
        [window[0, t, c, dy::2, dx::2][None] for t in range(3) for c in range(3) for dy in (0, 1) for dx in (0, 1)]
    )

    def through(pairs, x):
        for pair in pairs:
            x = F.relu(pair.conv2(F.relu(pair.conv1(x))) + x)
        return x

    x = through(network.body[:before], F.relu(network.head(x[None])))
    if num_deep:
        deep = network.up(through(network.deep, F.relu(network.down(x))))
        raised = x.clone()
        for c in range(4):
            for dy in (0, 1):
                for dx in (0, 1):
                    raised[:, c, dy::2, dx::2] += deep[:, 4 * c + 2 * dy + dx]
        x = F.relu(raised)
    x = network.tail(through(network.body[before:], x))[0]
    expected = window[0, 1].clone()
    for c in range(3):
        for dy in (0, 1):
            for dx in (0, 1):
                expected[c, dy::2, dx::2] += x[4 * c + 2 * dy + dx]
    torch.testing.assert_close(network(window)[0], expected)


def test_pairs_start_near_the_identity_too():
    """Their second convolution starts a tenth as large as the first, of any depth, with branches or without."""
    torch.manual_seed(0)
    for branches in (False, True):
        network = HalfNet(preset="realtime", branches=branches)
        for pair in (*network.body, *network.deep):
            first, second = ((conv.conv3x3 if branches else conv).weight for conv in (pair.conv1, pair.conv2))
            assert second.std().item() == pytest.approx(0.1 * first.std().item(), rel=0.05)


def test_sizes_that_do_not_divide_are_completed_by_repeating_the_ends():
    network = randomised(num_frame=1, num_feat=4, num_pair=1, num_deep=1)
    window = torch.rand(1, 1, 3, 9, 10)
    whole = F.pad(window, (0, 2, 0, 3, 0, 0), mode="replicate")
    torch.testing.assert_close(network(window), network(whole)[..., :9, :10])


def test_a_causal_network_sees_no_frame_after_the_target():
    network = randomised(preset="causal", num_feat=4)
    window = torch.rand(1, 5, 3, 8, 8)
    result = network(window)
    for frame in range(5):
        other = window.clone()
        other[:, frame] = torch.rand(3, 8, 8)
        assert torch.equal(network(other), result) == (frame > 2)
    assert network.num_future == 0 and HalfNet(preset="realtime").num_future == 1


@pytest.mark.parametrize("num_deep", [0, 2])
def test_branches_merge_into_the_same_function(num_deep):
    network = randomised(num_frame=3, num_feat=4, num_pair=3, num_deep=num_deep, branches=True)
    merged = network.merged()
    assert count(merged) == count(HalfNet(num_frame=3, num_feat=4, num_pair=3, num_deep=num_deep)) < count(network)
    window = torch.rand(2, 3, 3, 8, 12)
    # a pair's layer with branches is the sum of its parts
    layer, x = network.body[0].conv1, torch.rand(1, 4, 5, 5)
    torch.testing.assert_close(layer(x), layer.conv3x3(x) + layer.conv1x1(x))
    torch.testing.assert_close(merged(window), network(window))
    assert not any(a.data_ptr() == b.data_ptr() for a in merged.parameters() for b in network.parameters())


@pytest.mark.parametrize(
    "numbers",
    [
        {"preset": "tiny"},
        {"preset": "causal"},
        {"preset": "wide", "num_feat": 6},
        {"num_frame": 1, "num_feat": 2, "num_pair": 1},
        {"preset": "tiny", "num_frame": 7, "branches": True, "num_deep": 1},
    ],
)
def test_a_checkpoint_alone_rebuilds_it(numbers, tmp_path):
    network = randomised(**numbers)
    read = HalfNet.numbers_from_state(network.state_dict())
    assert {name: getattr(network, name) for name in read} == read
    torch.save({"params": network.state_dict()}, tmp_path / "net.pth")
    window = torch.rand(1, network.num_frame, 3, 8, 8)
    assert torch.equal(load_network(tmp_path / "net.pth")(window), network(window))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"preset": "small"}, "unknown preset 'small', expected one of realtime, tiny"),
        ({"num_frame": 3}, "num_feat, num_pair must be given"),
        ({"preset": "tiny", "num_frame": 4}, "num_frame is 4, expected an odd number"),
        ({"preset": "tiny", "num_feat": 0}, "num_feat is 0, expected at least 1"),
        ({"preset": "tiny", "num_deep": -1}, "num_deep is -1, expected at least 0"),
    ],
)
def test_numbers_that_make_no_network(numbers, words):
    with pytest.raises(CSDError, match=words.replace("(", r"\(")):
        HalfNet(**numbers)


def test_a_window_of_another_length_is_named():
    with pytest.raises(CSDError, match=r"expected \(B, 3, 3, H, W\)"):
        HalfNet(preset="tiny")(torch.rand(1, 5, 3, 8, 8))


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())

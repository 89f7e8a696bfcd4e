"""The SLDNet family against the paper's figures and a plain reference, and what its options refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from csd_plugin.archs.sldnet import PRESETS, SLDNet
from csd_plugin.errors import CSDError

COUNTS = {"teacher": 2_002_371, "student1": 136_563, "student2": 81_139, "student3": 186_723}
FRAMES = {"teacher": 7, "student1": 3, "student2": 3, "student3": 1}
# Written down from the paper's text: which layers follow each other, and which of them shorten time.
TRANSITIONS = (4, 7, 10, 13, 16, 19)
SHORTENS = {"teacher": (4, 7, 10, 13, 16, 19), "student1": (16, 19), "student2": (7, 10), "student3": ()}


def plain_forward(preset: str, weights: dict[str, torch.Tensor], window: torch.Tensor) -> torch.Tensor:
    """The wiring layer by layer: (B, T, 3, H, W) -> (B, 3, H, W), padding written out."""
    flat = preset == "student3"

    def conv(number: int, x: torch.Tensor) -> torch.Tensor:
        weight, bias = weights[f"conv{number}.weight"], weights[f"conv{number}.bias"]
        if flat:
            return F.conv2d(F.pad(x, (1, 1, 1, 1)), weight, bias)
        time = 0 if number in SHORTENS[preset] else 1
        return F.conv3d(F.pad(x, (1, 1, 1, 1, time, time)), weight, bias)

    x = window[:, 0] if flat else window.permute(0, 2, 1, 3, 4)
    x = F.relu(conv(1, x))
    pairs = [(2, 3), (5, 6), (8, 9), (11, 12)]
    transitions = list(TRANSITIONS)
    if preset == "student2":
        transitions = [4, 7, 10, 13]
    else:
        pairs += [(14, 15), (17, 18), (20, 21)]
    for a, b in pairs:
        x = F.relu(conv(b, F.relu(conv(a, x))) + x)
        if transitions:
            x = F.relu(conv(transitions.pop(0), x))
    x = conv(22, x)
    return x if flat else x[:, :, 0]


def randomized(network: SLDNet, seed: int = 0) -> SLDNet:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            scale = p[0].numel() ** -0.5 if p.dim() > 1 else 0.1
            p.copy_(torch.randn(p.shape, generator=generator) * scale)
    return network


@pytest.mark.parametrize("preset", PRESETS)
def test_parameter_counts_are_the_papers(preset):
    network = SLDNet(preset=preset)
    assert sum(p.numel() for p in network.parameters()) == COUNTS[preset]
    assert network.num_frame == FRAMES[preset]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("width", [None, 5])
def test_wiring_is_the_plain_references(preset, width):
    if width is None and preset == "teacher":
        width = 16  # 64 channels only repeat the others, slowly
    network = randomized(SLDNet(preset=preset, num_feat=width))
    window = torch.rand(2, FRAMES[preset], 3, 9, 12)
    expected = plain_forward(preset, network.state_dict(), window)
    assert expected.std() > 1e-3
    torch.testing.assert_close(network(window), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_network_starts_as_the_identity(preset):
    """RGB passes untouched; what the small random rest adds stays about a grey level."""
    torch.manual_seed(0)
    window = torch.randint(0, 256, (1, FRAMES[preset], 3, 16, 20)) / 255
    centre = window[:, FRAMES[preset] // 2]
    with torch.no_grad():
        network = SLDNet(preset=preset)
        assert (network(window) - centre).abs().max() < 1.5 / 255
        network.conv22.weight[:, 3:] = 0
        assert (network(window) - centre).abs().max() < 1e-6
        assert (SLDNet(preset=preset, init_type="kaiming")(window) - centre).abs().mean() > 5 / 255


def test_the_identity_start_can_learn_everywhere():
    network = SLDNet(preset="student2", num_feat=6)
    network(torch.rand(1, 3, 3, 12, 12)).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("width", [None, 3, 7])
def test_numbers_are_read_off_a_state_dict(preset, width):
    state = SLDNet(preset=preset, num_feat=width).state_dict()
    numbers = SLDNet.numbers_from_state(state)
    assert numbers == PRESETS[preset] | ({"num_feat": width} if width else {})
    SLDNet(**numbers).load_state_dict(state)


@settings(max_examples=25)
@given(st.data())
def test_every_network_that_can_be_described_runs_and_is_recognised(data):
    num_pair = data.draw(st.integers(1, 7), "num_pair")
    num_transition = data.draw(st.integers(num_pair - 1, min(num_pair, 6)), "num_transition")
    transitions = [3 * i + 4 for i in range(num_transition)]
    count = data.draw(st.integers(0, num_transition // 2), "reductions") * 2
    reducing = sorted(data.draw(st.permutations(transitions), "order")[:count])
    network = SLDNet(
        num_frame=1 + count, num_feat=3, num_pair=num_pair, num_transition=num_transition, reducing=reducing
    )
    window = torch.rand(1, 1 + count, 3, 5, 6)
    with torch.no_grad():
        assert (network(window) - window[:, count // 2]).abs().max() < 1 / 255
    assert SLDNet(**SLDNet.numbers_from_state(network.state_dict())).state_dict().keys() == network.state_dict().keys()


def test_states_of_other_networks_are_not_recognised():
    assert SLDNet.numbers_from_state({}) is None
    assert SLDNet.numbers_from_state({"conv1.weight": torch.zeros(3, 3, 3, 3)}) is None
    state = SLDNet(preset="student2", num_feat=3).state_dict()
    assert SLDNet.numbers_from_state({**state, "head.weight": torch.zeros(1)}) is None


@pytest.mark.parametrize(
    "options, words",
    [
        ({"preset": "student9"}, ["student9", "student1, student2"]),
        ({"preset": "student1", "num_frame": 4}, ["num_frame", "4", "odd"]),
        ({"preset": "student1", "num_frame": 5}, ["reducing", "num_frame - 1 = 4"]),
        ({"preset": "student1", "num_feat": 2}, ["num_feat", "at least 3"]),
        ({"preset": "student1", "reducing": [5, 8]}, ["reducing", "[5, 8]", "transitions"]),
        ({"preset": "student1", "num_transition": 3}, ["num_transition", "6 or 7"]),
        ({"preset": "student1", "num_transition": 7}, ["num_transition", "at most 6"]),
        ({"preset": "student1", "num_pair": 8, "num_transition": 7}, ["num_pair", "1 to 7"]),
        ({"preset": "student1", "init_type": "zeros"}, ["init_type", "identity"]),
        ({"num_frame": 3}, ["without a preset", "num_feat"]),
    ],
)
def test_numbers_that_make_no_network_are_refused(options, words):
    with pytest.raises(CSDError) as caught:
        SLDNet(**options)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_a_window_of_another_length_is_refused():
    with pytest.raises(CSDError, match=r"\(1, 7, 3, 8, 8\), expected \(B, 3, 3, H, W\)"):
        SLDNet(preset="student2", num_feat=3)(torch.rand(1, 7, 3, 8, 8))


def test_a_network_of_single_frames_takes_images():
    network, images = SLDNet(preset="student3", num_feat=4), torch.rand(2, 3, 8, 9)
    assert torch.equal(network(images), network(images[:, None]))
    with pytest.raises(CSDError, match=r"\(2, 3, 8, 9\), expected \(B, 3, 3, H, W\)"):
        SLDNet(preset="student2", num_feat=4)(images)

"""The exact cost of the four networks of the paper's Table 2, and the same count by torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from csd_plugin.archs.complexity import complexity
from csd_plugin.archs.sldnet import SLDNet

# preset -> parameters, multiply-adds + bias adds at 128x128
GOLDEN = {
    "teacher": (2_002_371, 127_603_359_744),
    "student1": (136_563, 5_761_449_984),
    "student2": (81_139, 2_810_232_832),
    "student3": (186_723, 3_059_269_632),
}


@pytest.mark.parametrize("preset", GOLDEN)
def test_the_papers_networks_cost_what_they_must(preset):
    network = SLDNet(preset=preset)
    # every layer is padded to its input's size, so the cost goes with the pixels: 32x32 has 1/16 of 128x128
    cost = complexity(network, (network.num_frame, 3, 32, 32))
    assert cost.parameters == GOLDEN[preset][0]
    assert cost.operations * 16 == GOLDEN[preset][1]


@pytest.mark.parametrize("preset", GOLDEN)
def test_torchs_counter_finds_the_same_multiply_adds(preset):
    with torch.device("meta"):
        network = SLDNet(preset=preset)
        window = torch.empty(1, network.num_frame, 3, 128, 128)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(window)
    ours = complexity(SLDNet(preset=preset), (network.num_frame, 3, 32, 32))
    assert ours.multiply_adds * 16 * 2 == counter.get_total_flops()


def test_the_network_stays_as_it_is():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    cost = complexity(network, (3, 8, 8))
    assert cost.bias_adds == 4 * 8 * 8
    assert network.training and not network[0]._forward_hooks
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_layer_that_runs_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x))

    cost = complexity(Twice(), (3, 8, 8))
    assert cost.multiply_adds == 2 * 3 * 3 * 9 * 64
    assert cost.bias_adds == 2 * 3 * 64

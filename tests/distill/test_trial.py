"""Trials of a network before a run: what is said of sizes of frames that it cannot process."""

from __future__ import annotations

import pytest
import torch

from csd_plugin.archs.interface import Interface
from csd_plugin.distill.trial import Words, check_trial
from csd_plugin.errors import CSDError


class Counts(torch.nn.Module):
    """(B, 3, H, W) to the same, for sides that are multiples of a number; counts its passes."""

    def __init__(self, sides: int):
        super().__init__()
        self.sides, self.passes = sides, 0

    def forward(self, frames):
        self.passes += 1
        return torch.nn.functional.pixel_shuffle(torch.nn.functional.pixel_unshuffle(frames, self.sides), self.sides)


class Enlarges(Counts):
    """Twice as high and wide, which padding does not change."""

    def forward(self, frames):
        return torch.nn.functional.interpolate(super().forward(frames), scale_factor=2)


@pytest.mark.parametrize("sides", [2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 24, 28, 32, 48, 56, 64, 128])
def test_what_sides_have_to_be_multiples_of_is_found(sides):
    network, interface = Counts(sides), Interface(1, "image")
    with pytest.raises(CSDError, match=rf"multiples of {sides}; multiples of {sides}"):
        check_trial(network, interface, (1, 1, 3, 11, 13), 1, Words("g", "g", "", "", "multiples of {}"))


@pytest.mark.parametrize("network", [Counts(9), Enlarges(1)], ids=["none of them", "another scale"])
def test_few_passes_show_that_no_padding_helps(network):
    words = Words("g", "interface_g", "", "check it", "multiples of {}")
    with pytest.raises(CSDError, match=r"fails on clips|where frames \(1, 3, 11, 13\) are needed"):
        check_trial(network, Interface(1, "image"), (1, 1, 3, 11, 13), 1, words)
    assert network.passes <= 4

"""Finds out properties of a network by running it on synthetic frames."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

REFUSALS = (RuntimeError, ValueError, AssertionError, LookupError)
"""The errors of networks for frames that are too small."""
_REACHES = (4, 8, 16, 32, 64, 128)
_LONGEST = 512
"""The largest reach in pixels for which a network is tried out, as that takes long."""


@contextmanager
def as_it_is() -> Iterator[None]:
    """Inside, networks compute without gradients, in the precision of their weights, whatever is set outside."""
    with torch.inference_mode(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def zeros_for(network: nn.Module, *shape: int) -> Tensor:
    """Zeros of the type, and on the device, of a network's weights; float32 on the CPU if it has none."""
    tensors = chain(network.parameters(), network.buffers())
    weight = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.zeros(()))
    return weight.new_zeros(shape)


def tried_reach(network: nn.Module, counted: int, *, side: int, num_frame: int, divisor: int) -> int | None:
    """The most pixels to each side that a result depends on, found by comparing tiles with whole frames.

    Args:
        counted: the reach computed from its layers, without functions such as F.conv2d, and means over the frame.
        side: a height that it accepts.
        num_frame: frames to give it.
        divisor: its tiles begin at multiples of it.

    Returns:
        `counted`, or the first of a few larger ones at which tiles leave no seam in either direction; None if all do,
        or if it refuses the frames.
    """
    if counted > _LONGEST:
        return counted
    network = copy.deepcopy(network).eval()
    for reach in (counted, *(reach for reach in _REACHES if reach > counted)):
        try:
            if all(_is_seamless(network, reach, side, num_frame, divisor, wide=wide) for wide in (True, False)):
                return reach
        except REFUSALS:
            return None
    return None


def _is_seamless(network: nn.Module, reach: int, side: int, num_frame: int, divisor: int, *, wide: bool) -> bool:
    """Whether the middle of a long frame is unchanged if the network sees no more of it than `reach` around it.

    The part that it does not see is much brighter, so that a mean over the frame would show.
    """
    kept, around = (-(-length // divisor) * divisor for length in (side, reach))
    seen = slice(kept, 2 * kept + 2 * around)
    shape = (1, num_frame, 3, kept, 3 * kept + 2 * around)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0)) / 2
    frame = noise + 0.5
    frame[..., seen] = noise[..., seen]
    frame = frame.to(zeros_for(network))
    whole, tile = (x if wide else x.transpose(-1, -2).contiguous() for x in (frame, frame[..., seen].contiguous()))
    with as_it_is():
        made = [network(whole), network(tile)]
    if not all(
        isinstance(x, Tensor) and x.shape[-2:] == y.shape[-2:] for x, y in zip(made, (whole, tile), strict=True)
    ):
        raise ValueError("the output has not the size of the input")
    expected, result = (x if wide else x.transpose(-1, -2) for x in made)
    middle = expected[..., kept + around : 2 * kept + around]
    tolerance = max(1e-4, 4 * torch.finfo(frame.dtype).eps)
    difference = (result[..., around : around + kept] - middle).abs().max()
    return bool(difference <= tolerance * middle.abs().max() + 1e-6)

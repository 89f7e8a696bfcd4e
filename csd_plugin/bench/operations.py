"""Counts the multiply-adds of a network's frames that are useful, and those of its folded form."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from csd_plugin.archs.interface import KINDS, kind_of
from csd_plugin.inference.facts import ConvCall, conv_calls
from csd_plugin.inference.folding import MIN_FILLED


@dataclass(frozen=True)
class Operations:
    """Multiply-adds per pixel of a frame.

    Attributes:
        useful: products of weights and frames; those with the zero padding in time are not counted (those with the
            padding in space, less than one in a hundred, are).
        folded: including the zero blocks of folded weights.
    """

    useful: float
    folded: float


def operations(network: nn.Module, num_frame: int | None = None) -> Operations:
    """Count every convolution for one window of `network`, (B, num_frame, 3, H, W).

    Args:
        num_frame: by default the network's.
    """
    one_length = KINDS[kind_of(network)].one_length
    side, calls = conv_calls(network, num_frame)
    counts = [_count(call, one_length) for call in calls]
    return Operations(sum(useful for useful, _ in counts) / side**2, sum(folded for _, folded in counts) / side**2)


def _count(call: ConvCall, one_length: bool) -> tuple[float, float]:
    """(useful, folded) multiply-adds of one call; layers that see clips of several lengths are not folded."""
    layer, after = call.layer, call.output_shape
    products = layer.weight[0].numel() * after[1] * after[-1] * after[-2]  # per frame, with all temporal taps
    if isinstance(layer, nn.Conv2d):
        return products, products
    kernel, padding, before = layer.kernel_size[0], int(layer.padding[0]), call.input_shape[2]
    blocks = sum(0 <= i - o + padding < kernel for o in range(after[2]) for i in range(before))
    useful = products / kernel * blocks
    folds = one_length and blocks / (before * after[2]) >= MIN_FILLED
    all_blocks = before * after[2] if folds else kernel * after[2]
    return useful, products / kernel * all_blocks

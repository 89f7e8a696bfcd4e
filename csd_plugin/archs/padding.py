"""Frames padded to sides that a network can process, and features without that padding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def multiple(side: int, divisor: int) -> int:
    """The smallest multiple of `divisor` that is not below `side`."""
    return -(-side // divisor) * divisor


def whole_cells(frames: Tensor, divisor: int) -> Tensor:
    """(.., H, W) of four or five axes with the last row and column repeated up to multiples of `divisor`."""
    below, right = (multiple(side, divisor) - side for side in frames.shape[-2:])
    if not (below or right):
        return frames
    return F.pad(frames, (0, right, 0, below, *(0, 0) * (frames.ndim - 4)), mode="replicate")


def without_padding(features: Tensor, size: tuple[int, int], divisor: int) -> Tensor:
    """Features (.., h, w) of frames that `whole_cells` has padded, without the cells that lie in the padding alone.

    Args:
        size: height and width of the frames before.
    """
    height, width = (
        -(-cells * side // multiple(side, divisor)) for cells, side in zip(features.shape[-2:], size, strict=True)
    )
    return features[..., :height, :width]

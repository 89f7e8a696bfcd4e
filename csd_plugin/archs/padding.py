"""Frames padded to sides that a network can process."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def whole_cells(frames: Tensor, divisor: int) -> Tensor:
    """(.., H, W) of four or five axes with the last row and column repeated up to multiples of `divisor`."""
    below, right = -frames.shape[-2] % divisor, -frames.shape[-1] % divisor
    if not (below or right):
        return frames
    return F.pad(frames, (0, right, 0, below, *(0, 0) * (frames.ndim - 4)), mode="replicate")

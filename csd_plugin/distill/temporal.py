"""Temporal alignment: the status of a video, carried from frame to frame (the paper's section 2.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csd_plugin.distill.cell import ConvLSTMCell, State


class Aggregator(nn.Module):
    """f_gamma of the paper's equations 4 and 5: a frame's map and its spatial hint update the state of the video."""

    def __init__(self, *, hidden: int) -> None:
        super().__init__()
        self.cell = ConvLSTMCell(in_channels=2, hidden=hidden)

    def forward(self, x: Tensor, hint: Tensor | None, state: State | None) -> State:
        """x, hint: (n, 1, H, W), no hint being zeros; state of the frame before -> this frame's; its cell is C."""
        return self.cell(torch.cat([x, torch.zeros_like(x) if hint is None else hint], dim=1), state)

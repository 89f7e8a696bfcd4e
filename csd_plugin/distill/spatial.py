"""Spatial alignment: a frame's map at several scales, merged from local to global and back (the paper, section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from csd_plugin.distill.cell import ConvLSTMCell, State


def pyramid(x: Tensor, num_scale: int) -> list[Tensor]:
    """(n, C, H, W) and its 2x2 average-pooled versions, largest first; odd sizes lose their last row or column."""
    scales = [x]
    while len(scales) < num_scale:
        scales.append(F.avg_pool2d(scales[-1], 2))
    return scales


class Connector(nn.Module):
    """f_theta of the paper's equations 1 and 2, one cell for each of the two passes.

    Args:
        cross_scale: whether a scale starts from the state of the scale before it; otherwise each starts from zero.
    """

    def __init__(self, *, hidden: int, cross_scale: bool) -> None:
        super().__init__()
        self.local_to_global = ConvLSTMCell(in_channels=1, hidden=hidden)
        self.global_to_local = ConvLSTMCell(in_channels=1, hidden=hidden)
        self.cross_scale = cross_scale

    def forward(self, scales: Sequence[Tensor], start: State | None) -> list[Tensor]:
        """The status C of every scale in both passes, in the order of computation; the last is that of C^(1, G2L).

        Each status is (n, hidden, h, w) of its scale.

        Args:
            scales: (n, 1, H, W), (n, 1, H // 2, W // 2) and so on.
            start: the state that the largest scale starts from.
        """
        statuses = []
        state = self.local_to_global(scales[0], start)
        statuses.append(state.cell)
        for x in scales[1:]:
            smaller = State(*(F.avg_pool2d(part, 2) for part in state)) if self.cross_scale else None
            state = self.local_to_global(x, smaller)
            statuses.append(state.cell)

        # The way back starts at the smallest scale, from the state that the way there ended with.
        state = self.global_to_local(scales[-1], state if self.cross_scale else None)
        statuses.append(state.cell)
        for x in reversed(scales[:-1]):
            larger = State(*(F.interpolate(part, x.shape[2:]) for part in state)) if self.cross_scale else None
            state = self.global_to_local(x, larger)
            statuses.append(state.cell)
        return statuses

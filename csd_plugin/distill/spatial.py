"""Spatial alignment: a frame's map at several scales, merged from local to global and back (the paper's 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csd_plugin.distill.cell import ConvLSTMCell, State, Steps


def pyramid(x: Tensor, num_scale: int) -> list[Tensor]:
    """(n, C, H, W) and its 2x2 average-pooled versions, largest first; odd sizes lose their last row or column."""
    scales = [x]
    while len(scales) < num_scale:
        scales.append(F.avg_pool2d(scales[-1], 2))
    return scales


class Connector(nn.Module):
    """f_theta in the paper's equations 1 and 2, with one cell for each of the two passes.

    Args:
        cross_scale: whether a scale starts from the state of the previous scale; otherwise each starts from zero.
    """

    def __init__(self, *, hidden: int, cross_scale: bool) -> None:
        super().__init__()
        self.local_to_global = ConvLSTMCell(in_channels=1, hidden=hidden)
        self.global_to_local = ConvLSTMCell(in_channels=1, hidden=hidden)
        self.cross_scale = cross_scale

    def over(self, scales: Sequence[Tensor]) -> Callable[[int, State | None], list[Tensor]]:
        """For clips of maps, (L, n, 1, H, W), (L, n, 1, H // 2, W // 2) ..: a function that connects a frame's scales.

        It takes the frame's index and the state from which the largest scale starts, and returns the statuses.
        """
        sizes = [scale.shape[3:] for scale in scales]
        return partial(self._connect, self.local_to_global.over(scales), self.global_to_local.over(scales), sizes)

    def _connect(
        self, to_global: Steps, to_local: Steps, sizes: Sequence[torch.Size], frame: int, start: State | None
    ) -> list[Tensor]:
        """The status C of every scale in both passes, in the order of computation; the last one is C^(1, G2L).

        Each status is (n, hidden, h, w) of its scale.
        """
        statuses = []
        state = to_global.step(start, frame=frame)
        statuses.append(state.cell)
        for scale in range(1, len(sizes)):
            smaller = State(*(F.avg_pool2d(part, 2) for part in state)) if self.cross_scale else None
            state = to_global.step(smaller, clip=scale, frame=frame)
            statuses.append(state.cell)

        # The second pass starts at the smallest scale, from the state with which the first one ended.
        last = len(sizes) - 1
        state = to_local.step(state if self.cross_scale else None, clip=last, frame=frame)
        statuses.append(state.cell)
        for scale in reversed(range(last)):
            larger = State(*(F.interpolate(part, sizes[scale]) for part in state)) if self.cross_scale else None
            state = to_local.step(larger, clip=scale, frame=frame)
            statuses.append(state.cell)
        return statuses

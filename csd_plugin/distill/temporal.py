"""Temporal alignment: the status of a video, carried from frame to frame (section 2.2 of the paper)."""

from __future__ import annotations

from torch import Tensor, nn

from csd_plugin.distill.cell import ConvLSTMCell, Steps


class Aggregator(nn.Module):
    """f_gamma in the paper's equations 4 and 5: a frame's map and its spatial hint update the state of the video."""

    def __init__(self, *, hidden: int) -> None:
        super().__init__()
        self.cell = ConvLSTMCell(in_channels=2, hidden=hidden)

    def over(self, frames: Tensor) -> Steps:
        """Steps over maps (L, n, 1, H, W), from the previous frame's state to this frame's, whose cell is C.

        `more` is the spatial hint, (n, 1, H, W).
        """
        return self.cell.over([frames])

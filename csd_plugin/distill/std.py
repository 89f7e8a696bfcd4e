"""STD: "Space-Time Distillation for Video Super-Resolution" (Xiao et al., CVPR 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from csd_plugin.distill.base import Objective, feature_pairs
from csd_plugin.distill.cell import ConvLSTMCell, State
from csd_plugin.errors import CSDError
from csd_plugin.types import ClipView, Terms

#: Once the time loss is below, the ConvLSTM that defines it stops learning.
FROZEN_BELOW = 1e-8


class STD(Objective):
    """One feature of each network as one map per frame, the sum of squares over channels, compared in space and time.

    Term `space`: the mean squared difference of the maps over batch, frames and pixels; the paper writes a norm.
    Term `time`: one ConvLSTM, shared by both networks, runs over the clip's maps; the mean squared difference of the
    two cells after the last frame. It learns from that loss until it is below `FROZEN_BELOW` for a batch.

    hidden: channels of the ConvLSTM.
    """

    frozen: Tensor

    def __init__(self, *, hidden: int = 16) -> None:
        super().__init__()
        if hidden < 1:
            raise CSDError(f"STD: hidden is {hidden}, expected at least 1")
        self.cell = ConvLSTMCell(in_channels=1, hidden=hidden)
        # A buffer: resuming a run restores it, and all processes of one follow the first.
        self.register_buffer("frozen", torch.tensor(False))
        self._kept: list[Tensor] = []

    @property
    def terms(self) -> tuple[str, ...]:
        return ("space", "time")

    def forward(self, student: ClipView, teacher: ClipView, target: Tensor) -> Terms:
        """The terms of the class docstring; `target` is not used."""
        if self.frozen and not self._kept:
            self._kept = [parameter.detach().clone() for parameter in self.cell.parameters()]
        with torch.autocast(target.device.type, enabled=False):
            [pair] = feature_pairs("STD", student, teacher, count=1)
            ours, theirs = (feature.float().square().sum(dim=2, keepdim=True) for feature in pair)
            space = F.mse_loss(ours, theirs)
            with torch.no_grad():
                goal = self._last_cell(theirs)
            time = F.mse_loss(self._last_cell(ours), goal)
        self.frozen |= time.detach() < FROZEN_BELOW
        return Terms({"space": space, "time": time}, {"frozen": self.frozen.float()})

    def _last_cell(self, maps: Tensor) -> Tensor:
        """(B, L, 1, H, W) -> (B, hidden, H, W)."""
        state: State | None = None
        for frame in maps.transpose(0, 1).contiguous():
            state = self.cell(frame, state)
        assert state is not None
        return state.cell

    @torch.no_grad()
    def after_step(self) -> None:
        """Undo the step on weights that are frozen: gradients of zero would not stop an optimizer with momentum."""
        if self._kept:
            for parameter, kept in zip(self.cell.parameters(), self._kept, strict=True):
                parameter.copy_(kept)

"""STD: "Space-Time Distillation for Video Super-Resolution" (Xiao et al., CVPR 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from csd_plugin.distill.cell import ConvLSTMCell, State
from csd_plugin.distill.collapse import Freeze, spread
from csd_plugin.distill.interface import Objective, feature_pairs
from csd_plugin.errors import CSDError
from csd_plugin.types import ClipView, Terms


class STD(Objective):
    """One feature of each network, as one map per frame (the sum of squares over channels), compared in space and time.

    Term `space`: the mean squared difference between the maps over batch, frames and pixels; the paper has a norm.
    Term `time`: one ConvLSTM, shared by both networks, runs over the clip's maps; the mean squared difference between
    the two cells after the last frame. It learns from that loss until the loss is below `LOSS_GONE` in a batch.

    Diagnostics: `frozen`, 1 from then on; `spread_time`, `student_spread_time`: deviation of the last cells over batch
    and pixels, averaged over channels.

    Args:
        hidden: channels of the ConvLSTM.
    """

    follows_steps = True

    def __init__(self, *, hidden: int = 16) -> None:
        super().__init__()
        if hidden < 1:
            raise CSDError(f"STD: hidden is {hidden}, expected at least 1")
        self.cell = ConvLSTMCell(in_channels=1, hidden=hidden)
        self.freeze = Freeze()

    @property
    def terms(self) -> tuple[str, ...]:
        return ("space", "time")

    def check(self, student: ClipView, teacher: ClipView) -> None:
        feature_pairs("STD", student, teacher, count=1)

    def forward(self, student: ClipView, teacher: ClipView, target: Tensor) -> Terms:
        """The terms in the class docstring; `target` is not used."""
        self.freeze.hold(self.cell.parameters())
        with torch.autocast(target.device.type, enabled=False):
            [pair] = feature_pairs("STD", student, teacher, count=1)
            ours, theirs = (feature.float().square().sum(dim=2, keepdim=True) for feature in pair)
            space = F.mse_loss(ours, theirs)
            with torch.no_grad():
                goal = self._last_cell(theirs)
            reached = self._last_cell(ours)
            time = F.mse_loss(reached, goal)
        self.freeze.freeze_if_gone(time)
        diagnostics = {"frozen": self.freeze.frozen.float()}
        if self.diagnoses:
            diagnostics |= {"spread_time": spread([goal]), "student_spread_time": spread([reached])}
        return Terms({"space": space, "time": time}, diagnostics)

    def _last_cell(self, maps: Tensor) -> Tensor:
        """The cell after the last frame: (B, L, 1, H, W) -> (B, hidden, H, W)."""
        state: State | None = None
        frames = maps.transpose(0, 1).contiguous()
        steps = self.cell.over([frames])
        for frame in range(len(frames)):
            state = steps.step(state, frame=frame)
        assert state is not None
        return state.cell

    def after_step(self) -> None:
        self.freeze.restore(self.cell.parameters())

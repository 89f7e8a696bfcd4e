"""SRKD: "Image Super-Resolution Using Knowledge Distillation" (Gao et al., ACCV 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from csd_plugin.distill.aggregation import mean_squared
from csd_plugin.distill.interface import Objective, feature_pairs
from csd_plugin.types import ClipView, Terms


class SRKD(Objective):
    """Features at several depths, each as one map per frame: the squared mean over channels, the paper's best choice.

    Term `maps`: the mean squared difference between the student's and the teacher's maps over batch, frames and pixels,
    summed over the depths. Tap layers of both networks in pairs, shallow to deep; their channels may differ.
    """

    @property
    def terms(self) -> tuple[str, ...]:
        return ("maps",)

    def forward(self, student: ClipView, teacher: ClipView, target: Tensor) -> Terms:
        """The term in the class docstring; `target` is not used."""
        with torch.autocast(target.device.type, enabled=False):
            pairs = feature_pairs("SRKD", student, teacher)
            depths = [F.mse_loss(mean_squared(ours), mean_squared(theirs)) for ours, theirs in pairs]
            return Terms({"maps": torch.stack(depths).sum()}, {})

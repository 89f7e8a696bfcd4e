"""FAKD: "Feature-Affinity Based Knowledge Distillation for Efficient Image Super-Resolution" (He et al., ICIP 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from csd_plugin.distill.interface import Objective, feature_pairs
from csd_plugin.distill.pixels import Pixels
from csd_plugin.types import ClipView, Terms


class FAKD(Objective):
    """How a frame's pixels resemble each other in a feature, and the output between teacher and truth.

    Term `affinity`: columns of a feature, one for each pixel, at unit length; their products of all pairs are a matrix
    of (h w) x (h w); its mean absolute difference between student and teacher, over batch and frames, summed over taps.
    Terms `truth` and `teacher`: mean absolute difference of the student's frames to the clean ones and the teacher's:
    the paper's own reconstruction, whose weights are 10, 0.5 and 0.5. Give `pixel_opt` a `loss_weight` of 0 with it.

    Args:
        pool: features are average-pooled by this factor first; without it the matrix of one 128x128 frame takes 1 GiB.
        max_gib: refuse to compute matrices that together take more.

    Raises:
        CSDError: wrong numbers, or, in `forward`, matrices that are too large.
    """

    def __init__(self, *, pool: int = 4, max_gib: float = 8.0) -> None:
        super().__init__()
        self.pixels = Pixels("FAKD", "affinities", pool, max_gib).checked()

    @property
    def terms(self) -> tuple[str, ...]:
        return ("affinity", "truth", "teacher")

    def check(self, student: ClipView, teacher: ClipView) -> None:
        self.pixels.check([ours for ours, _ in feature_pairs("FAKD", student, teacher)])

    def forward(self, student: ClipView, teacher: ClipView, target: Tensor) -> Terms:
        """The terms of the class docstring."""
        with torch.autocast(target.device.type, enabled=False):
            self.check(student, teacher)
            pairs = feature_pairs("FAKD", student, teacher)
            differences = [F.l1_loss(self._affinity(ours), self._affinity(theirs)) for ours, theirs in pairs]
            losses = {
                "affinity": torch.stack(differences).sum(),
                "truth": F.l1_loss(student.output, target),
                "teacher": F.l1_loss(student.output, teacher.output.detach()),
            }
        return Terms(losses, {})

    def warnings(self, features: Sequence[Sequence[int]]) -> list[str]:
        return self.pixels.warnings(features)

    def _affinity(self, feature: Tensor) -> Tensor:
        """(B, L, C, h, w) -> (B * L, n, n), n = (h // pool) (w // pool); cosines, from -1 to 1."""
        columns = self.pixels.columns(feature)
        return columns.transpose(1, 2) @ columns

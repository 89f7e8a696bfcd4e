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
    """Affinities of a frame's pixels in a feature, and the student's frames against both the teacher's and the truth.

    Term `affinity`: the feature vectors of a frame's pixels are scaled to unit length; the products of all pairs are a
    matrix of (h w) x (h w); its mean absolute difference between student and teacher, over batch and frames, summed
    over taps. Terms `truth` and `teacher`: mean absolute difference between the student's frames and the clean ones,
    and the teacher's. The paper's weights are 10, 0.5 and 0.5; these terms are its whole reconstruction, so give
    `pixel_opt` a `loss_weight` of 0 with it.

    Args:
        pool: features are average-pooled by this factor first; without it, the matrix of one 128x128 frame takes 1 GiB.
        max_gib: refuse to compute matrices that take more memory in all.

    Raises:
        CSDError: an option is out of range, or, in `forward`, matrices are too large.
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
        """The terms in the class docstring."""
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

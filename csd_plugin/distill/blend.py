"""Distillation to a blend of the teacher's frames and the truth."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from csd_plugin.distill.interface import Objective
from csd_plugin.errors import CSDError
from csd_plugin.types import ClipView, Terms


class TeacherTruthBlend(Objective):
    """Term `blend`: mean absolute difference between the student's frames and share * teacher + (1 - share) * clean.

    Args:
        share: of the teacher, from 0 (only the truth) to 1 (only the teacher).
    """

    needs_features = False

    def __init__(self, *, share: float = 0.5) -> None:
        super().__init__()
        if not 0 <= share <= 1:
            raise CSDError(f"TeacherTruthBlend: share is {share}, expected 0 to 1")
        self.share = share

    @property
    def terms(self) -> tuple[str, ...]:
        return ("blend",)

    def forward(self, student: ClipView, teacher: ClipView, target: Tensor) -> Terms:
        """The term in the class docstring."""
        return Terms({"blend": F.l1_loss(student.output, target.lerp(teacher.output.detach(), self.share))}, {})

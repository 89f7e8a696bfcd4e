"""Distillation to a blend of what the teacher gives and what is true."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from csd_plugin.distill.interface import Objective
from csd_plugin.errors import CSDError
from csd_plugin.types import ClipView, Terms


class TeacherTruthBlend(Objective):
    """Term `blend`: mean absolute difference of the student's frames and `share` x teacher's + (1 - `share`) x clean.

    Args:
        share: from 0, the truth alone, to 1, the teacher alone.
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
        """The term of the class docstring."""
        return Terms({"blend": F.l1_loss(student.output, target.lerp(teacher.output.detach(), self.share))}, {})

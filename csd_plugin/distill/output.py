"""Plain output distillation: imitate the teacher's frames."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from csd_plugin.distill.interface import Objective
from csd_plugin.types import ClipView, Terms


class OutputDistillation(Objective):
    """Term `output`: mean absolute difference between the student's and the teacher's frames."""

    needs_features = False

    @property
    def terms(self) -> tuple[str, ...]:
        return ("output",)

    def forward(self, student: ClipView, teacher: ClipView, target: Tensor) -> Terms:
        """The term in the class docstring; `target` is not used."""
        return Terms({"output": F.l1_loss(student.output, teacher.output.detach())}, {})

"""Adapters between features of different channels and sizes, declared in the options."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csd_plugin.distill.interface import Objective
from csd_plugin.distill.processes import mean_over_processes
from csd_plugin.errors import CSDError, suggestion
from csd_plugin.types import ClipView, Terms

ADAPTERS = ("conv1x1", "resize")


class AdaptedObjective(Objective):
    """An objective that sees the student's features with the teacher's channels and size.

    Args:
        objective: any objective; the terms are the same.
        adapters: `conv1x1`: one learned 1x1 convolution per tap, from the student's channels to the teacher's; it
            learns with the student but is not part of it. It starts at the teacher's scale, which the first batch
            determines: its input is multiplied by a factor that then stays constant. `resize`: bilinear, antialiased,
            to the teacher's height and width.
        student, teacher: shapes of the features, (B, L, C, h, w) per tap.

    Raises:
        CSDError: an adapter is unknown, or the numbers of taps differ.
    """

    gain: Tensor

    def __init__(
        self,
        objective: Objective,
        *,
        adapters: Iterable[str],
        student: Sequence[Sequence[int]],
        teacher: Sequence[Sequence[int]],
    ) -> None:
        super().__init__()
        adapters = set(adapters)
        for name in sorted(adapters - set(ADAPTERS)):
            raise CSDError(f"adapter {name!r} is unknown{suggestion(name, ADAPTERS)}")
        if len(student) != len(teacher):
            raise CSDError(
                f"adapters: {len(student)} taps of the student and {len(teacher)} of the teacher do not pair"
            )
        self.objective, self.adapters = objective, frozenset(adapters)
        self.input_scales = objective.input_scales
        self.needs_features = objective.needs_features
        self.resizes = "resize" in adapters
        pairs = zip(student, teacher, strict=True)
        self.convs = nn.ModuleList(nn.Conv2d(ours[2], theirs[2], 1) for ours, theirs in pairs if "conv1x1" in adapters)
        for bias in (parameter for name, parameter in self.convs.named_parameters() if name.endswith("bias")):
            nn.init.zeros_(bias)  # a random bias could be hundreds of times larger than a student's feature
        self.register_buffer("gain", torch.full((len(self.convs),), torch.nan), persistent=bool(self.convs))
        self.learns_scale = bool(self.convs)
        self._scaled: set[int] = set()  # taps whose gain is set, to ask a GPU only once

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._scaled.clear()

    @property
    def terms(self) -> tuple[str, ...]:
        return self.objective.terms

    def forward(self, student: ClipView, teacher: ClipView, target: Tensor) -> Terms:
        features = {scale: self._adapt(ours, teacher.features[scale]) for scale, ours in student.features.items()}
        return self.objective(ClipView(student.output, features), teacher, target)

    def check(self, student: ClipView, teacher: ClipView) -> None:
        self.objective.check(adapted_shapes(student, teacher, self.adapters), teacher)

    def warnings(self, features: Sequence[Sequence[int]]) -> list[str]:
        return self.objective.warnings(features)

    def weights_without_use(self) -> list[nn.Parameter]:
        return self.objective.weights_without_use()

    def after_step(self) -> None:
        self.objective.after_step()

    def _adapt(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> tuple[Tensor, ...]:
        adapted = []
        for i, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
            frames, size = ours.flatten(0, 1), theirs.shape[3:]
            with torch.autocast(ours.device.type, enabled=False):
                if self.convs:
                    frames = self._widened(i, frames.float(), theirs.float())
                if self.resizes and frames.shape[2:] != size:
                    frames = F.interpolate(frames.float(), size, mode="bilinear", antialias=True)
            adapted.append(frames.unflatten(0, ours.shape[:2]))
        return tuple(adapted)

    def _widened(self, tap: int, frames: Tensor, theirs: Tensor) -> Tensor:
        """The student's feature, brought to scale by `gain`, after the convolution of a tap.

        The first batch with gradients sets the gain; batches without gradients before that use their own.
        """
        learns = torch.is_grad_enabled()
        gain = self.gain[tap]
        with torch.no_grad():
            if tap not in self._scaled and gain.isnan():
                widened = self.convs[tap](frames)  # its bias is still zero
                sizes = torch.stack([theirs.square().mean(), widened.square().mean()])
                sizes = mean_over_processes(sizes) if learns else sizes
                # A feature of zeros has no scale.
                gain = torch.where(sizes.min() > 0, (sizes[0] / sizes[1]).sqrt(), 1.0)
                if learns:
                    self.gain[tap] = gain
        if learns:
            self._scaled.add(tap)
        return self.convs[tap](frames * gain)


def adapted_shapes(student: ClipView, teacher: ClipView, adapters: Iterable[str]) -> ClipView:
    """The student's features, without values, in the shapes after the adapters; unequal numbers of taps stay so."""
    adapters, features = set(adapters), {}
    for scale, of_scale in student.features.items():
        shapes = [list(feature.shape) for feature in of_scale]
        for shape, theirs in zip(shapes, teacher.features.get(scale, ()), strict=False):
            if "conv1x1" in adapters:
                shape[2] = theirs.shape[2]
            if "resize" in adapters:
                shape[3:] = theirs.shape[3:]
        features[scale] = tuple(torch.empty(()).expand(shape) for shape in shapes)
    return ClipView(student.output, features)

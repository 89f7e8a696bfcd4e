"""Several distillation objectives at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from csd_plugin.distill.interface import Objective
from csd_plugin.distill.objective import build_objective
from csd_plugin.errors import CSDError
from csd_plugin.types import ClipView, Terms


class Combined(Objective):
    """Other objectives on the same frames and features. Its terms are all of theirs, each with a weight of its own.

    Each sees all layers that are tapped, so CSD and STD, which compare one, keep the others to one.

    Args:
        objectives: of each its `type` and options, as `train.distill_opt` has them.

    Raises:
        CSDError: none, what one of them raises, or two that have a term of the same name.
    """

    def __init__(self, *, objectives: list[dict[str, Any]]) -> None:
        super().__init__()
        if not objectives:
            raise CSDError("Combined: objectives is empty; give at least one, such as {type: CSD}")
        self.parts = nn.ModuleList(build_objective(options) for options in objectives)
        self.needs_features = any(part.needs_features for part in self._parts)
        self.input_scales = tuple(dict.fromkeys(scale for part in self._parts for scale in part.input_scales))
        twice = [term for term, count in Counter(self.terms).items() if count > 1]
        if twice:
            names = ", ".join(str(options["type"]) for options in objectives)
            raise CSDError(f"Combined: two of {names} have a term {twice[0]}; leave one of them out")

    @property
    def _parts(self) -> list[Objective]:
        return [part for part in self.parts if isinstance(part, Objective)]

    @property
    def terms(self) -> tuple[str, ...]:
        return tuple(term for part in self._parts for term in part.terms)

    def check(self, student: ClipView, teacher: ClipView) -> None:
        for part in self._parts:
            part.check(student, teacher)

    def forward(self, student: ClipView, teacher: ClipView, target: Tensor) -> Terms:
        """The terms of all. Diagnostics of one name are told apart by the type of the later objective."""
        losses: dict[str, Tensor] = {}
        diagnostics: dict[str, Tensor] = {}
        for part in self._parts:
            terms: Terms = part(student, teacher, target)
            losses |= terms.losses
            diagnostics |= _apart(terms.diagnostics, diagnostics, type(part).__name__)
        return Terms(losses, diagnostics)

    def warnings(self, features: Sequence[Sequence[int]]) -> list[str]:
        return [line for part in self._parts for line in part.warnings(features)]

    def weights_without_use(self) -> list[nn.Parameter]:
        return [weight for part in self._parts for weight in part.weights_without_use()]

    def after_step(self) -> None:
        for part in self._parts:
            part.after_step()


def _apart(found: Mapping[str, Tensor], known: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {f"{key}_{name}" if key in known else key: value for key, value in found.items()}

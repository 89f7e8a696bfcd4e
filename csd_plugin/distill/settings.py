"""The parts of `train.distill_opt`: the objective, the weights of its terms, the teachers, the compared layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from csd_plugin.distill.fidelity import filled, without_name
from csd_plugin.distill.schedule import Weight, is_ever_on, weight_at
from csd_plugin.errors import CSDError, suggestion

_LABEL = re.compile(r"t(?:[2-9]|[1-9]\d+)?")
"""Labels of teachers: t, t2, t3 .."""


@dataclass(frozen=True)
class Distillation:
    """The distillation of a run, as its options describe it.

    Attributes:
        objective: `type` and the constructor's keywords; each teacher gets its own objective with them.
        weights: term -> its weight.
        teachers: label -> share; shares add to 1. `t` is for network_t, `t2` for network_t2. Teachers without a share
            are left out.
        student_layers, teacher_layers: the tapped layers, `conv7` or `conv7:output`; None for the one that a network
            names.
        adapters: see `adapters.ADAPTERS`.
    """

    objective: dict[str, Any]
    weights: dict[str, Weight]
    teachers: dict[str, float]
    student_layers: list[str] | None
    teacher_layers: dict[str, list[str] | None]
    adapters: list[str]

    @property
    def teaches(self) -> bool:
        """Whether any term has a weight in some iteration."""
        return any(is_ever_on(weight) for weight in self.weights.values())

    def taught_by(self) -> list[str]:
        """Labels of the teachers that a run needs: those with a share, or none if no term has a weight."""
        return list(self.teachers) if self.teaches else []

    def layers(self) -> dict[str, list[str] | None]:
        """The tapped layers, by the networks' names in options, the student's first."""
        teachers = {f"network_{label}": layers for label, layers in self.teacher_layers.items()}
        return {"network_g": self.student_layers, **teachers}

    def weights_at(self, iteration: int) -> dict[str, float]:
        """The weight of each term in an iteration, counted from 1."""
        return {term: weight_at(weight, iteration) for term, weight in self.weights.items()}


def read_distillation(opt: Mapping[str, Any]) -> Distillation:
    """The distillation of a run from its options, which must have passed `check_options`."""
    objective = without_name(filled(opt)["train"]["distill_opt"])
    weights, taps = dict(objective.pop("weights")), objective.pop("taps", None) or {}
    shares = teacher_shares(teacher_labels(opt), objective.pop("teachers", None))
    layers = taps.get("teacher")
    return Distillation(
        objective=objective,
        weights=weights,
        teachers=shares,
        student_layers=taps.get("student"),
        teacher_layers={label: layers.get(label) if isinstance(layers, Mapping) else layers for label in shares},
        adapters=taps.get("adapters") or [],
    )


def teacher_labels(keys: Iterable[str], stems: Iterable[str] = ("network_",)) -> list[str]:
    """The labels `t`, `t2`, .. of the teachers in options, by number: from keys that are a stem plus a label."""
    ends = {str(key).removeprefix(stem) for stem in stems for key in keys if str(key).startswith(stem)}
    return sorted((end for end in ends if _LABEL.fullmatch(end)), key=lambda label: int(label[1:] or 1))


def teacher_shares(labels: Iterable[str], weights: Mapping[str, float] | None) -> dict[str, float]:
    """Each teacher's share of the distillation loss: its weight divided by the sum of all; equal without weights.

    Only teachers with a share are returned. Raises CSDError without any teacher, for an unknown label, a teacher
    without a weight, weights below 0, or none above 0.
    """
    labels = list(labels)
    if not labels:
        raise CSDError("there is no teacher: give the section network_t")
    given = dict.fromkeys(labels, 1.0) if weights is None else dict(weights)
    for label in given:
        if label not in labels:
            raise CSDError(f"teacher {label!r} is unknown{suggestion(label, labels)}")
    for label in labels:
        if label not in given:
            raise CSDError(f"teacher {label!r} has no weight; give it one, or 0 to leave it out")
    total = sum(given.values())
    if min(given.values()) < 0 or total == 0:
        raise CSDError("weights of teachers must be 0 or more, and at least one must be above 0")
    return {label: weight / total for label, weight in given.items() if weight}

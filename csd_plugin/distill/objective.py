"""Builds an objective from options, and computes the weighted sum of losses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from csd_plugin.distill import OBJECTIVES
from csd_plugin.distill.interface import Objective
from csd_plugin.errors import CSDError, suggestion
from csd_plugin.types import ClipView, Terms

__all__ = ["OBJECTIVES", "Comparison", "Objective", "build_objective", "by_name", "weighted_sum"]

T = TypeVar("T")


@dataclass(frozen=True)
class Comparison:
    """The comparison of the student with one teacher on one batch.

    Attributes:
        terms: the raw losses.
        weights: of each loss, including the teacher's share.
        layers: the student's layers whose features were compared.
        learns_scale: see `Objective`.
    """

    teacher: ClipView
    terms: Terms
    weights: Mapping[str, float]
    layers: tuple[str, ...]
    learns_scale: bool


def by_name(compared: Mapping[str, Comparison], part: Callable[[Comparison], Mapping[str, T]]) -> dict[str, T]:
    """A `part` of each comparison, by name, in one dict: prefix of the teacher + name -> value."""
    return {f"{prefix}{name}": thing for prefix, one in compared.items() for name, thing in part(one).items()}


def build_objective(opt: Mapping[str, Any]) -> Objective:
    """The objective that options describe: `type` names it, all other keys are keywords of its constructor.

    Raises CSDError for a missing or unknown type, an unknown keyword, or a value that the objective refuses.
    """
    options = dict(opt)
    name = options.pop("type", None)
    if name not in OBJECTIVES:
        raise CSDError(f"distillation objective: type {name!r} is unknown{suggestion(name, OBJECTIVES)}")
    known = inspect.signature(OBJECTIVES[name]).parameters
    for key in options:
        if key not in known:
            raise CSDError(f"distillation objective {name}: option {key!r} is unknown{suggestion(key, known)}")
    return OBJECTIVES[name](**options)


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum of weight x loss over all names, a scalar. Raises CSDError unless both hold the same names, at least one."""
    for name in weights:
        if name not in losses:
            raise CSDError(f"loss weight {name!r} is unknown{suggestion(name, losses)}")
    for name in losses:
        if name not in weights:
            raise CSDError(f"loss {name!r} has no weight; give each of {', '.join(losses)} one, or 0 to leave it out")
    if not losses:
        raise CSDError("there is no loss to optimise; give at least one loss a weight")
    first, *others = (weights[name] * loss for name, loss in losses.items())
    return sum(others, start=first)

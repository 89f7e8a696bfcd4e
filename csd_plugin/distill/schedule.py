"""The weight of a loss: a number, a pure function of the iteration, or a value that follows measured gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from csd_plugin.errors import CSDError, suggestion

Weight = float | Mapping[str, Any]
"""A number; a mapping of `schedule`, `start`, `end` (0) and `iters`; or one of `balance` and `until`, see `balance`."""


class Schedule(NamedTuple):
    """The course of a weight from `start` to `end`.

    Attributes:
        share: from the fraction of `iters` that has passed to the fraction of the change that is done; both 0 to 1.
        moves: whether it uses `end` and `iters`.
        gradual: whether the weight differs in every step of the change.
    """

    share: Callable[[float], float]
    moves: bool = True
    gradual: bool = False


SCHEDULES = {
    "constant": Schedule(lambda over: 0.0, moves=False),
    "linear": Schedule(lambda over: over, gradual=True),
    "cosine": Schedule(lambda over: (1 - math.cos(math.pi * over)) / 2, gradual=True),
    "stop_at": Schedule(lambda over: float(over == 1)),
}
"""By name."""


def weight_at(weight: Weight, iteration: int) -> float:
    """The weight in an iteration, counted from 1: `start` in the first, `end` after the first `iters` iterations.

    For a balanced weight: its value before anything was measured, and 0 after `until`.
    """
    if not isinstance(weight, Mapping):
        return weight
    if is_balanced(weight):
        return weight["balance"] if iteration <= (weight.get("until") or math.inf) else 0.0
    done = min((iteration - 1) / weight.get("iters", 1), 1.0)
    share = SCHEDULES[weight["schedule"]].share(done)
    return (1 - share) * weight["start"] + share * weight.get("end", 0.0)


def is_balanced(weight: Weight) -> bool:
    """Whether the weight follows the measured ratio of gradients."""
    return isinstance(weight, Mapping) and "balance" in weight


def is_gradual(weight: Weight) -> bool:
    """Whether the weight changes with every step, for a time."""
    return isinstance(weight, Mapping) and not is_balanced(weight) and SCHEDULES[weight["schedule"]].gradual


def is_ever_on(weight: Weight) -> bool:
    """Whether the weight is not zero in some iteration."""
    if not isinstance(weight, Mapping):
        return weight != 0
    if is_balanced(weight):
        return weight["balance"] != 0
    return weight["start"] != 0 or (SCHEDULES[weight["schedule"]].moves and weight.get("end", 0.0) != 0)


def check_weight(weight: Weight) -> None:
    """Raise CSDError for an unknown schedule, keys that do not go together, and numbers below 0, which would drive the
    student away from its teacher. Names and types must have been checked."""
    numbers = [weight.get(key, 0) for key in ("start", "end", "balance")] if isinstance(weight, Mapping) else [weight]
    for number in numbers:
        if not 0 <= number < math.inf:
            raise CSDError(f"a weight is {number}, expected 0 or more")
    if not isinstance(weight, Mapping) or is_balanced(weight):
        return
    name = weight["schedule"]
    if name not in SCHEDULES:
        raise CSDError(f"schedule {name!r} is unknown{suggestion(name, SCHEDULES)}")
    if not SCHEDULES[name].moves:
        unused = [key for key in ("end", "iters") if key in weight]
        if unused:
            others = ", ".join(other for other, schedule in SCHEDULES.items() if schedule.moves)
            raise CSDError(f"a {name} weight takes no {unused[0]}; remove it, or choose one of {others}")
    elif "iters" not in weight:
        raise CSDError(f"{name} needs iters, the number of iterations after which the weight has its end value")

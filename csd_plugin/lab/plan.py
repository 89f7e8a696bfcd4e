"""The factor by which a matrix's schedules are stretched: determined once, then kept for all that share its runs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from csd_plugin.atomic import write_text
from csd_plugin.bench.measure import finished
from csd_plugin.devices import forked_random
from csd_plugin.errors import CSDError
from csd_plugin.lab.matrix import Run, changed
from csd_plugin.lab.processes import one_of, share_of
from csd_plugin.lab.runner import Workspace, left_behind
from csd_plugin.plain import number, parse_json, read_text, section

PROBE_STEPS = 4
"""Optimizer steps of each row that are timed."""
TRAINING_SHARE = 0.8
"""The share of the budget for training; the rest is for start-up, validation and tests."""
MIN_STEPS = 10
"""The fewest optimizer steps of a run."""
_MOST_MINUTES = 10**7
"""19 years."""
_FACTORS = (1e-12, 1e12)
"""Smallest and largest factor; schedules stretched by these still have finite numbers."""


@dataclass(frozen=True)
class Plan:
    """The length of a matrix's schedules.

    Attributes:
        factor: multiplies all schedules; None for those of the option files.
        minutes: the budget from which it was computed.
    """

    factor: float | None = None
    minutes: float | None = None

    def fit(self, runs: Mapping[str, Run]) -> dict[str, Run]:
        """The runs, with their schedules stretched."""
        factor = self.factor
        if factor is None:
            return dict(runs)
        return {
            name: run if run.options is None else replace(run, options=stretched(run.options, factor))
            for name, run in runs.items()
        }

    def keep(self, space: Workspace) -> None:
        if self.factor is not None:
            space.plan.parent.mkdir(parents=True, exist_ok=True)
            write_text(space.plan, json.dumps({"minutes": self.minutes, "factor": self.factor}) + "\n")

    def __str__(self) -> str:
        if self.factor is None:
            return "schedules as the option files have them"
        return f"schedules fitted to {self.minutes:g} minutes, {self.factor:.3g} times those of the option files"


def plan_for(
    runs: Iterable[Run],
    space: Workspace,
    minutes: float | None,
    retrained: Collection[str] = (),
    processes: int = 1,
) -> tuple[Plan, str]:
    """The plan to follow, and a note if it is not the one that `minutes` asks for. Nothing is written.

    Runs of different lengths could not be compared. So the plan is fixed once a run of any matrix file that shares it
    has begun.

    Args:
        runs: all that may train.
        space: where the plan is kept.
        minutes: the budget; None for the plan that is stored.
        retrained: names of runs that will be done again, and therefore do not fix the plan.
        processes: per training.

    Raises:
        CSDError: the budget is too short, plan.json is damaged, or a device does not exist.
    """
    kept = _read(space.plan)
    if minutes is None or minutes == kept.minutes:
        return kept, ""
    begun = next((name for name in _launched(space) if name not in retrained and left_behind(name) != "missing"), None)
    if begun is None:
        return Plan(factor_for(runs, minutes, processes), minutes), ""
    note = (
        f"--minutes {minutes:g} is not followed: {begun} has begun, with {kept}, and runs of different lengths could "
        f"not be compared"
    )
    return kept, note


def stretched(options: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Training options with a schedule `factor` times as long: everything counted in iterations, and `max_seconds`.

    Also what is scheduled in distillation weights and frozen layers. `logger.print_freq` stays, as logs are read at the
    same pace.
    """

    def scaled(count: float) -> int:
        return max(round(count * factor), 1)

    fitted: dict[str, Any] = deepcopy(dict(options))
    train, scheduler = fitted["train"], fitted["train"]["scheduler"]
    train["total_iter"] = max(scaled(train["total_iter"]), MIN_STEPS)
    if train.get("warmup_iter", -1) > 0:
        train["warmup_iter"] = scaled(train["warmup_iter"])
    for key in ("periods", "milestones"):
        if key in scheduler:
            scheduler[key] = [scaled(count) for count in scheduler[key]]
    if "restarts" in scheduler:  # the first is at iteration 0
        scheduler["restarts"] = [scaled(count) if count else 0 for count in scheduler["restarts"]]
    if train.get("max_seconds"):
        train["max_seconds"] *= factor
    missing = train["total_iter"] - sum(scheduler.get("periods", [train["total_iter"]]))
    if missing > 0:  # rounding: the toolbox's cosine knows no rate beyond its last period
        scheduler["periods"][-1] += missing
    for layer in (train.get("layers") or {}).values():
        if not isinstance(layer.get("frozen", False), bool):
            layer["frozen"] = scaled(layer["frozen"])
    for weight in (train.get("distill_opt") or {}).get("weights", {}).values():
        for key in ("iters", "until") if isinstance(weight, Mapping) else ():
            if weight.get(key):
                weight[key] = scaled(weight[key])
    if (fitted.get("val") or {}).get("val_freq"):
        fitted["val"]["val_freq"] = scaled(fitted["val"]["val_freq"])
    fitted["logger"]["save_checkpoint_freq"] = scaled(fitted["logger"]["save_checkpoint_freq"])
    return fitted


def factor_for(runs: Iterable[Run], minutes: float, processes: int = 1) -> float:
    """The factor by which the training of all runs takes `TRAINING_SHARE` of `minutes` on this machine.

    `PROBE_STEPS` steps of each row are timed, on random frames; with several processes, one process's share of the
    work, with its share of the processors. A row by the clock (`train.max_seconds`) takes no longer than that.

    Raises:
        CSDError: a device does not exist, or a run would have fewer than `MIN_STEPS` steps.
    """
    check_minutes(minutes)
    seconds: dict[str, float] = {}
    training = [run for run in runs if run.options is not None]
    for run in tqdm(training, desc="timing steps", unit="run", disable=None):
        assert run.options is not None
        if run.row not in seconds:
            with one_of(processes):
                seconds[run.row] = step_seconds(changed(run.options, share_of(run.options, processes)))
    iterations = [_steps(run.options, seconds[run.row]) for run in training if run.options is not None]
    total = sum(seconds[run.row] * count for run, count in zip(training, iterations, strict=True))
    if not total:
        return 1.0
    factor = minutes * 60 * TRAINING_SHARE / total
    if factor * min(iterations) < MIN_STEPS:
        needed = total / min(iterations) * MIN_STEPS / 60 / TRAINING_SHARE
        raise CSDError(
            f"{minutes:g} minutes leave a run fewer than {MIN_STEPS} steps; give at least {math.ceil(needed)} minutes"
        )
    return factor


def _steps(options: Mapping[str, Any], seconds: float) -> float:
    """The number of steps of this duration after which a run ends, by its iterations or its clock."""
    return min(options["train"]["total_iter"], (options["train"].get("max_seconds") or math.inf) / seconds)


def length_of(options: Mapping[str, Any]) -> str:
    """`1,000 steps`; for a run by the clock, also the time."""
    train = options["train"]
    clock = train.get("max_seconds")
    return f"at most {train['total_iter']:,} steps in {clock:g} s" if clock else f"{train['total_iter']:,} steps"


def check_minutes(minutes: float) -> None:
    """Raise CSDError for an impossible time."""
    if not 0 < minutes <= _MOST_MINUTES:
        raise CSDError(f"--minutes {minutes:g}: give a time above 0, at most {_MOST_MINUTES}")


def step_seconds(options: Mapping[str, Any]) -> float:
    """The duration of one optimizer step, on random frames."""
    from csd_plugin.models.probe import Probe

    with forked_random():
        probe = Probe(options)
        step = finished(probe.step, probe.model.device)
        step()  # one-time work
        began = time.perf_counter()
        for _ in range(PROBE_STEPS):
            step()
    return (time.perf_counter() - began) / PROBE_STEPS


def _launched(space: Workspace) -> list[str]:
    return sorted(file.stem for file in (space.folder / "options").glob("*.yml"))


def _read(path: Path) -> Plan:
    try:
        content = section(parse_json(read_text(path)), "it")
        minutes = number(content.get("minutes"), "minutes", 0, _MOST_MINUTES)
        return Plan(number(content.get("factor"), "factor", *_FACTORS), minutes)
    except FileNotFoundError:
        return Plan()
    except ValueError as error:
        raise CSDError(
            f"{path} is damaged ({error}); remove it to train with the option files' own schedules"
        ) from error

"""The factor by which a matrix's schedules are stretched: found once, then kept for all that shares its runs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from csd_plugin.atomic import write_text
from csd_plugin.errors import CSDError
from csd_plugin.lab.budget import factor_for, stretched
from csd_plugin.lab.matrix import Run
from csd_plugin.lab.runner import Workspace, left_behind


@dataclass(frozen=True)
class Plan:
    """factor: of all schedules, None where they are the files' own; minutes: the budget that it comes from."""

    factor: float | None = None
    minutes: float | None = None

    def fit(self, runs: Mapping[str, Run]) -> dict[str, Run]:
        """The runs with their schedules stretched."""
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
    runs: Iterable[Run], space: Workspace, minutes: float | None, retrained: Collection[str] = ()
) -> tuple[Plan, str]:
    """The plan to go by, and a note where that is not what `minutes` asks for; nothing is written.

    Runs of other lengths could not be compared: once one has begun, of whichever matrix file that shares them, the
    plan stays, unless it is among `retrained`, names of runs that are to be done anew.

    Raises CSDError: a budget too short, a plan.json that is damaged, a device that is not there.
    """
    kept = _read(space.plan)
    if minutes is None or minutes == kept.minutes:
        return kept, ""
    begun = next((name for name in _launched(space) if name not in retrained and left_behind(name) != "missing"), None)
    if begun is None:
        return Plan(factor_for(runs, minutes), minutes), ""
    note = (
        f"--minutes {minutes:g} is not followed: {begun} has begun, with {kept}, and runs of other lengths could not "
        f"be compared"
    )
    return kept, note


def _launched(space: Workspace) -> list[str]:
    return sorted(file.stem for file in (space.folder / "options").glob("*.yml"))


def _read(path: Path) -> Plan:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Plan(float(content["factor"]), float(content["minutes"]))
    except FileNotFoundError:
        return Plan()
    except (ValueError, KeyError, TypeError) as error:
        raise CSDError(f"{path} is damaged ({error}); remove it to train as the option files say") from error

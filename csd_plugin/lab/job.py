"""`csd table`: a matrix file in, a table out."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from csd_plugin import registration
from csd_plugin.errors import CSDError
from csd_plugin.lab import runner
from csd_plugin.lab.costs import costs_of
from csd_plugin.lab.matrix import Matrix, Run, read_matrix, runs_of
from csd_plugin.lab.table import build
from csd_plugin.report.grid import FORMATS, Grid, as_markdown


def make_table(
    path: Path,
    *,
    minutes: float | None = None,
    only: list[str] | None = None,
    retrain: Sequence[str] = (),
    dry_run: bool = False,
    train: bool = True,
) -> str:
    """Do what a matrix file asks for in the current folder, and write its table; the table, or the plan, as text.

    minutes: fit the schedules, see `runner.fitted`. only: these rows. retrain: put these rows' runs aside first.
    train: False writes the table of what is there.

    Raises CSDError: a matrix or option file with a mistake, a budget too short, a run that fails.
    """
    matrix = read_matrix(path)
    for key in retrain:
        if key not in matrix.rows:
            raise CSDError(f"--retrain {key}: {path} has no such row")
    registration.install()
    space = runner.Workspace(matrix)
    runs, notes = _possible(runs_of(matrix, path, only))
    if dry_run:
        return _plan(runs, notes)
    runs = runner.fitted(runs, space, minutes)
    for run in runs.values():
        if run.row in retrain:
            runner.forget(run)
    runner.check_unchanged(runs.values(), space)
    if train:
        runner.perform(runs, space)
    grid = build(matrix, runs, costs_of(matrix, runs), [*notes, *_schedule_notes(matrix, runs)])
    return as_markdown(grid) + "\n" + _save(grid, space.folder)


def _possible(runs: dict[str, Run]) -> tuple[dict[str, Run], list[str]]:
    """The runs that can be done here, without test sets that are not here; and what is left out, and why."""
    notes: dict[str, None] = {}
    possible = {}
    for name, run in runs.items():
        reason = _unavailable(run)
        if reason:
            notes[f"{run.row}: left out, {reason}"] = None
            continue
        if run.test is not None:
            test = deepcopy(run.test)
            for key, content in list(test["datasets"].items()):
                if not Path(content["dataroot"]).exists():
                    del test["datasets"][key]
                    notes[f"{content['name']}: left out, {content['dataroot']} is not here"] = None
            run = replace(run, test=test if test["datasets"] else None)
        possible[name] = run
    return possible, list(notes)


def _unavailable(run: Run) -> str:
    if run.frames is not None and not run.frames.is_dir():
        return f"{run.frames} is not here"
    weights = (run.test or {}).get("path", {}).get("pretrain_network_g")
    if run.options is None and run.frames is None and not run.rainy and weights and not Path(weights).is_file():
        return f"{weights} is not here"
    return ""


def _plan(runs: dict[str, Run], notes: Sequence[str]) -> str:
    """A line a run: how far it is, and what it will take."""
    todo = {"done": "nothing", "trained": "test", "cut": "train on, test", "missing": "train, test"}
    lines = []
    for run in runs.values():
        state = runner.state(run)
        steps = f"{run.options['train']['total_iter']:,} steps" if run.options else ""
        lines.append(f"{run.name:<36} {state:<8} to do: {todo[state]:<15} {steps}")
    return "\n".join([*lines, *notes])


def _schedule_notes(matrix: Matrix, runs: dict[str, Run]) -> list[str]:
    """What the rows that were trained were trained for."""
    steps: dict[int, list[str]] = {}
    for run in runs.values():
        if run.options and matrix.rows[run.row].shown:
            labels = steps.setdefault(int(run.options["train"]["total_iter"]), [])
            label = matrix.rows[run.row].label or run.row
            labels += [label] if label not in labels else []
    return [f"{count:,} steps: {', '.join(labels)}" for count, labels in steps.items()]


def _save(grid: Grid, folder: Path) -> str:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, form in FORMATS.items():
            draft = folder / f".table{suffix}.part"
            draft.write_text(form(grid), encoding="utf-8")
            draft.replace(folder / f"table{suffix}")
    except OSError as error:
        raise CSDError(f"{folder}: the table cannot be written ({error.strerror})") from error
    return f"written: {folder}/table.md, .csv, .tex, .html"

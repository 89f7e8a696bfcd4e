"""`csd table`: from a matrix file to a table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

from csd_plugin import registration
from csd_plugin.atomic import write_text
from csd_plugin.data.datasets.options import ROOTS
from csd_plugin.devices import gpus_of
from csd_plugin.errors import CSDError, suggestion
from csd_plugin.lab import runner
from csd_plugin.lab.matrix import Frames, Matrix, Run, TestOnly, Weights, read_matrix, runs_of
from csd_plugin.lab.plan import length_of, plan_for
from csd_plugin.lab.processes import share_of
from csd_plugin.lab.table import build, check_costs, costs_of
from csd_plugin.locks import alone
from csd_plugin.options.problems import Problems, ProblemsError
from csd_plugin.report.grid import FORMATS, Grid, as_markdown

_LAST = ".md"
"""Suffix of the table that is written last: if it exists, so do the others."""


@dataclass(frozen=True)
class Table:
    """A matrix and its file."""

    path: Path
    matrix: Matrix

    @classmethod
    def read(cls, path: Path) -> Table:
        return cls(path, read_matrix(path))

    def runs(self, only: list[str] | None = None) -> dict[str, Run]:
        return runs_of(self.matrix, self.path, only)


def make_tables(
    tables: Sequence[Table],
    *,
    minutes: float | None = None,
    only: list[str] | None = None,
    retrain: Sequence[str] = (),
    dry_run: bool = False,
    train: bool = True,
    processes: int = 1,
    coming: Collection[Path] = (),
    finish: Callable[[], Iterable[str]] = tuple,
) -> str:
    """Do what matrix files ask for in the current folder, and write their tables; first print the plan to stderr.

    Args:
        tables: matrices that share their runs (`runs`), or a single one.
        minutes: fit all schedules to this time, see `plan_for`.
        only: do only these rows, and those they start from.
        retrain: first put aside the runs of these rows, and of those that start from them.
        dry_run: do nothing, and return the plan.
        train: False only writes tables of existing results.
        processes: per training, on this machine; they share the batch of an option file.
        coming: data sets that will exist when the runs are done.
        finish: called when the runs are done, before tables are written; returns lines to add below them.

    Returns:
        The tables as Markdown and the lines of `finish`, or the plan.

    Raises:
        CSDError: a matrix or option file has a mistake, the budget is too short, or a run fails.
        KeyboardInterrupt: a run was stopped by a signal.
    """
    first = tables[0]
    if len({table.matrix.runs for table in tables}) > 1:
        raise CSDError(f"{first.path} and the others do not share their `runs`; make one table at a time")
    rows = {row for table in tables for row in table.matrix.rows}
    for key in retrain:
        if key not in rows:
            raise CSDError(f"--retrain {key}: {first.path} has no such row{suggestion(key, rows)}")
    registration.install()
    registration.extend()
    space = runner.Workspace(first.matrix.runs)
    possible = [_possible(table.runs(only), coming) for table in tables]
    runs = _together(runs for runs, _ in possible)
    for key in set(retrain) - {run.row for run in runs.values()}:
        raise CSDError(f"--retrain {key}: --only leaves this row out; name it there too")
    retrained = runner.with_dependents({run.name for run in runs.values() if run.row in retrain}, runs.values())
    if train:
        check_rows(_to_train(runs.values(), retrained))
    for table, (own, _) in zip(tables, possible, strict=True):
        check_costs(table.matrix, own)
    check_shares(_to_train(runs.values(), retrained), processes)
    # commands that start together follow the plan of the first one
    with nullcontext() if dry_run else alone(space.plan, wait=True):
        plan, note = plan_for(runs.values(), space, minutes if train else None, retrained, processes)
        runs, all_notes = plan.fit(runs), [*filter(None, [note]), *(n for _, notes in possible for n in notes)]
        lines = [*_todo(runs, retrained), str(plan), *all_notes]
        runner.check_unchanged((run for run in runs.values() if run.name not in retrained), space)
        if dry_run:
            return "\n".join(lines)
        if train:
            check_machine(runs.values(), retrained, processes)
            print("\n".join(lines), file=sys.stderr, flush=True)
        runner.forget([runs[name] for name in retrained], space)
        plan.keep(space)
    if train:
        runner.perform(runs, space, processes)
    said = list(finish())
    return "\n".join([_written(tables, runs, possible), *said])


def _written(
    tables: Sequence[Table], runs: Mapping[str, Run], possible: Sequence[tuple[dict[str, Run], list[str]]]
) -> str:
    """Write the tables to files, and return them as Markdown."""
    texts = []
    for matrix, (own, notes) in zip([table.matrix for table in tables], possible, strict=True):
        mine = {name: replace(runs[name], test=run.test) for name, run in own.items()}
        grid = build(matrix, mine, costs_of(matrix, mine), [*notes, *_schedule_notes(matrix, mine)])
        texts.append(as_markdown(grid) + "\n" + _save(grid, _folder(matrix)))
    return "\n\n".join(texts)


def _together(parts: Iterable[dict[str, Run]]) -> dict[str, Run]:
    """The runs of all matrices, each once, tested if any matrix tests it. Raises CSDError if two differ."""
    runs: dict[str, Run] = {}
    for part in parts:
        for name, run in part.items():
            before = runs.get(name, run)
            if before.options != run.options:
                raise CSDError(
                    f"the row {run.row} is trained differently in two of the matrix files; rename one of them"
                )
            runs[name] = replace(run, test=run.test or before.test)
    return runs


def _possible(runs: dict[str, Run], coming: Collection[Path]) -> tuple[dict[str, Run], list[str]]:
    """The runs and test sets for which all data exist here, and notes on what is left out, with the reason."""
    notes: dict[str, None] = {}
    possible = {}
    for name, run in runs.items():
        reason = _unavailable(run)
        if reason:
            notes[f"{run.row}: left out, {reason}"] = None
            continue
        if run.test is not None and run.test["datasets"]:  # without any, only its network's costs are needed
            test = deepcopy(run.test)
            for key, content in list(test["datasets"].items()):
                roots = [Path(content[name]) for name in ROOTS if content.get(name)]
                absent = [root for root in roots if not root.exists() and root not in coming]
                if absent:
                    del test["datasets"][key]
                    notes[f"{content['name']}: left out, {absent[0]} is not here"] = None
            run = replace(run, test=test if test["datasets"] else None)
        possible[name] = run
    return possible, list(notes)


def _unavailable(run: Run) -> str:
    """What is missing here for a row that is not trained; empty if nothing is."""
    if isinstance(run.source, Frames):
        return "" if Path(run.source.frames).is_dir() else f"{run.source.frames} is not here"
    if isinstance(run.source, Weights | TestOnly):
        weights = (run.test or {}).get("path", {}).get("pretrain_network_g")
        return f"{weights} is not here" if weights and not Path(weights).is_file() else ""
    return ""


def check_machine(runs: Iterable[Run], retrained: Collection[str] = (), processes: int = 1) -> None:
    """Raise CSDError if any row needs something that this machine lacks, before hours are spent on the first."""
    registration.install()
    from csd_plugin.models.preflight import check_clock, check_devices

    for run in _to_train(runs, retrained):
        assert run.options is not None
        num_gpu = gpus_of(run.options["num_gpu"])
        options = {**run.options, "num_gpu": num_gpu, "is_train": True, "dist": processes > 1}
        try:
            check_devices(options, processes)
            check_clock(options)
        except CSDError as error:
            raise CSDError(f"the row {run.row}: {error}") from error


def check_rows(runs: Iterable[Run]) -> None:
    """Raise CSDError with all mistakes in the options of these rows, before hours are spent on the first."""
    from csd_plugin.models.preflight import check_parts
    from csd_plugin.options.checks import find_problems

    lines: dict[str, None] = {}
    for run in runs:
        assert run.options is not None
        problems = Problems(f"the row {run.row}")
        options = {**run.options, "is_train": True}
        find_problems(options, problems)
        check_parts(options, problems)
        try:
            problems.raise_any()
        except ProblemsError as error:
            lines |= dict.fromkeys(error.lines)
    if lines:
        raise ProblemsError("the rows", list(lines))


def check_shares(runs: Iterable[Run], processes: int) -> None:
    """Raise CSDError if these processes cannot share a row's batch."""
    for run in runs:
        if run.options is not None:
            try:
                share_of(run.options, processes)
            except CSDError as error:
                raise CSDError(f"the row {run.row}: {error}") from error


def _to_train(runs: Iterable[Run], retrained: Collection[str]) -> list[Run]:
    return [
        run
        for run in runs
        if run.options is not None and (run.name in retrained or runner.left_behind(run.name) != "trained")
    ]


def _todo(runs: Mapping[str, Run], retrained: Collection[str]) -> list[str]:
    """One line per run: its state, and what remains to be done."""
    todo = {"done": "nothing", "trained": "test", "interrupted": "resume, test", "missing": "train, test"}
    lines = []
    for run in runs.values():
        anew: runner.State = "trained" if run.options is None else "missing"
        state = anew if run.name in retrained else runner.state(run)
        shown = "given" if state == "trained" and run.options is None else state  # existing weights or frames
        steps = length_of(run.options) if run.options else ""
        lines.append(f"{run.name:<36} {shown:<11} to do: {todo[state]:<15} {steps}".rstrip())
    return lines


def _schedule_notes(matrix: Matrix, runs: dict[str, Run]) -> list[str]:
    """The number of steps, or the time, for which each shown row was trained."""
    lengths: dict[str, list[str]] = {}
    for run in runs.values():
        if run.options and matrix.rows[run.row].shown and run.checkpoint.is_file():
            labels = lengths.setdefault(length_of(run.options), [])
            label = matrix.rows[run.row].label or run.row
            labels += [label] if label not in labels else []
    return [f"{length}: {', '.join(labels)}" for length, labels in lengths.items()]


def is_written(matrix: Matrix) -> bool:
    """Whether everything that `make_tables` does for a matrix was completed before."""
    return (_folder(matrix) / f"table{_LAST}").is_file()


def _save(grid: Grid, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in sorted(FORMATS, key=lambda suffix: suffix == _LAST):
        write_text(folder / f"table{suffix}", FORMATS[suffix](grid))
    return f"written: {folder}/table.md, .csv, .tex, .html"


def _folder(matrix: Matrix) -> Path:
    return Path("results", matrix.name)

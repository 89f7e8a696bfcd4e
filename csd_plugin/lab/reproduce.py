"""`csd reproduce`: from clean clips to networks that could ship, slice by slice."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from csd_plugin.atomic import write_text
from csd_plugin.errors import CSDError
from csd_plugin.lab.job import Table, check_machine, check_shares, is_written, make_tables
from csd_plugin.lab.matrix import Matrix, RainyInput, Row, Run, read_matrix, read_yaml
from csd_plugin.lab.plan import check_minutes, length_of
from csd_plugin.lab.rained import DATA, find_data, render_rain
from csd_plugin.lab.runner import Workspace
from csd_plugin.options.checks import is_taught
from csd_plugin.report.networks import as_markdown
from csd_plugin.weights import CATALOGUE, Network, Score, packing, read_catalogue, read_left

CHOSEN_BY = "validation"
"""The test set on which the best slice of a network is chosen."""


def reproduce(
    path: Path,
    *,
    clean: Path | None,
    validation: Path | None,
    minutes: float | None = None,
    retrain: Sequence[str] = (),
    processes: int = 1,
    dry_run: bool = False,
) -> str:
    """Render rain, train every network of a matrix file for one more slice, test, write the tables, pack the best.

    A slice trains all rows. The first slice starts as the matrix says, each later one from the weights of the previous
    slice, with a fresh optimizer and warm-up. An interrupted slice is resumed. For every network, the slice with
    the best PSNR of the luma on the validation clips is packed into `results/NAME/weights`.

    Args:
        path: the matrix file.
        clean: folder of clean clips to train on. Rain on them is rendered into `datasets/rain_clips`, unless it exists.
        validation: the same for clips to validate on.
        minutes: the time to which the schedule of a slice is fitted.
        retrain: rows of this slice that are trained again.
        processes: per training, on this machine; they share the batch of an option file.
        dry_run: do nothing, and return the plan.

    Returns:
        The table as Markdown and what was packed; or the plan.

    Raises:
        CSDError: data are missing, clips differ from before, the matrix file has a mistake, a device does not exist, or
            a training fails.
    """
    if minutes is not None:
        check_minutes(minutes)
    matrix = read_matrix(path)
    packed = Path("results", matrix.name, "weights")
    _catalogue(packed)  # a damaged one is reported before anything is trained
    number = 1
    while is_written(continued(matrix, number)):
        number += 1
    slices = [Table(path, continued(matrix, n)) for n in range(1, number + 1)]
    runs = list(slices[-1].runs().values())
    check_shares(runs, processes)
    check_machine(runs, processes=processes)
    data = find_data(clean, validation, runs)
    begun = Workspace(slices[-1].matrix.runs).folder.exists()
    start = "resumed" if begun else f"starting from the weights of slice {number - 1}" if number > 1 else "the first"
    print(f"slice {number}, {start}", file=sys.stderr, flush=True)
    if retrain and not begun:
        raise CSDError(
            f"--retrain: slice {number} has not begun, and earlier slices stay as they are, because it "
            f"starts from their weights"
        )
    if dry_run:
        rain = [f"rain on the clips of {folder} into {DATA}, unless it exists" for folder in data.values()]
        plan = make_tables(
            slices[-1:], minutes=minutes, retrain=retrain, processes=processes, dry_run=True, coming=[DATA]
        )
        return "\n".join([*rain, plan])
    render_rain(data)
    # packed before the tables are written, so that a slice interrupted in between counts as incomplete
    return make_tables(
        slices[-1:],
        minutes=minutes,
        retrain=retrain,
        processes=processes,
        finish=lambda: pack_best(matrix, slices, packed),
    )


def continued(matrix: Matrix, number: int) -> Matrix:
    """The matrix of a slice, with its own runs. From the second slice on, they start from those of the previous one."""
    rows = {name: row.model_copy(deep=True) for name, row in matrix.rows.items()}
    if number > 1:
        for name, row in matrix.rows.items():
            if row.trains:
                before = Path("experiments", f"{matrix.runs}_slice{number - 1}_{name}", "models", "net_g_latest.pth")
                rows[f"{name}_before"] = Row.model_validate({"weights": str(before), "shown": False})
                rows[name] = row.model_copy(update={"start": row.start | {"network_g": f"{name}_before"}})
    own = {"name": f"{matrix.name}_slice{number}", "runs": f"{matrix.runs}_slice{number}", "rows": rows}
    return matrix.model_copy(update=own)


def pack_best(matrix: Matrix, slices: list[Table], folder: Path) -> list[str]:
    """Pack the best slice of every trained row, as a file and in a catalogue like the package's own.

    Only slices that were validated on the same frames as the latest one are compared.

    Args:
        matrix: its rows.
        slices: all slices so far, including the latest.
        folder: where files and catalogue go.

    Returns:
        Lines that say what was packed, and what was left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    networks, rainy, left = _catalogue(folder)
    notes = []
    by_slice = [(table.matrix.runs, table.runs()) for table in slices]
    for name, row in matrix.rows.items():
        if not (row.shown and (row.trains or isinstance(row.source, RainyInput))):
            continue
        runs = {f"{prefix}_{name}": found[f"{prefix}_{name}"] for prefix, found in by_slice}
        scores, note = _comparable(list(runs.values()))
        notes += [f"{name}: {note}"] * bool(note)
        if isinstance(row.source, RainyInput) and scores:
            rainy = {**rainy, CHOSEN_BY: list(scores.values())[-1]}
        elif scores:
            best = runs[max(scores, key=lambda run: scores[run]["nturain_y"]["psnr"])]
            texts, score = _texts(best, len(scores)), {CHOSEN_BY: scores[best.name]}
            networks[name] = packing.pack(str(best.checkpoint), name, texts, score, None, folder)
    packing.write_catalogue(folder, networks, rainy, left)
    write_text(folder / "networks.md", as_markdown(networks, rainy) + "\n")
    return [*notes, f"packed: {', '.join(networks)} into {folder}"]


def _catalogue(folder: Path) -> tuple[dict[str, Network], dict[str, Score], dict[str, Network]]:
    """What was packed before: networks, scores of the rainy frames, and networks that were removed since.

    Raises CSDError for a file that is not a catalogue.
    """
    if not (folder / CATALOGUE).exists():
        return {}, {}, {}
    return *read_catalogue(folder), read_left(folder)


def _comparable(runs: Sequence[Run]) -> tuple[dict[str, Score], str]:
    """Scores, by name, of runs scored on the same frames as the latest one; and a note on what is left out.

    Runs whose checkpoint no longer exists are ignored.
    """
    there = [
        run
        for run in runs
        if _scores_of(run).is_file() and (isinstance(run.source, RainyInput) or run.checkpoint.is_file())
    ]
    scores = {run.name: packing.score_of(CHOSEN_BY, str(_scores_of(run))) for run in there}
    last = scores.get(runs[-1].name)
    if last is None:
        return {}, f"not packed, as it has no scores on the test set {CHOSEN_BY!r}"
    alike = {run: score for run, score in scores.items() if _frames(score) == _frames(last)}
    note = "slices validated on other frames than the latest one are not compared with it"
    return alike, note * (len(alike) < len(scores))


def _frames(score: Score) -> list[object]:
    return [score[key] for key in ("clips", "frames", "skip")]


def _scores_of(run: Run) -> Path:
    return Path("results", run.name, f"{CHOSEN_BY}.json")


def _texts(run: Run, slices: int) -> dict[str, str]:
    assert run.options is not None
    network = run.options["network_g"]
    distilled = " distilled" if is_taught(run.options) else ""
    plan = Path("results", f"{run.name.removesuffix('_' + run.row)}_runs", "options", f"{run.name}.yml")
    options = read_yaml(plan) if plan.is_file() else run.options
    return {
        "what": f"{network.get('preset', network['type'])}{distilled}",
        "trained_on": f"clean clips with rendered rain ({DATA})",
        "recipe": f"csd reproduce, {run.name}, best of {slices} slices: {length_of(options)}",
        "license": "not stated",
    }

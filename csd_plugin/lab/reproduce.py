"""`csd reproduce`: from clean clips to networks that could ship, slice by slice."""

from __future__ import annotations

from pathlib import Path

from csd_plugin.data.rain import PRESETS
from csd_plugin.data.rain.pairs import PairOptions, write_pairs
from csd_plugin.lab import packing
from csd_plugin.lab.job import Table, make_tables
from csd_plugin.lab.matrix import Matrix, Row, Run, read_matrix, read_yaml
from csd_plugin.report.networks import as_markdown
from csd_plugin.report.results import load_results
from csd_plugin.weights import read_catalogue

DATA = Path("datasets", "rain_clips")
QUALITY = 75  # of the JPEG files, about that of NTURain's
VARIANTS = 4
VALIDATION_SEED = 1000
CHOSEN_BY = "validation"
"""The test set by which the best slice of a network is chosen."""


def reproduce(path: Path, *, clean: Path | None, validation: Path | None, minutes: float | None) -> str:
    """Render rain, train every network of a matrix file for one more slice, test, draw the tables, pack the best.

    A slice trains all rows; the first starts where the matrix says, every further one from the weights that the slice
    before left, with a fresh optimizer and warm-up. One that was interrupted is gone on with. Of every network the
    slice with the best PSNR of the luma on the validation clips is packed into `results/NAME/weights`.

    clean, validation: folders of clean clips, on which rain is rendered into `datasets/rain_clips`, unless it is there.
    minutes: to which a slice's schedule is fitted.

    Raises CSDError: no data, a mistake in the matrix file, a training that fails.
    """
    matrix = read_matrix(path)
    _render(clean, "train", VARIANTS, 0)
    _render(validation, "test", 1, VALIDATION_SEED)
    number = 1
    while Path("results", f"{matrix.name}_slice{number}", "table.md").is_file():
        number += 1
    slices = [Table(path, continued(matrix, n)) for n in range(1, number + 1)]
    text = make_tables(slices[-1:], minutes=minutes)
    return text + "\n" + pack_best(matrix, slices, Path("results", matrix.name, "weights"))


def _render(clips: Path | None, split: str, variants: int, seed: int) -> None:
    if clips is None:
        return
    options = PairOptions(params=PRESETS["nturain"], seed=seed, split=split, variants=variants, quality=QUALITY)
    write_pairs(clips, DATA, options)


def continued(matrix: Matrix, number: int) -> Matrix:
    """The matrix of a slice: runs of its own, which from the second on start from those of the slice before."""
    rows = {name: row.model_copy(deep=True) for name, row in matrix.rows.items()}
    if number > 1:
        for name, row in matrix.rows.items():
            if row.trains:
                before = Path("experiments", f"{matrix.runs}_slice{number - 1}_{name}", "models", "net_g_latest.pth")
                rows[f"{name}_before"] = Row.model_validate({"weights": str(before), "shown": False})
                rows[name] = row.model_copy(update={"start": row.start | {"network_g": f"{name}_before"}})
    own = {"name": f"{matrix.name}_slice{number}", "runs": f"{matrix.runs}_slice{number}", "rows": rows}
    return matrix.model_copy(update=own)


def pack_best(matrix: Matrix, slices: list[Table], folder: Path) -> str:
    """Of every row that trains the best slice, as a file and in a catalogue as the package's own; what was done."""
    folder.mkdir(parents=True, exist_ok=True)
    catalogue = folder / "networks.json"
    if not catalogue.is_file():
        catalogue.write_text('{"rainy": {}, "networks": {}}\n', encoding="utf-8")
    networks, rainy = read_catalogue(folder)
    for name, row in matrix.rows.items():
        runs = [table.runs()[f"{table.matrix.runs}_{name}"] for table in slices] if row.trains and row.shown else []
        scored = [(run, _validated(run)) for run in runs]
        known = [(psnr, run) for run, psnr in scored if psnr is not None and run.checkpoint.is_file()]
        if known:
            best = max(known, key=lambda pair: pair[0])[1]
            scores = {CHOSEN_BY: packing.score_of(CHOSEN_BY, str(_scores_of(best)))}
            networks[name] = packing.pack(str(best.checkpoint), name, _texts(best, len(runs)), scores, None, folder)
    packing.write_catalogue(folder, networks, rainy)
    (folder / "networks.md").write_text(as_markdown(networks, rainy) + "\n", encoding="utf-8")
    return f"packed: {', '.join(networks)} into {folder}"


def _scores_of(run: Run) -> Path:
    return Path("results", run.name, f"{CHOSEN_BY}.json")


def _validated(run: Run) -> float | None:
    file = _scores_of(run)
    return load_results(file).scores.average()["nturain_y"].psnr if file.is_file() else None


def _texts(run: Run, slices: int) -> dict[str, str]:
    assert run.options is not None
    network = run.options["network_g"]
    distilled = " distilled" if run.options["model_type"] == "DistillModel" else ""
    plan = Path("results", f"{run.name.removesuffix('_' + run.row)}_runs", "options", f"{run.name}.yml")
    options = read_yaml(plan) if plan.is_file() else run.options
    return {
        "what": f"{network.get('preset', network['type'])}{distilled}",
        "trained_on": f"clean clips with rendered rain ({DATA})",
        "recipe": f"csd reproduce, {run.name}, best of {slices} slices: {options['train']['total_iter']} iterations",
        "licence": "not stated",
    }

"""A matrix file: one results table as rows of small differences from one option file.

    name: table5                        # results/table5 is where the table appears
    runs: lab                           # begins the names of experiments; files that share it share trained rows
    include: [networks.yml]             # rows and settings of other matrix files, which this one adds to
    base: ../distill/student1_csd.yml   # what every row trains by, unless it names another
    test: ../test/lab.yml               # the test sets; each row's network is put in
    seeds: [0]
    baseline: alone                     # the row over which gains are shown
    rows:
      teacher: {base: ../train/teacher.yml, shown: false}
      alone:   {set: {train.distill_opt.weights: {spatial: 0, temporal: 0}}, seeds: [0, 1, 2]}
      csd:     {label: CSD, start: {network_t: teacher}, published: {psnr: 36.70, ssim: 0.9733}}
      s2vd:    {label: S2VD, test_only: ../test/s2vd.yml}
      spaccnn: {label: SpacCNN, frames: ../../results/SpacCNN}
      shipped: {weights: student2}

Paths are relative to the file. `set` changes single keys, `section.key: value`; `start` says by whose trained networks
`network_g` and `network_t` begin.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from csd_plugin.errors import CSDError, suggestion
from csd_plugin.weights import find_checkpoint

Seed = Annotated[int, Field(strict=True, ge=0, lt=2**31)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class PublishedScore(_Strict):
    """What a paper reports for a row: PSNR in dB and SSIM on the 8-bit luma."""

    psnr: float
    ssim: float | None = None


class Row(_Strict):
    """One row. It is trained, unless one of weights, test_only, frames, input and network says otherwise."""

    label: str | None = Field(None, description="how the table calls it; by default its key")
    base: str | None = Field(None, description="its option file for training, instead of the matrix's")
    set: dict[str, Any] = Field(default_factory=dict, description="differences, section.key: value")
    start: dict[str, str] = Field(default_factory=dict, description="network_g, network_t: the row they start from")
    seeds: list[Seed] | None = Field(None, min_length=1)
    weights: str | None = Field(None, description="a checkpoint, or a network of this package's: nothing is trained")
    test_only: str | None = Field(None, description="a test option file: nothing is trained")
    frames: str | None = Field(None, description="a folder of result frames that are scored as they are")
    input: bool = Field(False, description="the rainy frames themselves")
    network: dict[str, Any] | None = Field(None, description="a network whose costs alone count")
    published: PublishedScore | str | None = Field(None, description="numbers, or a row of report/published.py")
    shown: bool = True

    @property
    def trains(self) -> bool:
        return not (self.weights or self.test_only or self.frames or self.input or self.network)


class Matrix(_Strict):
    """A matrix file, its includes merged."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    title: str = ""
    runs: str = Field("lab", pattern=r"^[\w.-]+$")
    include: list[str] = Field(default_factory=list)
    base: str | None = None
    test: str | None = None
    set: dict[str, Any] = Field(default_factory=dict, description="differences of all rows that train")
    seeds: list[Seed] = Field([0], min_length=1)
    baseline: str | None = None
    complexity: bool = Field(False, description="columns: parameters, multiply-adds")
    speed: bool = Field(False, description="column: measured seconds a frame")
    clips: bool = Field(False, description="a column for each clip, beside the average")
    rows: dict[str, Row] = Field(min_length=1)


@dataclass(frozen=True)
class Run:
    """One training or test that a row needs.

    name: of experiments/NAME and results/NAME. options: what it trains by, None where it does not train. test: what it
    is tested by; where frames are there already, only its test sets count. frames: the folder of such frames.
    rainy: the input itself is scored. weights: the file that it leaves to others, where it is not trained.
    """

    name: str
    row: str
    seed: int
    options: dict[str, Any] | None
    test: dict[str, Any] | None
    frames: Path | None = None
    rainy: bool = False
    weights: Path | None = None

    @property
    def checkpoint(self) -> Path:
        """What a finished training leaves behind, or what there is without one."""
        return self.weights or Path("experiments", self.name, "models", "net_g_latest.pth")


def read_matrix(path: Path) -> Matrix:
    """A matrix file with its includes. Raises CSDError: not there, not YAML, unknown keys, rows that do not fit."""
    content = _merged(path, ())
    try:
        matrix = Matrix.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = Row.model_fields if len(first["loc"]) > 2 else Matrix.model_fields
            raise CSDError(f"{path}: {key} is unknown{suggestion(str(first['loc'][-1]), known)}") from None
        raise CSDError(f"{path}: {key}: {first['msg'].lower()}") from None
    _check_rows(matrix, path)
    return matrix


def runs_of(matrix: Matrix, source: Path, only: list[str] | None = None) -> dict[str, Run]:
    """Every run that the shown rows need, those that others start from first.

    only: these rows alone, and what they start from. Raises CSDError for unknown rows and option files that cannot
    be read.
    """
    for name in only or []:
        if name not in matrix.rows:
            raise CSDError(f"{source}: there is no row {name!r}{suggestion(name, matrix.rows)}")
    runs: dict[str, Run] = {}

    def add(key: str, seeds: list[int]) -> None:
        row = matrix.rows[key]
        for seed in seeds:
            name = run_name(matrix, key, seed)
            if name in runs:
                continue
            begun = {}
            for network, other in row.start.items():
                other_seed = _seed_of(matrix, other, seed)
                add(other, [other_seed])
                begun[network] = runs[run_name(matrix, other, other_seed)].checkpoint
            options = _training_options(matrix, row, name, seed, begun) if row.trains else None
            run = Run(
                name,
                key,
                seed,
                options,
                test=None,
                frames=Path(row.frames) if row.frames else None,
                rainy=row.input,
                weights=find_checkpoint(row.weights) if row.weights else None,
            )
            runs[name] = replace(run, test=_test_options(matrix, row, run) if row.shown else None)

    for key, row in matrix.rows.items():
        if key in (only or [key for key, row in matrix.rows.items() if row.shown]):
            add(key, _seeds(matrix, row))
    return runs


def run_name(matrix: Matrix, key: str, seed: int) -> str:
    """`lab_csd`, and for further seeds `lab_csd_seed1`."""
    first = _seeds(matrix, matrix.rows[key])[0]
    return f"{matrix.runs}_{key}" + ("" if seed == first else f"_seed{seed}")


def changed(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested options with `section.key` replaced; sections that are missing are made."""
    result = deepcopy(dict(options))
    for path, value in changes.items():
        *sections, key = path.split(".")
        section = result
        for name in sections:
            if not isinstance(section.get(name), dict):
                section[name] = {}
            section = section[name]
        section[key] = deepcopy(value)
    return result


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that is a mapping, read as data only. Raises CSDError."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CSDError(f"{path}: cannot be read ({error}); check the path") from error
    except yaml.YAMLError as error:
        raise CSDError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise CSDError(f"{path}: holds no mapping")
    return content


def _seeds(matrix: Matrix, row: Row) -> list[int]:
    return (row.seeds or matrix.seeds) if row.trains else [0]


def _seed_of(matrix: Matrix, key: str, seed: int) -> int:
    """With which of a row's seeds another run of `seed` starts: its own, or the first where that is not trained."""
    seeds = _seeds(matrix, matrix.rows[key])
    return seed if seed in seeds else seeds[0]


def _training_options(matrix: Matrix, row: Row, name: str, seed: int, begun: Mapping[str, Path]) -> dict[str, Any]:
    options = read_yaml(Path(row.base or matrix.base or ""))
    starts = {f"path.pretrain_{net}": str(file) for net, file in begun.items()}
    keys = {f"path.param_key_{net.removeprefix('network_')}": "params_ema" for net in begun}
    own = {"name": name, "manual_seed": seed}
    options = changed(options, starts | keys | matrix.set | row.set | own)
    if options.get("val") is None:  # the toolbox would open what it never looks at
        options["datasets"] = {key: value for key, value in options["datasets"].items() if not key.startswith("val")}
    return options


def _test_options(matrix: Matrix, row: Row, run: Run) -> dict[str, Any] | None:
    if row.network:
        return {"network_g": row.network, "datasets": {}}
    if not (row.test_only or matrix.test):
        return None
    content = read_yaml(Path(row.test_only or matrix.test or "")) | {"name": run.name}
    if row.test_only and matrix.test:
        content["datasets"] = read_yaml(Path(matrix.test))["datasets"]
    if not (row.trains or row.weights):
        return content
    options = run.options or read_yaml(Path(row.base or matrix.base or ""))
    content |= {key: deepcopy(options[key]) for key in ("network_g", "interface_g") if key in options}
    ema = options["train"].get("ema_decay", 0) > 0
    own = {"path.pretrain_network_g": str(run.checkpoint), "path.param_key_g": "params_ema" if ema else "params"}
    return changed(content, own)


def _merged(path: Path, inside: tuple[Path, ...]) -> dict[str, Any]:
    """The file's content over that of its includes, all paths made relative to the current folder."""
    path = path.resolve()
    if path in inside:
        raise CSDError(f"{path}: includes itself")
    own = _with_paths(read_yaml(path), path)
    content: dict[str, Any] = {}
    for other in own.get("include") or []:
        content = _over(content, _merged(Path(other), (*inside, path)))
    return _over(content, own)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of both; of `rows` and each row, and of every `set`, the keys of both again."""
    merged = dict(below) | dict(above)
    for key in ("rows", "set", "start"):
        if isinstance(below.get(key), dict) and isinstance(above.get(key), dict):
            both = below[key].keys() & above[key].keys() if key == "rows" else ()
            merged[key] = below[key] | above[key] | {k: _over(below[key][k], above[key][k]) for k in both}
    return merged


def _with_paths(content: dict[str, Any], path: Path) -> dict[str, Any]:
    def placed(value: Any) -> Any:
        return str(path.parent / value) if isinstance(value, str) else value

    content = dict(content)
    for key in content.keys() & {"base", "test"}:
        content[key] = placed(content[key])
    if isinstance(content.get("include"), list):
        content["include"] = [placed(value) for value in content["include"]]
    if isinstance(content.get("rows"), dict):
        content["rows"] = {
            str(name): {k: placed(v) if k in ("base", "test_only", "frames") else v for k, v in (row or {}).items()}
            for name, row in content["rows"].items()
        }
    return content


def _check_rows(matrix: Matrix, path: Path) -> None:
    for name, row in matrix.rows.items():
        if sum(map(bool, (row.weights, row.test_only, row.frames, row.input, row.network))) > 1:
            raise CSDError(f"{path}: rows.{name}: only one of weights, test_only, frames, input and network")
        if (row.trains or (row.weights and row.shown)) and not (row.base or matrix.base):
            raise CSDError(f"{path}: rows.{name} has no option file: give it, or the matrix, a base")
        for network, other in row.start.items():
            if network not in ("network_g", "network_t"):
                raise CSDError(f"{path}: rows.{name}.start.{network}: only network_g and network_t start from a row")
            if other not in matrix.rows:
                raise CSDError(f"{path}: rows.{name}.start: there is no row {other!r}{suggestion(other, matrix.rows)}")
            if not (matrix.rows[other].trains or matrix.rows[other].weights):
                raise CSDError(f"{path}: rows.{name}.start: the row {other} is not trained")
        _check_no_circle(matrix, name, (), path)
    if matrix.baseline is not None and matrix.baseline not in matrix.rows:
        raise CSDError(f"{path}: baseline: no row {matrix.baseline!r}{suggestion(matrix.baseline, matrix.rows)}")


def _check_no_circle(matrix: Matrix, name: str, before: tuple[str, ...], path: Path) -> None:
    if name in before:
        raise CSDError(f"{path}: rows {' -> '.join((*before, name))} start from each other")
    for other in matrix.rows[name].start.values():
        _check_no_circle(matrix, other, (*before, name), path)

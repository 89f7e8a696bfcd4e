"""A matrix file: one results table as rows of small differences from one option file.

    name: table5                        # the table is written to results/table5
    runs: lab                           # prefix of the experiments; files that share it share trained rows
    include: [networks.yml]             # rows and settings of other matrix files, which this one adds to
    base: ../distill/student1_csd.yml   # the option file of every row, unless it names another
    test: ../test/lab.yml               # the test sets; each row's network is inserted
    seeds: [0]
    baseline: alone                     # the row over which gains are shown
    rows:
      teacher: {base: ../train/teacher.yml, shown: false}
      alone:   {set: {train.distill_opt.weights: {spatial: 0, temporal: 0}}, seeds: [0, 1, 2]}
      csd:     {label: CSD, start: {network_t: teacher}, published: {psnr: 36.70, ssim: 0.9733}}
      s2vd:    {label: S2VD, test_only: ../test/s2vd.yml}
      spaccnn: {label: SpacCNN, frames: ../../results/SpacCNN}
      shipped: {weights: tiny}

`include`, `base`, `test`, `test_only` and `frames` are relative to the file. `weights` is a network of this package, or
a checkpoint, whose path is relative to the current folder, like those in option files; the weights, or else `base`,
show which network it is. `set` changes single keys, `section.key: value`; `start` names the rows from whose trained
networks `network_g` and `network_t` start.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from csd_plugin import limited_yaml
from csd_plugin.errors import CSDError, suggestion
from csd_plugin.metrics.published import PUBLISHED
from csd_plugin.weights import find_checkpoint

Seed = Annotated[int, Field(strict=True, ge=0, lt=2**31)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class PublishedScore(_Strict):
    """What a paper reports for a row: PSNR in dB and SSIM on the 8-bit luma."""

    psnr: float
    ssim: float | None = None


class Training(_Strict):
    """The row is trained with its option file."""

    kind: Literal["training"] = "training"


class Weights(_Strict):
    """Existing weights: a checkpoint's path from the current folder, or a network of this package."""

    kind: Literal["weights"]
    weights: str = Field(min_length=1)


class TestOnly(_Strict):
    """A test option file: it names the network and its weights."""

    __test__ = False  # for pytest: no test case

    kind: Literal["test_only"]
    test_only: str


class Frames(_Strict):
    """A folder of result frames, which are scored directly."""

    kind: Literal["frames"]
    frames: str


class RainyInput(_Strict):
    """The rainy frames themselves."""

    kind: Literal["input"]
    input: Literal[True]


class CostsOnly(_Strict):
    """A network of which only the cost is shown, described like `network_g` in an option file."""

    kind: Literal["network"]
    network: dict[str, Any] = Field(min_length=1)


Source = Training | Weights | TestOnly | Frames | RainyInput | CostsOnly
SOURCE_KEYS = ("weights", "test_only", "frames", "input", "network")
"""The keys of a row that say where its figures come from. A row without one of them is trained."""


class Row(_Strict):
    """One row."""

    label: str | None = Field(None, description="its name in the table (default: its key)")
    base: str | None = Field(None, description="its option file for training, instead of the matrix's")
    set: dict[str, Any] = Field(default_factory=dict, description="differences, section.key: value")
    start: dict[str, str] = Field(default_factory=dict, description="network_g, network_t: the row they start from")
    seeds: list[Seed] | None = Field(None, min_length=1)
    source: Source = Field(Training(), discriminator="kind", description="one of SOURCE_KEYS, in the file")
    published: PublishedScore | str | None = Field(None, description="an average, or a row of metrics/published.py")
    shown: bool = True

    @model_validator(mode="before")
    @classmethod
    def _tag_source(cls, content: Any) -> Any:
        """Replace the file's key, `weights: student2` for example, by the source that it names."""
        if not isinstance(content, Mapping):
            return content
        if "source" in content:
            raise PydanticCustomError("unknown", "source is unknown; give one of " + ", ".join(SOURCE_KEYS))
        given = {key: content[key] for key in SOURCE_KEYS if content.get(key) is not None}
        if given.get("input") is False:
            del given["input"]
        if len(given) > 1:
            raise PydanticCustomError("exclusive", "only one of " + ", ".join(SOURCE_KEYS))
        row = {key: value for key, value in content.items() if key not in SOURCE_KEYS}
        for key, value in given.items():
            row["source"] = {"kind": key, key: value}
        return row

    @property
    def trains(self) -> bool:
        return isinstance(self.source, Training)

    @property
    def has_weights(self) -> bool:
        """Whether other rows can start from it."""
        return isinstance(self.source, Training | Weights)


class Matrix(_Strict):
    """A matrix file, its includes merged."""

    name: str = Field(min_length=1, pattern=r"^\w[\w.-]*$")
    title: str = ""
    runs: str = Field("lab", pattern=r"^\w[\w.-]*$")
    include: list[str] = Field(default_factory=list)
    base: str | None = None
    test: str | None = None
    set: dict[str, Any] = Field(default_factory=dict, description="differences of all rows that train")
    seeds: list[Seed] = Field([0], min_length=1)
    baseline: str | None = None
    complexity: bool = Field(False, description="columns: parameters, multiply-adds")
    speed: bool = Field(False, description="column: measured seconds per frame")
    clips: bool = Field(False, description="a column for each clip, in addition to the average")
    published_of: str = Field("", description="the clips that published averages are of, for the heading")
    rows: dict[str, Row] = Field(min_length=1)


@dataclass(frozen=True)
class Run:
    """One training or test that a row needs.

    Attributes:
        name: of experiments/NAME and results/NAME.
        row: the key of its row.
        seed: the seed of its training.
        source: where its figures come from.
        checkpoint: the file that its training writes, or its existing weights. Other runs start from it.
        options: the content of its option file for training; None if it is not trained.
        test: the content of its option file for the test; None if it is not tested. For existing frames, only the test
            sets are used.
    """

    name: str
    row: str
    seed: int
    source: Source
    checkpoint: Path
    options: dict[str, Any] | None
    test: dict[str, Any] | None = None


def read_matrix(path: Path) -> Matrix:
    """A matrix file with its includes.

    Raises:
        CSDError: the file does not exist or is not YAML, a key is unknown, or rows do not fit together.
    """
    content = _merged(path, ())
    if "model_type" in content:
        raise CSDError(f"{path}: an option file, not a matrix; csd inspect {path} shows what it describes")
    try:
        matrix = Matrix.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in _as_in_the_file(first["loc"]))
        if first["type"] == "extra_forbidden":
            known = (
                (*(Row.model_fields.keys() - {"source"}), *SOURCE_KEYS)
                if "rows" in first["loc"]
                else Matrix.model_fields
            )
            raise CSDError(f"{path}: {key} is unknown{suggestion(str(first['loc'][-1]), known)}") from None
        raise CSDError(f"{path}: {key}: {first['msg'].lower()}") from None
    _check_rows(matrix, path)
    return matrix


def runs_of(matrix: Matrix, source: Path, only: list[str] | None = None) -> dict[str, Run]:
    """Every run that the shown rows need; runs from which others start come first.

    Args:
        matrix: its rows.
        source: the file it came from, for messages.
        only: only these rows, and those they start from.

    Raises:
        CSDError: a row is unknown, or an option file cannot be read.
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
                if runs[name].row != key:
                    raise CSDError(
                        f"{source}: rows.{key} and rows.{runs[name].row} would both be experiments/{name}; rename one"
                    )
                continue
            begun = {}
            for network, other in row.start.items():
                other_seed = _seed_of(matrix, other, seed)
                add(other, [other_seed])
                begun[network] = runs[run_name(matrix, other, other_seed)].checkpoint
            try:
                checkpoint = (
                    find_checkpoint(row.source.weights)
                    if isinstance(row.source, Weights)
                    else Path("experiments", name, "models", "net_g_latest.pth")
                )
                options = _training_options(matrix, row, name, seed, begun) if row.trains else None
                run = Run(name, key, seed, row.source, checkpoint, options)
                runs[name] = replace(run, test=_test_options(matrix, row, run) if row.shown else None)
            except CSDError as error:
                raise CSDError(f"{source}: rows.{key}: {error}") from error

    for key, row in matrix.rows.items():
        if key in (only or [key for key, row in matrix.rows.items() if row.shown]):
            add(key, _seeds(matrix, row))
    return runs


def run_name(matrix: Matrix, key: str, seed: int) -> str:
    """`lab_csd`, and for further seeds `lab_csd_seed1`."""
    first = _seeds(matrix, matrix.rows[key])[0]
    return f"{matrix.runs}_{key}" + ("" if seed == first else f"_seed{seed}")


def changed(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested options with each `section.key` of `changes` set; missing sections are added."""
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
    """The content of a YAML file, which must be a mapping; no code in it is run. Raises CSDError."""
    content = limited_yaml.read_yaml(path)
    if not isinstance(content, dict):
        raise CSDError(f"{path}: is not a mapping")
    return content


def _as_in_the_file(location: Sequence[int | str]) -> list[int | str]:
    """pydantic's location of a mistake, without `source` and its tag, which are not in the file."""
    parts = list(location)
    if parts[:1] == ["rows"] and parts[2:3] == ["source"]:
        del parts[2:4]
    return parts


def _seeds(matrix: Matrix, row: Row) -> list[int]:
    return (row.seeds or matrix.seeds) if row.trains else [0]


def _seed_of(matrix: Matrix, key: str, seed: int) -> int:
    """The seed of the row from which a run of `seed` starts: the same one, or the row's first if it lacks that."""
    seeds = _seeds(matrix, matrix.rows[key])
    return seed if seed in seeds else seeds[0]


def _training_options(matrix: Matrix, row: Row, name: str, seed: int, begun: Mapping[str, Path]) -> dict[str, Any]:
    options = read_yaml(Path(row.base or matrix.base or ""))
    starts = {f"path.pretrain_{net}": str(file) for net, file in begun.items()}
    keys = {f"path.param_key_{net.removeprefix('network_')}": "params_ema" for net in begun}
    own = {"name": name, "manual_seed": seed}
    options = changed(options, starts | keys | matrix.set | row.set | own)
    for section in ("datasets", "network_g", "path", "train", "logger"):
        _section(options, section, f"{row.base or matrix.base} with its changes", "nothing trains by it")
    if options.get("val") is None:  # the toolbox would open data that it never uses
        options["datasets"] = {
            key: value for key, value in options["datasets"].items() if not str(key).startswith("val")
        }
    return options


def _section(options: Mapping[str, Any], name: str, source: str, so: str) -> Mapping[str, Any]:
    section = options.get(name)
    if not isinstance(section, Mapping):
        raise CSDError(f"{source} has no section {name}, so {so}")
    return section


def _test_options(matrix: Matrix, row: Row, run: Run) -> dict[str, Any] | None:
    if isinstance(row.source, CostsOnly):
        from csd_plugin.archs import NETWORKS

        named = {"network_g": row.source.network, "datasets": {}}
        base = row.base or matrix.base
        if not base or row.source.network.get("type") in NETWORKS:  # ours say themselves how they are called
            return named
        return named | {key: value for key, value in read_yaml(Path(base)).items() if key == "interface_g"}
    if isinstance(row.source, TestOnly):
        content = read_yaml(Path(row.source.test_only)) | {"name": run.name}
        if not matrix.test:
            return content
        return content | {
            "datasets": _section(read_yaml(Path(matrix.test)), "datasets", matrix.test, "it tests nothing")
        }
    has_costs = isinstance(row.source, Weights) and (matrix.complexity or matrix.speed)
    if not matrix.test and not has_costs:
        return None
    content = (read_yaml(Path(matrix.test)) if matrix.test else {"datasets": {}}) | {"name": run.name}
    if not row.has_weights:
        return content
    loaded = {"path.pretrain_network_g": str(run.checkpoint), "path.param_key_g": "params_ema"}
    if isinstance(row.source, Weights) and not (row.base or matrix.base):
        network = _network_in(run.checkpoint)
        if not network:
            raise CSDError(
                f"{run.checkpoint} does not show which network its weights are of; "
                f"give the row a base, whose network_g does"
            )
        return changed(content | network, loaded)
    options = run.options or read_yaml(Path(row.base or matrix.base or ""))
    content |= {key: deepcopy(options[key]) for key in ("network_g", "interface_g") if key in options}
    if isinstance(row.source, Weights):
        content |= _network_in(run.checkpoint)
    train = _section(options, "train", str(row.base or matrix.base), "how its weights were averaged is not known")
    decay = train.get("ema_decay", 0)
    ema = isinstance(decay, int | float) and decay > 0  # the checks of options report other types
    return changed(content, loaded if ema else loaded | {"path.param_key_g": "params"})


def _network_in(checkpoint: Path) -> dict[str, Any]:
    """`network_g` for existing weights; empty if they do not show which network they belong to."""
    from csd_plugin.archs.checkpoint import network_of, read_state_dict
    from csd_plugin.weights.packing import numbers_of

    network = network_of(read_state_dict(checkpoint, "params_ema", fallback=True))
    return {} if network is None else {"network_g": {"type": type(network).__name__, **numbers_of(network)}}


_SET = "{train.total_iter: 1000}"


def _merged(path: Path, inside: tuple[Path, ...]) -> dict[str, Any]:
    """The file's content over that of its includes, with all paths made relative to the current folder."""
    path = path.resolve()
    if path in inside:
        raise CSDError(f"{path}: includes itself")
    own = read_yaml(path)
    _check_shapes(own, path)
    own = _with_paths(own, path)
    content: dict[str, Any] = {}
    for other in own.get("include") or []:
        content = _over(content, _merged(Path(other), (*inside, path)))
    return _over(content, own)


def _check_shapes(content: Mapping[str, Any], path: Path) -> None:
    """Raise CSDError for what cannot be merged, or would be lost in merging; the rest is checked after merging."""
    include = content.get("include") or []
    if not (isinstance(include, list) and all(isinstance(name, str) for name in include)):
        raise CSDError(
            f"{path}: include: give a list of files, such as [networks.yml], instead of {reprlib.repr(include)}"
        )
    _check_mapping(content.get("rows"), f"{path}: rows", "{csd: {label: CSD}}")
    _check_mapping(content.get("set"), f"{path}: set", _SET)
    for name, row in (content.get("rows") or {}).items():
        where = f"{path}: rows.{name}"
        _check_mapping(row, where, "{base: student1.yml}")
        _check_mapping((row or {}).get("set"), f"{where}.set", _SET)
        _check_mapping((row or {}).get("start"), f"{where}.start", "{network_t: teacher}")


def _check_mapping(value: Any, where: str, example: str) -> None:
    if value is not None and not isinstance(value, dict):
        raise CSDError(f"{where}: give keys and their values, such as {example}, instead of {reprlib.repr(value)}")


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of both, `above` first; `rows`, each row, `set` and `start` are merged in the same way."""
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
        if len({str(name) for name in content["rows"]}) < len(content["rows"]):
            raise CSDError(f"{path}: rows: two keys differ only in quotes; rename one")
        content["rows"] = {
            str(name): {k: placed(v) if k in ("base", "test_only", "frames") else v for k, v in (row or {}).items()}
            for name, row in content["rows"].items()
        }
    return content


_ROW = re.compile(r"\w[\w.+-]*")
_OWN = {
    "name": "a run is named after its row; change the row's key, or `runs`",
    "manual_seed": "give `seeds`, for the row or the matrix",
}
"""Keys of option files that a matrix sets in its own way -> what to do instead."""


def _check_rows(matrix: Matrix, path: Path) -> None:
    for key in (*matrix.set, *(key for row in matrix.rows.values() for key in row.set)):
        if key in _OWN:
            raise CSDError(f"{path}: set.{key}: {_OWN[key]}")
    for name, row in matrix.rows.items():
        if not _ROW.fullmatch(name):
            raise CSDError(f"{path}: rows.{name}: a row's key becomes a folder's name; use letters, digits and _.+-")
        idle = [key for key in ("seeds", "set", "start") if getattr(row, key)]
        if idle and not row.trains:
            raise CSDError(f"{path}: rows.{name}.{idle[0]}: without effect, as this row is not trained; leave it out")
        if isinstance(row.published, str) and row.published not in PUBLISHED:
            raise CSDError(
                f"{path}: rows.{name}.published: {row.published!r} is unknown{suggestion(row.published, PUBLISHED)}"
            )
        if row.trains and not (row.base or matrix.base):
            raise CSDError(f"{path}: rows.{name} has no option file: give the row or the matrix a base")
        for network, other in row.start.items():
            if network not in ("network_g", "network_t"):
                raise CSDError(f"{path}: rows.{name}.start.{network}: only network_g and network_t start from a row")
            if other not in matrix.rows:
                raise CSDError(f"{path}: rows.{name}.start: there is no row {other!r}{suggestion(other, matrix.rows)}")
            if not matrix.rows[other].has_weights:
                raise CSDError(f"{path}: rows.{name}.start: the row {other} is not trained")
        _check_no_circle(matrix, name, (), path)
    if matrix.baseline is not None and matrix.baseline not in matrix.rows:
        raise CSDError(f"{path}: baseline: no row {matrix.baseline!r}{suggestion(matrix.baseline, matrix.rows)}")


def _check_no_circle(matrix: Matrix, name: str, before: tuple[str, ...], path: Path) -> None:
    if name in before:
        raise CSDError(f"{path}: rows {' -> '.join((*before, name))} start from each other")
    for other in matrix.rows[name].start.values():
        _check_no_circle(matrix, other, (*before, name), path)

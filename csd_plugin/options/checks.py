"""Checks of an option file's form: everything that `sections` does not describe is an error, reported in one line.

Whatever the options refer to, such as files and layers, is checked by `models.preflight`.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ValidationError, create_model

from csd_plugin.archs import NETWORKS
from csd_plugin.data.datasets import DATASETS
from csd_plugin.distill import OBJECTIVES
from csd_plugin.distill.schedule import check_weight, is_balanced
from csd_plugin.distill.settings import read_distillation, teacher_labels, teacher_shares
from csd_plugin.errors import CSDError, suggestion
from csd_plugin.losses import LOSSES
from csd_plugin.options.problems import Problems
from csd_plugin.options.sections import (
    MODELS,
    OF_OTHER_MODELS,
    SECTIONS,
    TEACHER_KEYS,
    BalanceSection,
    FileSection,
    InterfaceSection,
    LayerSection,
    LossSection,
    OptimizerSection,
    RunSection,
    SchedulerSection,
    TapsSection,
    TypedSection,
    WeightSection,
    dataset_section,
    made_once,
    objective_section,
    part_section,
    section_of,
)

_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")

Further = Callable[[dict[str, Any], Problems], object]
"""Adds problems of what the options refer to, given those found before."""


def distils(opt: Mapping[str, Any]) -> bool:
    """Whether the options describe a training run of our models with teachers."""
    model_type = opt.get("model_type")
    return bool(opt["is_train"]) and isinstance(model_type, str) and MODELS.get(model_type, False)


def is_taught(opt: Mapping[str, Any]) -> bool:
    """Whether a training with these options distils: it has teachers, and a weight that is not 0."""
    return MODELS.get(opt["model_type"], False) and read_distillation(opt).teaches


def check_file(
    content: Any, source: str, twice: Iterable[tuple[int, str]] = (), further: Further | None = None
) -> None:
    """Check, before the toolbox does, what it takes for granted while it reads an option file.

    Args:
        content: the parsed file.
        source: the file's name, for messages.
        twice: duplicate keys, as (line, message).
        further: also called if something is wrong with a file of our models, so that everything is reported at once.

    Raises:
        CSDError: the file is not a mapping, has a key twice, or one of `name`, `num_gpu`, `datasets` and `path` is
            invalid; the message then lists everything that is wrong with the file.
    """
    if isinstance(content, Mapping) and not content.keys().isdisjoint({"rows", "include"}):
        raise CSDError(f"{source}: a matrix, not an option file; csd table {source} --dry-run shows what it holds")
    if not isinstance(content, Mapping):
        raise CSDError(f"{source}: not an option file, which has sections such as name:, datasets:, network_g:")
    problems = Problems(source)
    for line, text in twice:
        problems.add_at(line, text)
    _check(content, FileSection, "", problems)
    if problems.sound("datasets"):
        for key in content["datasets"]:
            if key.split("_")[0] not in ("train", "val", "test"):
                text = f"datasets.{key} is unknown; name data sets train, val, val_2 .. or test_1 .."
                meant = difflib.get_close_matches(str(key), ("train", "val", "test"), 1)
                problems.add(f"datasets.{key}", text, meant=[f"datasets.{name}" for name in meant])
    if problems:
        opt = {**content, "is_train": "train" in content}
        find_problems(opt, problems)
        name = opt.get("model_type")
        if further is not None and isinstance(name, str) and (name in MODELS or meant_model(name)):
            further(opt, problems)
    problems.raise_any()


def check_options(opt: Mapping[str, Any], source: str) -> None:
    """Check a parsed option file.

    Args:
        opt: the options, as the toolbox parsed them.
        source: the file they came from, for the message.

    Raises:
        CSDError: lists all mistakes: file, line, key, what is wrong, the nearest known key.
    """
    problems = Problems(source)
    find_problems(opt, problems)
    problems.raise_any()


def meant_model(model_type: str) -> str:
    """The model of ours that a mistyped `model_type` means; empty if it means none, or the toolbox knows it."""
    return _meant(model_type, MODELS, "MODEL_REGISTRY")


def _meant(name: str, ours: Collection[str], registry: str) -> str:
    """The nearest of our names to one that neither we nor the toolbox has; empty if none is near."""
    theirs = getattr(sys.modules.get("basicsr.utils.registry"), registry, None)
    if theirs is None or name in ours or not list(theirs) or name in theirs:
        return ""
    near = difflib.get_close_matches(name, ours, n=1, cutoff=0.8)
    return near[0] if near else ""


def find_problems(opt: Mapping[str, Any], problems: Problems) -> None:
    """Add everything that is wrong with the form of options; `models.preflight` checks what they refer to."""
    model_type = opt.get("model_type")
    if isinstance(model_type, str) and model_type not in MODELS:
        meant = meant_model(model_type)
        if not meant:
            return  # another package's model: its options are not checked here
        problems.add("model_type", f"model_type: {model_type!r} is unknown; did you mean {meant}?")
        opt = {**opt, "model_type": meant}
    path = opt["path"] if isinstance(opt.get("path"), Mapping) else {}
    labels = tuple(teacher_labels((*opt, *path), stems=TEACHER_KEYS))
    _check(opt, _with_teachers(RunSection, labels), "", problems)
    sections = SECTIONS | {f"interface_{label}": InterfaceSection for label in labels}
    for key, section in sections.items():
        if isinstance(opt.get(key), Mapping):
            _check(opt[key], _with_teachers(section, labels), f"{key}.", problems)
    for required in ("train", "logger") if opt["is_train"] else ("val",):
        if opt.get(required) is None:
            problems.add(required, f"the section {required} is missing")

    datasets = {name: dataset_section(cls) for name, cls in DATASETS.items()}
    if isinstance(opt.get("datasets"), Mapping):
        for key, content in opt["datasets"].items():
            if problems.sound(f"datasets.{key}"):
                _check_typed(content, datasets, f"datasets.{key}", problems, "DATASET_REGISTRY")
    networks = {name: section_of(cls) for name, cls in NETWORKS.items()}
    for key in ("network_g", *(f"network_{label}" for label in labels)):
        if opt.get(key):
            _check_typed(opt[key], networks, key, problems, "ARCH_REGISTRY")
    for key, instead in OF_OTHER_MODELS.items():
        where, _, name = key.rpartition(".")
        content = opt.get(where) if where else opt
        if isinstance(content, Mapping) and content.get(name):
            problems.add(key, f"{key}: models of csd-plugin {instead}; remove it")
    if opt["is_train"]:
        _check_training(opt, problems)
    elif "train" in opt or problems.sound("train"):  # a mistyped `train` makes no test of a training
        _check_testing(opt, problems)


def _check_training(opt: Mapping[str, Any], problems: Problems) -> None:
    if isinstance(opt.get("datasets"), Mapping) and "train" not in opt["datasets"]:
        problems.add("datasets.train", "datasets.train is missing")
    for key in _section_in(opt, "datasets"):
        kind = str(key).split("_")[0]
        if kind == "test" or (kind == "train" and key != "train"):
            advice = "name it val, val_2 .." if kind == "test" else "put all clips into one folder, and name that"
            problems.add(
                f"datasets.{key}",
                f"datasets.{key}: a training takes one set train, and sets val, val_2 .. to score on; {advice}",
            )
    if isinstance(opt.get("val"), Mapping) and opt["val"] and opt["val"].get("val_freq") is None:
        problems.add("val.val_freq", "val.val_freq is missing: give the steps between validations")
    train = opt.get("train")
    if not isinstance(train, Mapping):
        return
    _check_numbers(train, "train.", problems)
    typed: dict[str, type[BaseModel]] = {"optim_g": OptimizerSection, "scheduler": SchedulerSection}
    for key, section in typed.items():
        if isinstance(train.get(key), Mapping):
            _check(train[key], section, f"train.{key}.", problems)
    for name, content in _section_in(train, "layers").items():
        if isinstance(content, Mapping):
            _check(content, LayerSection, f"train.layers.{name}.", problems)
    _check_losses(train, problems)
    if distils(opt):
        _check_distillation(opt, problems)


def loss_sections(train: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of losses between frames and truth, by its place in the file: `train.pixel_opt` .."""
    sections = {f"train.{key}": train[key] for key in ("pixel_opt", "perceptual_opt") if train.get(key) is not None}
    return sections | {f"train.extra_opt.{name}": content for name, content in _section_in(train, "extra_opt").items()}


def _check_losses(train: Mapping[str, Any], problems: Problems) -> None:
    known = {name: section_of(cls) for name, cls in LOSSES.items()}
    for key, content in loss_sections(train).items():
        _check_typed(content, known, key, problems)
        if isinstance(content, Mapping) and content.get("type") not in known:
            weights = {name: value for name, value in content.items() if name in LossSection.model_fields}
            _check(weights, LossSection, f"{key}.", problems)
    for name in _section_in(train, "extra_opt"):
        if name in ("pixel", "perceptual") or not re.fullmatch(r"\w+", str(name)):
            key = f"train.extra_opt.{name}"
            problems.add(key, f"{key}: name it by letters, digits and _, and not pixel or perceptual, which are taken")


def _check_testing(opt: Mapping[str, Any], problems: Problems) -> None:
    """Refuse a training's file: a test would archive earlier results, and score what nothing has trained.

    So is one without sets, which would score nothing.
    """
    if opt.get("datasets") == {}:
        problems.add("datasets", "datasets is empty: a test takes sets test_1, test_2 .., see options/test")
    for key in _section_in(opt, "datasets"):
        if str(key).split("_")[0] == "train":
            problems.add(
                f"datasets.{key}",
                f"datasets.{key} is for training; a test takes sets test_1, test_2 .. and a trained network as "
                f"path.pretrain_network_g: see options/test",
            )


@made_once
def _with_teachers(section: type[BaseModel], labels: tuple[str, ...]) -> type[BaseModel]:
    """The section with the keys of the first teacher, `.._t`, repeated for the others: `.._t2`."""
    fields: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        if name.endswith("_t"):
            fields |= {name.removesuffix("t") + label: (field.annotation, field) for label in labels}
    return create_model(section.__name__, __base__=section, **fields) if fields else section


def _check_distillation(opt: Mapping[str, Any], problems: Problems) -> None:
    if not opt.get("network_t"):
        problems.add("network_t", "the section network_t is missing: a DistillModel needs its teacher")
    labels = teacher_labels(opt)
    path = opt["path"] if isinstance(opt.get("path"), Mapping) else None
    for label in teacher_labels((*opt, *(path or {})), stems=TEACHER_KEYS):
        key = f"network_{label}"
        if not opt.get(key) and problems.sound(key):
            problems.add(key, f"the section {key} is missing, but other keys belong to that teacher")
    content = opt["train"].get("distill_opt")
    where = "train.distill_opt"
    if not content:
        if problems.sound(where):
            problems.add(where, f"{where} is missing; `type: CSD` is the paper's")
        return
    objectives = {name: objective_section(name) for name in OBJECTIVES}
    _check_typed(content, objectives, where, problems)
    if not isinstance(content, Mapping):
        return
    if isinstance(content.get("type"), str) and content["type"] not in OBJECTIVES:
        text = f"{where}.type {content['type']!r} is unknown{suggestion(content['type'], OBJECTIVES)}"
        problems.add(f"{where}.type", text)
    if isinstance(content.get("objectives"), list):  # of Combined
        parts = {name: part_section(name) for name in OBJECTIVES}
        for number, part in enumerate(content["objectives"]):
            _check_typed(part, parts, f"{where}.objectives.{number}", problems)
    taps = _section_in(content, "taps")
    _check(taps, TapsSection, f"{where}.taps.", problems)
    for term, weight in _section_in(content, "weights").items():
        if isinstance(weight, Mapping):
            _check_changing_weight(weight, f"{where}.weights.{term}", loss_sections(opt["train"]), problems)
        elif isinstance(weight, int | float):
            problems.attempt([f"{where}.weights.{term}"], _told_in, f"{where}.weights.{term}", check_weight, weight)
    teachers, tapped = _section_in(content, "teachers"), _section_in(taps, "teacher")
    networks = [f"network_{label}" for label in {"t", *labels, *teachers, *tapped}]
    problems.attempt(
        [f"{where}.teachers", *networks], _told_in, f"{where}.teachers", teacher_shares, labels, content.get("teachers")
    )
    for label in tapped:
        if label not in labels and problems.sound(f"network_{label}"):
            key = f"{where}.taps.teacher.{label}"
            problems.add(key, f"{key} is unknown{suggestion(label, labels)}")
    for label in problems.attempt([where, *networks], _taught_by, opt) or ():
        key = f"path.pretrain_network_{label}"
        if path is not None and not path.get(f"pretrain_network_{label}"):
            problems.add(key, f"{key} is missing: name the teacher's checkpoint")


def _check_changing_weight(
    weight: Mapping[str, Any], place: str, losses: Mapping[str, Any], problems: Problems
) -> None:
    section: type[BaseModel] = BalanceSection if is_balanced(weight) else WeightSection
    _check(weight, section, f"{place}.", problems)
    problems.attempt([place], _told_in, place, check_weight, weight)
    off = [key for key, content in losses.items() if isinstance(content, Mapping) and content.get("loss_weight") == 0]
    if is_balanced(weight) and off and len(off) == len(losses):
        others = ", as are those of all others" * (len(off) > 1)
        problems.add(
            place,
            f"{place}: balance needs a reconstruction loss to compare with, but {off[0]}.loss_weight is 0"
            f"{others}; set that, or give the term a number as its weight",
        )


def _section_in(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The section of this name; empty if it is missing or not a section."""
    return content[key] if isinstance(content.get(key), Mapping) else {}


def _taught_by(opt: Mapping[str, Any]) -> list[str]:
    return list(read_distillation(opt).taught_by())


def check_dataset(content: Mapping[str, Any], source: str) -> None:
    """Check the keys of a data set of `DATASETS`, for callers without an option file. Raises CSDError."""
    problems = Problems(source)
    _check(content, dataset_section(DATASETS[content["type"]]), "", problems)
    problems.raise_any()


def _check_numbers(content: Any, where: str, problems: Problems) -> None:
    """Check that torch can take every number of a section, also those of optimizers and losses not described here."""
    for key, value in content.items() if isinstance(content, Mapping) else enumerate(content):
        place = f"{where}{key}"
        if isinstance(value, Mapping | list):
            _check_numbers(value, f"{place}.", problems)
        elif not problems.sound(place):
            continue
        elif isinstance(value, float) and not math.isfinite(value):
            problems.add(place, f"{place} is {value}: give a finite number")
        elif isinstance(value, int) and abs(value) >= 2**63:
            problems.add(place, f"{place} is too large: a whole number has to be below 2^63")


def _told_in(where: str, check: Callable[..., Any], *arguments: Any) -> None:
    """Run a check of another part of the package; a mistake is reported with its place."""
    try:
        check(*arguments)
    except CSDError as error:
        raise CSDError(f"{where}: {error}") from error


def _check_typed(
    content: Any, known: Mapping[str, type[BaseModel]], where: str, problems: Problems, registry: str = ""
) -> None:
    """Check a section by its `type`, or by the one that is probably meant; other packages check their own types."""
    if not isinstance(content, Mapping):
        return  # the section around it reports this
    kind = content.get("type")
    if isinstance(kind, str) and registry and (meant := _meant(kind, known, registry)):
        problems.add(f"{where}.type", f"{where}.type: {kind!r} is unknown; did you mean {meant}?")
        kind = meant
    _check(content, known.get(kind, TypedSection) if isinstance(kind, str) else TypedSection, f"{where}.", problems)


def _check(content: Mapping[str, Any], section: type[BaseModel], where: str, problems: Problems) -> None:
    """Check one section; in messages, `where` precedes its keys."""
    known = section.model_fields
    for key in content:
        if f"{where}{key}" in OF_OTHER_MODELS:
            continue
        if key not in known and difflib.get_close_matches(str(key), known, 1, cutoff=0.8):
            problems.unknown(where, str(key), known)
    try:
        section.model_validate(dict(content))
        return
    except ValidationError as error:
        found = error.errors()
    by_key: dict[str, Any] = {}
    for each in found:
        key = _key_of(each["loc"], content)
        if key not in by_key or (_is_of_type(by_key[key]) and not _is_of_type(each)):
            by_key[key] = each  # of the members of a union, the one that the value was probably meant for
    for key, each in by_key.items():
        place, value = f"{where}{key}", each["input"]
        if each["type"] != "extra_forbidden" and not problems.sound(place):
            continue  # found already
        if each["type"] == "extra_forbidden":
            problems.unknown(where, key, known)
        elif each["type"] == "missing":
            problems.add(place, f"{place} is missing")
        else:
            message = f"{place} is {value!r}: {each['msg'][:1].lower()}{each['msg'][1:]}"
            if isinstance(value, str) and _EXPONENT.fullmatch(value):
                message += f"; YAML reads {value} as text; write !!float {value}"
            problems.add(place, message)


def _is_of_type(found: Mapping[str, Any]) -> bool:
    """Whether an error of pydantic is about a value's type, not its size."""
    return str(found["type"]).endswith("_type")


def _key_of(location: tuple[int | str, ...], content: Any) -> str:
    """`scale_range.0` for pydantic's location, which also contains the member of a union that was tried."""
    parts = [str(location[0])]
    for part, inner in pairwise(location):
        content = content[part]
        if not (isinstance(inner, int) or (isinstance(content, Mapping) and inner in content)):
            break
        parts.append(str(inner))
    return ".".join(parts)

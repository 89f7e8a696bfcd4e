"""What our sections of an option file may hold: names, types and ranges; everything else is an error in one line.

Networks, losses and objectives are described by their constructors: keyword, type, default. Data sets, which
the toolbox hands one dict, are described here, and so are the keys that the toolbox and our models read in the
toolbox's own sections: there only near misses of known keys are errors, so that other people's keys pass.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import operator
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from csd_plugin.archs import NETWORKS
from csd_plugin.data.datasets import DATASETS
from csd_plugin.devices import gpus_of
from csd_plugin.distill import OBJECTIVES
from csd_plugin.distill.schedule import check_weight, is_balanced
from csd_plugin.distill.settings import read_distillation, teacher_labels, teacher_shares
from csd_plugin.errors import CSDError, suggestion
from csd_plugin.limited_yaml import LimitedLoader
from csd_plugin.losses.ssim import PyramidSSIMLoss
from csd_plugin.problems import Problems

_MOST = 1024
"""Most layers, channels, frames or clips: more than anybody trains with, and they fit into memory."""
_LARGEST = 2**31 - 1
"""The largest whole number that torch, numpy and the toolbox take everywhere."""
_LONGEST = 10**9
"""Most steps of a run."""

Steps = Annotated[float, Field(ge=1, le=_LONGEST, multiple_of=1)]
"""A whole number of steps, which YAML may give as 5e3."""


def _stays_inside(name: str) -> str:
    """Names become folders and files below experiments/ and results/."""
    if name.startswith(("/", "\\", "~")) or ".." in re.split(r"[/\\]", name) or not name.isprintable():
        raise ValueError("it must stay inside the folders of results")
    return name


Name = Annotated[str, Field(min_length=1), AfterValidator(_stays_inside)]


class Section(BaseModel):
    """A section of ours: unknown keys are errors. Strict: what is checked is what the classes get, unconverted."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


class ToolboxSection(BaseModel):
    """A section of the toolbox, as far as our models rely on it: keys that are not near misses pass."""

    model_config = ConfigDict(
        extra="allow", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True, protected_namespaces=()
    )


class TypedSection(ToolboxSection):
    """What the toolbox builds by its type."""

    type: str


class FileSection(ToolboxSection):
    """The top level, as far as the toolbox itself relies on it."""

    name: Name = Field(description="names experiments/NAME and results/NAME")
    model_type: str = Field(description="VideoDerainModel or DistillModel")
    num_gpu: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        description="0 for the CPU, auto for a GPU if there is one"
    )
    datasets: dict[str, dict] = Field(description="train, val, val_2 .. or test_1, test_2 ..")
    path: dict
    manual_seed: int | None = Field(None, ge=0, le=_LARGEST)


class RunSection(FileSection):
    """The top level for our models."""

    network_g: dict = Field(description="the network that is trained or tested")
    network_t: dict | None = Field(None, description="the teacher of a DistillModel")
    interface_g: dict | None = Field(None, description="how network_g is called, if it does not say so itself")
    interface_t: dict | None = Field(None, description="how network_t is called")
    train: dict | None = None
    val: dict | None = None
    logger: dict | None = None
    scale: Literal[1] = 1
    dist_params: dict | None = None
    find_unused_parameters: bool = False


class InterfaceSection(Section):
    """`interface_g`, `interface_t`: how a network is called that does not say so itself."""

    layout: Literal["image", "window", "sequence"] | None = Field(None, description="what goes in and comes out")
    num_frame: int | None = Field(None, gt=0, le=_MOST, description="frames from which a target is computed, odd")
    feature: str | None = Field(None, description="the layer compared in distillation: `body.7`, `body.7:output`")


class PathSection(ToolboxSection):
    """`path`. The toolbox adds the folders that it makes."""

    pretrain_network_g: str | None = Field(None, description="weights to start from")
    pretrain_network_t: str | None = Field(None, description="the teacher's weights")
    param_key_g: str | None = Field(None, description="entry of that file: params, params_ema")
    param_key_t: str | None = Field(None, description="entry of the teacher's file; by default params_ema")
    strict_load_g: bool = True
    strict_load_t: bool = True
    resume_state: str | None = Field(None, description="a .state file to resume from")
    ignore_resume_networks: list[str] | str | None = None
    experiments_root: str | None = None
    models: str | None = None
    training_states: str | None = None
    log: str | None = None
    visualization: str | None = None
    results_root: str | None = None


class TrainSection(ToolboxSection):
    """`train`."""

    total_iter: Steps = Field(description="optimizer steps")
    optim_g: dict = Field(description="`type`, any optimizer of torch.optim, `lr` and its other keywords")
    scheduler: dict = Field(
        description="`MultiStepLR` (`milestones`, `gamma`) or `CosineAnnealingRestartLR` (`periods`, "
        "`restart_weights`, `eta_min`)"
    )
    pixel_opt: dict = Field(description="the reconstruction loss, `type: PyramidSSIMLoss`, see below")
    warmup_iter: float = Field(-1, ge=-1, le=_LONGEST, description="steps of linear warm-up, -1 for none")
    ema_decay: float = Field(
        0, ge=0, lt=1, description="decay of the averaged weights `params_ema`, which are validated; 0 for none"
    )
    ema_warmup: bool = Field(
        True,
        description="the average warms up: its decay at step n is at most (1 + n) / (10 + n), so that short runs "
        "forget their start",
    )
    grad_clip: float = Field(0, ge=0, description="largest norm of the gradient, 0 for none")
    autocast: Literal["bf16", "fp16"] | None = Field(
        None, description="`bf16` or `fp16` inside the networks; by default float32"
    )
    compile: bool = Field(
        False,
        description="run the networks with torch.compile: a minute or more to start, then faster on a GPU; needs "
        "Triton on a GPU, a C++ compiler on a CPU",
    )
    cuda_graph: bool = Field(
        False,
        description="on a GPU: record the losses and gradients of a step, and replay them in one launch; for small "
        "networks, whose steps wait for Python. Needs the memory of a step once more. In one process. What cannot be "
        "recorded is launched as usual, with a warning; logged steps of a distillation are launched, too. What a "
        "network or an objective of your own decides in Python stays as it was in the step that was recorded",
    )
    accumulate: int = Field(
        1,
        ge=1,
        le=_MOST,
        description="parts in which a batch goes through the networks, one after the other. `batch_size_per_gpu: 4` "
        "with `accumulate: 4` needs the memory of one clip, and trains as a batch of 4 does. An iteration is still "
        "one optimizer step",
    )
    skip_limit: int = Field(
        10,
        ge=0,
        le=_LONGEST,
        description="batches whose loss (with `grad_clip`, also the gradient) is not finite are skipped, and "
        "`experiments/NAME/skipped.txt` lists their clips; the run ends when more than this many have been skipped",
    )
    max_seconds: float | None = Field(
        None,
        gt=0,
        le=_LONGEST,
        description="end the training after this time, from the start of its process to its last file. The schedule "
        "then follows the share of the time that is over, so set `total_iter` (and `periods`) well above the steps "
        "that fit",
    )
    health: bool = Field(
        True,
        description="for a `DistillModel`: measure what each term does to the student, on logged iterations (see "
        "below)",
    )
    distill_opt: dict | None = Field(
        None,
        description="for a `DistillModel`: `type`, its `weights` (one for each of its terms) and options; `teachers`",
    )


class OptimizerSection(TypedSection):
    """`train.optim_g`: an optimizer of torch.optim and its keywords; what most of them take."""

    lr: float = Field(gt=0, description="learning rate")
    betas: list[Annotated[float, Field(ge=0, lt=1)]] | None = Field(None, min_length=2, max_length=2)
    etas: list[float] | None = Field(None, min_length=2, max_length=2, description="of Rprop")
    weight_decay: float | None = Field(None, ge=0)
    momentum: float | None = Field(None, ge=0, le=1)


class SchedulerSection(TypedSection):
    """`train.scheduler`: what the toolbox's schedules take."""

    milestones: list[Steps] | None = Field(None, description="steps after which the rate falls")
    gamma: float | None = Field(None, gt=0, description="factor of the rate at each milestone")
    restarts: list[Annotated[float, Field(ge=0, le=_LONGEST, multiple_of=1)]] | None = None
    restart_weights: list[Annotated[float, Field(gt=0)]] | None = None
    periods: list[Steps] | None = Field(None, description="steps of each cosine")
    eta_min: float | None = Field(None, ge=0, description="the rate at the end of each period")


class ValSection(ToolboxSection):
    """`val`."""

    save_img: bool = Field(description="write the derained frames")
    val_freq: Steps | None = Field(None, description="steps between validations; required in training")
    suffix: Annotated[str, AfterValidator(_stays_inside), Field(pattern=r"^[^/\\]*$")] | None = Field(
        None, description="added to the names of written frames"
    )
    batch_size: int = Field(
        2,
        gt=0,
        le=_MOST,
        description="windows that go through the network at once; for S2VD the frames that it sees together",
    )
    metrics: dict[str, dict] | None = Field(
        None, description="BasicSR's metrics and ours, in addition to both protocols"
    )
    baseline: str | None = Field(None, description="a results `.json`: the table shows the gain over it")
    pbar: bool = Field(True, description="show a progress bar")


class LoggerSection(ToolboxSection):
    """`logger`."""

    print_freq: Steps
    save_checkpoint_freq: Steps
    use_tb_logger: bool
    keep_checkpoints: int | None = Field(None, ge=1, le=_LONGEST, description="newest sets of files kept; default: all")
    keep_best: str | None = Field(
        None,
        description="nturain_y/psnr or one of val.metrics: net_g_best.pth is the best of datasets.val by it",
    )
    wandb: dict | None = None


class DatasetSection(Section):
    """What the toolbox adds to the options of a data set, and its type."""

    name: Name
    type: str
    phase: str = "train"
    scale: int = 1


def dataset_section(cls: type) -> type[Section]:
    """The section of a data set, from its `options_class`."""
    hints = get_type_hints(cls.options_class)  # type: ignore[attr-defined]
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(cls.options_class):  # type: ignore[attr-defined]
        hint, about = hints[field.name], field.metadata
        limits = {"description": about["description"], "strict": _strict(hint), **about["limits"]}
        default = ... if about["required"] else field.default
        fields[field.name] = (_each(hint, about["each"]) if about["each"] else hint, Field(default, **limits))
    return create_model(f"{cls.__name__}Section", __base__=DatasetSection, **fields)


def _each(hint: Any, limits: Mapping[str, Any]) -> Any:
    """A tuple of numbers, or None, with limits for every number."""
    members = get_args(hint)
    if get_origin(hint) is tuple:
        return tuple[tuple(Annotated[member, Field(**limits)] for member in members)]  # type: ignore[misc]
    return functools.reduce(operator.or_, [_each(member, limits) for member in members]) if members else hint


def _strict(hint: Any) -> bool | None:
    """False for a tuple, or None: YAML has it as a list. Its members are strict."""
    return False if any(get_origin(kind) is tuple for kind in (hint, *get_args(hint))) else None


def section_of(cls: type) -> type[BaseModel]:
    """The section that a class takes: the keywords of its constructor, by their types and defaults, and `type`."""
    try:
        hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    except NameError:  # a class of another package, whose hints are there for type checkers alone
        hints = {}
    fields: dict[str, Any] = {}
    base: type[BaseModel] = Section
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            base = ToolboxSection
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            hint = hints.get(name, Any)
            default = ... if parameter.default is parameter.empty else parameter.default
            counts = hint in (int, int | None)  # the constructor knows how few are too few
            fields[name] = (hint, Field(default, le=_MOST if counts else None, strict=_strict(hint)))
    return create_model(f"{cls.__name__}Section", __base__=base, type=(str, ...), **fields)


class TapsSection(Section):
    """`train.distill_opt.taps`: the layers whose features are compared, in pairs; by default those of the networks."""

    student: list[str] | None = Field(None, min_length=1, description="module paths, `conv7` or `conv7:output`")
    teacher: list[str] | dict[str, list[str]] | None = Field(
        None, min_length=1, description="the same number as for the student; several teachers: t: [..], t2: [..]"
    )
    adapters: list[Literal["conv1x1", "resize"]] | None = Field(
        None, description="conv1x1: the student's features in the teacher's width; resize: in its size"
    )


class WeightSection(Section):
    """A weight of `train.distill_opt.weights` that changes: see `distill.schedule`."""

    schedule: str = Field(description="the way from start to end: constant, linear, cosine, stop_at")
    start: float = Field(ge=0, le=1e6, description="in the first iteration")
    end: float = Field(0.0, ge=0, le=1e6, description="in all after the first `iters`")
    iters: float | None = Field(None, gt=0, description="iterations on the way")


class BalanceSection(Section):
    """A weight of `train.distill_opt.weights` that follows the measured ratio of gradients: see `distill.balance`."""

    balance: float = Field(gt=0, le=1e6, description="the term's gradient, as a share of the reconstruction's")
    until: Steps | None = Field(None, description="the last iteration in which the term counts")


def objective_section(name: str) -> type[BaseModel]:
    """`train.distill_opt` of one objective: its constructor's keywords, weights of terms and teachers, and the taps."""
    fields: dict[str, Any] = {
        "weights": (dict[str, float | dict[str, Any]], ...),
        "teachers": (dict[str, float] | None, None),
        "taps": (dict | None, None),
    }
    objective = OBJECTIVES[name]
    if objective.fidelities:
        named: Any = Literal[objective.fidelities]
        fields["fidelity"] = (named | None, None)
    return create_model("ObjectiveSection", __base__=section_of(objective), **fields)


LOSSES = {"PyramidSSIMLoss": PyramidSSIMLoss}
MODELS = {"VideoDerainModel": False, "DistillModel": True}
"""Our models by name, and whether they learn from teachers."""
TEACHER_KEYS = ("network_", "interface_", "pretrain_network_", "param_key_", "strict_load_")
"""What begins the keys, of the top level and of `path`, that each teacher has for itself: `network_t2`."""

_NO_DISCRIMINATOR, _ONE_LOSS = "have no discriminator", "train with pixel_opt alone"
OF_OTHER_MODELS = {
    "network_d": _NO_DISCRIMINATOR,
    "path.pretrain_network_d": _NO_DISCRIMINATOR,
    "path.param_key_d": _NO_DISCRIMINATOR,
    "path.strict_load_d": _NO_DISCRIMINATOR,
    "train.gan_opt": _NO_DISCRIMINATOR,
    "train.optim_d": _NO_DISCRIMINATOR,
    "train.net_d_iters": _NO_DISCRIMINATOR,
    "train.net_d_init_iters": _NO_DISCRIMINATOR,
    "train.perceptual_opt": _ONE_LOSS,
    "train.ldl_opt": _ONE_LOSS,
    "train.feature_matching_opt": _ONE_LOSS,
    "train.fix_flow": "train all weights from the first step",
    "train.tsa_iter": "train all weights from the first step",
    "train.flow_lr_mul": "have one learning rate",
    "train.dcn_lr_mul": "have one learning rate",
    "val.flip_seq": "validate frames as they are",
    "val.center_frame_only": "validate all frames",
}
"""Keys that the toolbox's other models read, and what ours do: without an error they would be dropped in silence."""

SECTIONS: dict[str, type[BaseModel]] = {
    "interface_g": InterfaceSection,
    "interface_t": InterfaceSection,
    "path": PathSection,
    "train": TrainSection,
    "val": ValSection,
    "logger": LoggerSection,
}


def known_keys() -> tuple[set[str], dict[str, Collection[str]]]:
    """Of our models' files: the keys of the top level, and of each section that the toolbox reads too."""
    sections: dict[str, type[BaseModel]] = {
        "path": PathSection,
        "train": TrainSection,
        "val": ValSection,
        "logger": LoggerSection,
    }
    return set(RunSection.model_fields), {name: set(section.model_fields) for name, section in sections.items()}


def rename(name: str, new: str) -> None:
    """Know a class of ours by another name from now on, as its own has become another package's."""
    tables: tuple[MutableMapping[str, Any], ...] = (DATASETS, NETWORKS, LOSSES, MODELS)
    for table in tables:
        if name in table:
            table[new] = table.pop(name)


def distils(opt: Mapping[str, Any]) -> bool:
    """Whether the options are of a training run of our models with teachers."""
    model_type = opt.get("model_type")
    return bool(opt["is_train"]) and isinstance(model_type, str) and MODELS.get(model_type, False)


def is_taught(opt: Mapping[str, Any]) -> bool:
    """Whether a training by these options has teachers, and a weight with which they teach; all 0 is training alone."""
    return MODELS.get(opt["model_type"], False) and read_distillation(opt).teaches


Further = Callable[[dict[str, Any], Problems], object]
"""Adds what is wrong with the parts that options name to the problems that were found before."""


def check_file(
    content: Any, source: str, twice: Iterable[tuple[int, str]] = (), further: Further | None = None
) -> None:
    """Check what the toolbox takes for granted while it reads an option file, before it does.

    Args:
        content: the file, read.
        source: its name, for messages.
        twice: keys that are in their section twice, as lines and what to say about them.
        further: asked too where something is wrong with a file of our models, so that all is said at once.

    Raises:
        CSDError: the file is not a mapping, has a key twice, or one of `name`, `num_gpu`, `datasets` and `path` is not
            right: then all that is wrong with the file.
    """
    if isinstance(content, Mapping) and "rows" in content:
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
        CSDError: all mistakes: file, line, key, what is wrong, the nearest known key.
    """
    problems = Problems(source)
    find_problems(opt, problems)
    problems.raise_any()


def meant_model(model_type: str) -> str:
    """The model of ours that a mistyped `model_type` means; empty where it means none, or the toolbox knows it."""
    return _meant(model_type, MODELS, "MODEL_REGISTRY")


def _meant(name: str, ours: Collection[str], registry: str) -> str:
    """The nearest of our names to one that neither we nor the toolbox has; empty where none is near."""
    theirs = getattr(sys.modules.get("basicsr.utils.registry"), registry, None)
    if theirs is None or name in ours or not list(theirs) or name in theirs:
        return ""
    near = difflib.get_close_matches(name, ours, n=1, cutoff=0.8)
    return near[0] if near else ""


def find_problems(opt: Mapping[str, Any], problems: Problems) -> None:
    """Add all that is wrong with the form of options; what they name is `models.preflight`'s to find."""
    model_type = opt.get("model_type")
    if isinstance(model_type, str) and model_type not in MODELS:
        meant = meant_model(model_type)
        if not meant:
            return  # somebody else's model: its options are not ours to judge
        problems.add("model_type", f"model_type: {model_type!r} is unknown; did you mean {meant}?")
        opt = {**opt, "model_type": meant}
    path = opt["path"] if isinstance(opt.get("path"), Mapping) else {}
    labels = teacher_labels((*opt, *path), stems=TEACHER_KEYS)
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


def _check_training(opt: Mapping[str, Any], problems: Problems) -> None:
    if isinstance(opt.get("datasets"), Mapping) and "train" not in opt["datasets"]:
        problems.add("datasets.train", "datasets.train is missing")
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
    losses = {name: section_of(cls) for name, cls in LOSSES.items()}
    if "pixel_opt" in train:
        _check_typed(train["pixel_opt"], losses, "train.pixel_opt", problems)
    if distils(opt):
        _check_distillation(opt, problems)


def _with_teachers(section: type[BaseModel], labels: Iterable[str]) -> type[BaseModel]:
    """The section with what it has for the first teacher, `.._t`, for others too: `.._t2`."""
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
    taps = _section_in(content, "taps")
    _check(taps, TapsSection, f"{where}.taps.", problems)
    for term, weight in _section_in(content, "weights").items():
        if isinstance(weight, Mapping):
            _check_changing_weight(weight, f"{where}.weights.{term}", _section_in(opt["train"], "pixel_opt"), problems)
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
    weight: Mapping[str, Any], place: str, reconstruction: Mapping[str, Any], problems: Problems
) -> None:
    section: type[BaseModel] = BalanceSection if is_balanced(weight) else WeightSection
    _check(weight, section, f"{place}.", problems)
    problems.attempt([place], _told_in, place, check_weight, weight)
    if is_balanced(weight) and reconstruction.get("loss_weight", 1) == 0:
        problems.add(
            place,
            f"{place}: balance needs a reconstruction loss to compare with, but train.pixel_opt.loss_weight is 0; give "
            f"it one, or the term a number as its weight",
        )


def _section_in(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The section of this name; empty where there is none, or something else."""
    return content[key] if isinstance(content.get(key), Mapping) else {}


def _taught_by(opt: Mapping[str, Any]) -> list[str]:
    return list(read_distillation(opt).taught_by())


def check_dataset(content: Mapping[str, Any], source: str) -> None:
    """Check the keys of a data set of `DATASETS`, for those who have no option file. Raises CSDError."""
    problems = Problems(source)
    _check(content, dataset_section(DATASETS[content["type"]]), "", problems)
    problems.raise_any()


def _check_numbers(content: Any, where: str, problems: Problems) -> None:
    """All numbers of a section, also of optimizers and losses that are not described here: torch can take them."""
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
    """Let a part of the package check what it reads; a mistake is reported with its place."""
    try:
        check(*arguments)
    except CSDError as error:
        raise CSDError(f"{where}: {error}") from error


def _check_typed(
    content: Any, known: Mapping[str, type[BaseModel]], where: str, problems: Problems, registry: str = ""
) -> None:
    """Check a section by its `type`, or by the one that is meant; types of other packages are theirs to check."""
    if not isinstance(content, Mapping):
        return  # which the section around it says
    kind = content.get("type")
    if isinstance(kind, str) and registry and (meant := _meant(kind, known, registry)):
        problems.add(f"{where}.type", f"{where}.type: {kind!r} is unknown; did you mean {meant}?")
        kind = meant
    _check(content, known.get(kind, TypedSection) if isinstance(kind, str) else TypedSection, f"{where}.", problems)


def _check(content: Mapping[str, Any], section: type[BaseModel], where: str, problems: Problems) -> None:
    """Check one section; `where` is what the message puts before a key of it."""
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
    seen = set()
    for each in found:
        key, value = _key_of(each["loc"], content), each["input"]
        place = f"{where}{key}"
        if key in seen or (each["type"] != "extra_forbidden" and not problems.sound(place)):
            continue  # another member of a union, or found already
        seen.add(key)
        if each["type"] == "extra_forbidden":
            problems.unknown(where, key, known)
        elif each["type"] == "missing":
            problems.add(place, f"{place} is missing")
        else:
            message = f"{place} is {value!r}: {each['msg'][:1].lower()}{each['msg'][1:]}"
            if isinstance(value, str) and _EXPONENT.fullmatch(value):
                message += f"; YAML reads {value} as text; write !!float {value}"
            problems.add(place, message)


def _key_of(location: tuple[int | str, ...], content: Any) -> str:
    """`scale_range.0` of pydantic's location, which also names the member of a union that it tried."""
    parts = [str(location[0])]
    for part, inner in pairwise(location):
        content = content[part]
        if not (isinstance(inner, int) or (isinstance(content, Mapping) and inner in content)):
            break
        parts.append(str(inner))
    return ".".join(parts)


_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def safe_ordered_yaml(further: Further | None = None) -> tuple[type, type]:
    """The toolbox's YAML loader runs any Python that a file asks for; this one knows data only, and checks it.

    The toolbox reads only option files with it, and uses what it finds there without a check.

    Args:
        further: see `check_file`.

    The loader raises CSDError for keys that are not text.
    """

    class Loader(LimitedLoader):
        def get_single_data(self) -> Any:
            self.twice: list[tuple[int, str]] = []
            content = super().get_single_data()
            check_file(content, self.name, self.twice, further)
            content = _Options(content)
            if content.get("model_type") in MODELS:
                # the toolbox would take all, by threads of one process
                content["num_gpu"] = gpus_of(content["num_gpu"])
            return content

    class Dumper(yaml.SafeDumper):
        pass

    def mapping(loader: Loader, node: yaml.MappingNode) -> OrderedDict:
        content: OrderedDict = OrderedDict()
        for written, _ in node.value:
            if written.tag == "tag:yaml.org,2002:merge":
                line = written.start_mark.line + 1
                raise CSDError(f"{loader.name}: line {line}: merge keys (<<) are not read; write the keys out")
            if written.tag != "tag:yaml.org,2002:str":
                line = written.start_mark.line + 1
                raise CSDError(f"{loader.name}: line {line}: the key {_shown(written)} is no text; put it in quotes")
        for (key, value), (written, _) in zip(loader.construct_pairs(node, deep=True), node.value, strict=True):
            if key in content:
                loader.twice.append((written.start_mark.line + 1, f"{key} appears twice in its section; keep one"))
            content[key] = value
        return content

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    Dumper.add_multi_representer(OrderedDict, lambda dumper, data: dumper.represent_dict(data.items()))
    return Loader, Dumper


class _Options(OrderedDict):
    """A file's content, in which a section without anything is none at all, also when --force_yml empties it.

    The toolbox's --debug writes into `val` where it is there, and its --launcher slurm unpacks `dist_params`.
    """

    def __setitem__(self, key: str, value: Any) -> None:
        if key in ("val", "dist_params") and value is None:
            self.pop(key, None)
            return
        if isinstance(self.get(key), Mapping) and not isinstance(value, Mapping):
            raise CSDError(f"--force_yml: {key} is a section: give its keys one by one, as in {key}:name=value")
        if key in ("name", "model_type") and not isinstance(value, str):
            raise CSDError(f"--force_yml: {key} is {value!r}, which is no text; give a name with a letter in it")
        super().__setitem__(key, value)


def _shown(node: yaml.Node) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else "[..]"


def read_options(path: Path) -> dict[str, Any]:
    """An option file as a launcher reads it, but for what a run adds. Raises CSDError."""
    opt = load_options(path)
    check_options(opt, str(path))
    return opt


def load_options(path: Path, further: Further | None = None) -> dict[str, Any]:
    """As `read_options`, checked only as far as `check_file` does, which explains `further`. Raises CSDError."""
    try:
        with path.open(encoding="utf-8") as file:
            opt = yaml.load(file, Loader=safe_ordered_yaml(further)[0])
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CSDError(f"{path}: cannot be read as an option file: {' '.join(str(error).split())}") from error
    for key, content in opt["datasets"].items():
        content["phase"] = key.split("_")[0]
    opt["is_train"] = "train" in opt
    return opt

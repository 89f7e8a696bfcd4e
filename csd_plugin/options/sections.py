"""The contents of our sections of an option file: names, types and ranges.

Networks, losses and objectives are described by their constructors: keyword, type, default. Described here are data
sets, which get a dict from BasicSR, and the keys that BasicSR and our models read in BasicSR's own sections; in these,
only near misses of known keys are errors, so that other packages' keys pass.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import re
from collections.abc import Callable, Collection, Mapping, MutableMapping
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from csd_plugin.archs import NETWORKS
from csd_plugin.data.datasets import DATASETS
from csd_plugin.data.datasets.options import MOST_SCALE
from csd_plugin.distill import OBJECTIVES
from csd_plugin.losses import LOSSES

_MOST = 1024
"""The most layers, channels, frames or clips: more than any training uses, but they fit into memory."""
_LARGEST = 2**31 - 1
"""The largest integer that torch, numpy and the toolbox accept everywhere."""
_LONGEST = 10**9
"""The most steps of a run."""

Steps = Annotated[float, Field(ge=1, le=_LONGEST, multiple_of=1)]
"""A whole number of steps, which may be written as 5e3 in YAML."""


def _stays_inside(name: str) -> str:
    """Validate a name, which becomes part of folders and files below experiments/ and results/."""
    if name.startswith(("/", "\\", "~")) or ".." in re.split(r"[/\\]", name) or not name.isprintable():
        raise ValueError("it must stay inside the folders of results")
    return name


Name = Annotated[str, Field(min_length=1), AfterValidator(_stays_inside)]
_Make = TypeVar("_Make", bound=Callable[..., Any])


def made_once(make: _Make) -> _Make:
    """Keep what a function makes: a section takes a hundred times longer to make than to check options by it."""
    return cast(_Make, functools.cache(make))  # cast, as mypy takes some classes for not hashable


class Section(BaseModel):
    """A section of ours: unknown keys are errors. Strict: the classes get the checked values, without conversion."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


class ToolboxSection(BaseModel):
    """A section of the toolbox, as far as our models use it: keys that are not near misses pass."""

    model_config = ConfigDict(
        extra="allow", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True, protected_namespaces=()
    )


class TypedSection(ToolboxSection):
    """A section whose `type` names a class that the toolbox builds."""

    type: str


class LossSection(ToolboxSection):
    """The weights of a loss of another package, as the toolbox's have them, if it has any."""

    loss_weight: float | None = Field(None, ge=0)
    perceptual_weight: float | None = Field(None, ge=0)
    style_weight: float | None = Field(None, ge=0)


class FileSection(ToolboxSection):
    """The top level, as far as the toolbox itself needs it."""

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
    scale: int = Field(1, ge=1, le=MOST_SCALE, description="above 1 for super-resolution, as in BasicSR")
    dist_params: dict | None = None
    find_unused_parameters: bool = False


class InterfaceSection(Section):
    """`interface_g`, `interface_t`: how to call a network that does not state it itself."""

    layout: Literal["image", "window", "sequence"] | None = Field(None, description="the shapes of input and output")
    num_frame: int | None = Field(None, gt=0, le=_MOST, description="frames from which a target is computed; odd")
    feature: str | None = Field(None, description="the layer that distillation compares: `body.7`, `body.7:output`")
    size_divisor: int | None = Field(
        None, gt=0, le=_MOST, description="what heights and widths must be multiples of; other frames are padded"
    )


class PathSection(ToolboxSection):
    """`path`. The toolbox adds the folders that it creates."""

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


class LayerSection(Section):
    """One of `train.layers`: see `models.layers`."""

    lr_mul: float = Field(1.0, gt=0, le=1000, description="factor on the learning rate")
    frozen: bool | Steps = Field(False, description="true for good, or the number of first steps without learning")


class TrainSection(ToolboxSection):
    """`train`."""

    total_iter: Steps = Field(description="optimizer steps")
    optim_g: dict = Field(description="`type`, any optimizer of torch.optim, `lr` and its other keywords")
    scheduler: dict = Field(
        description="`MultiStepLR` (`milestones`, `gamma`) or `CosineAnnealingRestartLR` (`periods`, "
        "`restart_weights`, `eta_min`)"
    )
    pixel_opt: dict = Field(description="the reconstruction loss, `type: PyramidSSIMLoss`, see below")
    perceptual_opt: dict | None = Field(
        None,
        description="BasicSR's `type: PerceptualLoss`, added to `pixel_opt`: a distance between features of VGG, whose "
        "weights torchvision downloads",
    )
    extra_opt: dict[str, dict] | None = Field(
        None,
        description="further losses of frame and truth to add, `NAME: {type: .., loss_weight: ..}`; the log has each "
        "as `recon/NAME`",
    )
    warmup_iter: float = Field(
        -1,
        ge=-1,
        le=_LONGEST,
        description="steps of linear warm-up to `lr`, -1 for none; after them, the scheduler sets the rate",
    )
    ema_decay: float = Field(
        0, ge=0, lt=1, description="decay of the averaged weights `params_ema`, which are validated; 0 for none"
    )
    ema_warmup: bool = Field(
        True,
        description="warm up the average: its decay at step n is at most (1 + n) / (10 + n), so that short runs forget "
        "their start",
    )
    grad_clip: float = Field(0, ge=0, description="largest norm of the gradient, 0 for none")
    layers: dict[str, dict] | None = Field(
        None,
        description="layers of `network_g` with a learning rate of their own, or frozen for good or for the first "
        "steps, by a part of their names: `{spynet: {lr_mul: 0.125, frozen: 5000}, head: {frozen: true}}`. "
        "Normalisation layers still follow the batches",
    )
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
        description="on a GPU: record the losses and gradients of a step as a CUDA graph, and replay it in one launch; "
        "for small networks, whose steps are limited by Python. Needs the memory of a second step, and a single "
        "process. What cannot be recorded runs as usual, with a warning; so do logged steps of a distillation. What a "
        "network or an objective of your own decides in Python stays as it was in the recorded step",
    )
    accumulate: int = Field(
        1,
        ge=1,
        le=_MOST,
        description="number of parts in which a batch goes through the networks, one after the other. "
        "`batch_size_per_gpu: 4` with `accumulate: 4` needs the memory of one clip, and trains like a batch of 4, "
        "except for batch normalisation. An iteration is still one optimizer step",
    )
    skip_limit: int = Field(
        10,
        ge=0,
        le=_LONGEST,
        description="batches whose loss (with `grad_clip`, also the gradient) is not finite are skipped, and "
        "`experiments/NAME/skipped.txt` lists their clips; the run ends when more than this many were skipped",
    )
    max_seconds: float | None = Field(
        None,
        gt=0,
        le=_LONGEST,
        description="end the training after this time, from the start of its process to its last file. The schedule "
        "then follows the share of the time that has passed, so set `total_iter` (and `periods`) well above the steps "
        "that fit",
    )
    health: bool = Field(
        True,
        description="for a `DistillModel`: on logged iterations, measure how each term affects the student (see below)",
    )
    distill_opt: dict | None = Field(
        None,
        description="for a `DistillModel`: `type`, its `weights` (one for each of its terms) and options; `teachers`",
    )


class OptimizerSection(TypedSection):
    """`train.optim_g`: an optimizer of torch.optim, and the keywords that most of them take."""

    lr: float = Field(gt=0, description="learning rate")
    betas: list[Annotated[float, Field(ge=0, lt=1)]] | None = Field(None, min_length=2, max_length=2)
    etas: list[float] | None = Field(None, min_length=2, max_length=2, description="of Rprop")
    weight_decay: float | None = Field(None, ge=0)
    momentum: float | None = Field(None, ge=0, le=1)


class SchedulerSection(TypedSection):
    """`train.scheduler`: the keywords of the toolbox's schedulers."""

    milestones: list[Steps] | None = Field(None, description="steps after which the learning rate falls")
    gamma: float | None = Field(None, gt=0, description="factor on the learning rate at each milestone")
    restarts: list[Annotated[float, Field(ge=0, le=_LONGEST, multiple_of=1)]] | None = None
    restart_weights: list[Annotated[float, Field(gt=0)]] | None = None
    periods: list[Steps] | None = Field(None, description="steps of each cosine period")
    eta_min: float | None = Field(None, ge=0, description="the learning rate at the end of each period")


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
        description="windows that go through the network at once; for S2VD, frames that it processes together",
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
    keep_checkpoints: int | None = Field(
        None, ge=1, le=_LONGEST, description="how many of the newest sets of files to keep; default: all"
    )
    keep_best: str | None = Field(
        None,
        description="nturain_y/psnr, or one of val.metrics, by which net_g_best.pth is the best on datasets.val",
    )
    wandb: dict | None = None


class DatasetSection(Section):
    """The keys that the toolbox adds to the options of a data set, and its type."""

    name: Name
    type: str
    phase: str = "train"


@made_once
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
    """The type hint of a tuple of numbers, or None, with limits for every number."""
    members = get_args(hint)
    if get_origin(hint) is tuple:
        return tuple[tuple(Annotated[member, Field(**limits)] for member in members)]  # type: ignore[misc]
    return functools.reduce(operator.or_, [_each(member, limits) for member in members]) if members else hint


def _strict(hint: Any) -> bool | None:
    """False for a tuple, which YAML has as a list, so that it is converted; else None. Its members are strict."""
    return False if any(get_origin(kind) is tuple for kind in (hint, *get_args(hint))) else None


@made_once
def section_of(cls: type) -> type[BaseModel]:
    """The section of a class: the keywords of its constructor, with their types and defaults, and `type`."""
    try:
        hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    except NameError:  # a class of another package, whose hints are only for type checkers
        hints = {}
    fields: dict[str, Any] = {}
    base: type[BaseModel] = Section
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            base = ToolboxSection
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            hint = hints.get(name, Any)
            default = ... if parameter.default is parameter.empty else parameter.default
            counts = hint in (int, int | None)  # the constructor checks the lower limit
            fields[name] = (hint, Field(default, le=_MOST if counts else None, strict=_strict(hint)))
    return create_model(f"{cls.__name__}Section", __base__=base, type=(str, ...), **fields)


class TapsSection(Section):
    """`train.distill_opt.taps`: the layers whose features are compared, in pairs; by default the networks' own."""

    student: list[str] | None = Field(None, min_length=1, description="paths of modules, `conv7` or `conv7:output`")
    teacher: list[str] | dict[str, list[str]] | None = Field(
        None, min_length=1, description="as many as for the student; for several teachers, t: [..], t2: [..]"
    )
    adapters: list[Literal["conv1x1", "resize"]] | None = Field(
        None, description="conv1x1 gives the student's features the teacher's channels; resize, its size"
    )


class WeightSection(Section):
    """A weight of `train.distill_opt.weights` that changes: see `distill.schedule`."""

    schedule: str = Field(description="the course from start to end: constant, linear, cosine, stop_at")
    start: float = Field(ge=0, le=1e6, description="the weight in the first iteration")
    end: float = Field(0.0, ge=0, le=1e6, description="the weight after the first `iters` iterations")
    iters: float | None = Field(None, gt=0, description="iterations from start to end")


class BalanceSection(Section):
    """A weight of `train.distill_opt.weights` that follows the measured ratio of gradients: see `distill.balance`."""

    balance: float = Field(gt=0, le=1e6, description="the term's gradient, as a fraction of the reconstruction's")
    until: Steps | None = Field(None, description="the last iteration in which the term is used")


def objective_section(name: str) -> type[BaseModel]:
    """`train.distill_opt` of one objective: its constructor's keywords, the weights of its terms, teachers and taps."""
    return _objective_section(OBJECTIVES[name])


@made_once
def _objective_section(cls: type) -> type[BaseModel]:
    fields: dict[str, Any] = {
        "weights": (dict[str, float | dict[str, Any]], ...),
        "teachers": (dict[str, float] | None, None),
        "taps": (dict | None, None),
    }
    return create_model("ObjectiveSection", __base__=section_of(cls), **fields, **_fidelity(cls))


def part_section(name: str) -> type[BaseModel]:
    """One of the `objectives` of `Combined`: its constructor's keywords, and which of the taps it compares."""
    return _part_section(OBJECTIVES[name])


@made_once
def _part_section(cls: type) -> type[BaseModel]:
    fields: dict[str, Any] = {"taps": (list[Annotated[int, Field(ge=0)]] | None, Field(None, min_length=1))}
    return create_model("PartSection", __base__=section_of(cls), **fields, **_fidelity(cls))


def _fidelity(cls: type) -> dict[str, Any]:
    """The key `fidelity` of an objective that has presets."""
    known: Any = cls.fidelities  # type: ignore[attr-defined]
    return {"fidelity": (Literal[known] | None, None)} if known else {}


MODELS = {"VideoDerainModel": False, "DistillModel": True}
"""Our models by name, and whether they learn from teachers."""
TEACHER_KEYS = ("network_", "interface_", "pretrain_network_", "param_key_", "strict_load_")
"""The beginnings of the keys, at the top level and in `path`, that each teacher has for itself: `network_t2`."""

_NO_DISCRIMINATOR = "have no discriminator"
_OTHER_LOSS = "train with pixel_opt, perceptual_opt and extra_opt only"
OF_OTHER_MODELS = {
    "network_d": _NO_DISCRIMINATOR,
    "path.pretrain_network_d": _NO_DISCRIMINATOR,
    "path.param_key_d": _NO_DISCRIMINATOR,
    "path.strict_load_d": _NO_DISCRIMINATOR,
    "train.gan_opt": _NO_DISCRIMINATOR,
    "train.optim_d": _NO_DISCRIMINATOR,
    "train.net_d_iters": _NO_DISCRIMINATOR,
    "train.net_d_init_iters": _NO_DISCRIMINATOR,
    "train.ldl_opt": _OTHER_LOSS,
    "train.feature_matching_opt": _OTHER_LOSS,
    "train.fix_flow": "freeze layers by train.layers, `spynet: {frozen: 5000}`",
    "train.tsa_iter": "freeze layers by train.layers",
    "train.flow_lr_mul": "take it as train.layers, `spynet: {lr_mul: 0.125}`",
    "train.dcn_lr_mul": "take it as train.layers, `dcn: {lr_mul: 0.5}`",
    "val.flip_seq": "validate frames as they are",
    "val.center_frame_only": "validate all frames",
}
"""Keys that the toolbox's other models read -> what ours do instead; they would otherwise be ignored silently."""

SECTIONS: dict[str, type[BaseModel]] = {
    "interface_g": InterfaceSection,
    "interface_t": InterfaceSection,
    "path": PathSection,
    "train": TrainSection,
    "val": ValSection,
    "logger": LoggerSection,
}


def known_keys() -> tuple[set[str], dict[str, Collection[str]]]:
    """For our models' files: the known keys of the top level, and of each section that the toolbox reads, too."""
    sections: dict[str, type[BaseModel]] = {
        "path": PathSection,
        "train": TrainSection,
        "val": ValSection,
        "logger": LoggerSection,
    }
    return set(RunSection.model_fields), {name: set(section.model_fields) for name, section in sections.items()}


def rename(name: str, new: str) -> None:
    """Use a new name for a class of ours from now on, as another package has taken its own."""
    tables: tuple[MutableMapping[str, Any], ...] = (DATASETS, NETWORKS, LOSSES, MODELS)
    for table in tables:
        if name in table:
            table[new] = table.pop(name)

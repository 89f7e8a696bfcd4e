"""What our sections of an option file may hold: names, types and ranges; everything else is an error in one line.

Networks, losses and objectives are described by their constructors: keyword, type, default. Data sets, which
the toolbox hands one dict, are described here. Of the toolbox's own sections only near misses of known keys
are errors, so that other people's keys pass.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.distill.objective import OBJECTIVES
from csd_plugin.errors import CSDError
from csd_plugin.losses.ssim import PyramidSSIMLoss


class Section(BaseModel):
    """A section of ours: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


class DatasetSection(Section):
    """What both data sets take. The toolbox adds phase and scale."""

    name: str
    type: str
    phase: str = "train"
    scale: int = 1
    dataroot: str = Field(description="folder that holds Dataset_Training_Synthetic, Dataset_Testing_Synthetic ..")
    split: Literal["train", "test", "real"] | None = None
    clips: str | None = Field(None, description="file with one clip name per line: use only these")
    num_frame: int = Field(gt=0, description="frames in a sample")
    cache_mb: float = Field(0, ge=0, description="memory for decoded frames, per process")


class PairedVideoSection(DatasetSection):
    """`type: PairedVideoDataset`, with the toolbox's loader keys."""

    num_target: int = Field(gt=0, description="targets L in the middle of the clip")
    gt_size: int = Field(gt=0, description="height and width of the crop")
    scale_range: tuple[float, float] = (1.0, 1.0)
    use_hflip: bool = True
    use_vflip: bool = False
    use_rot: bool = False
    random_reverse: bool = False
    seed: int | None = None
    batch_size_per_gpu: int = Field(1, gt=0)
    num_worker_per_gpu: int = Field(0, ge=0)
    dataset_enlarge_ratio: int = Field(1, gt=0)
    prefetch_mode: Literal["cpu", "cuda"] | None = None
    num_prefetch_queue: int = Field(1, gt=0)
    pin_memory: bool = False
    persistent_workers: bool = False
    use_shuffle: bool = True


class PairedVideoTestSection(DatasetSection):
    """`type: PairedVideoTestDataset`."""

    frame_range: tuple[int, int] | None = Field(
        None, description="first and last frame of every clip, from 1, inclusive"
    )


def section_of(cls: type) -> type[Section]:
    """The section that a class with a keyword-only, typed constructor takes: its keywords and `type`."""
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    fields: dict[str, Any] = {
        name: (hints[name], ... if parameter.default is inspect.Parameter.empty else parameter.default)
        for name, parameter in inspect.signature(cls).parameters.items()
    }
    return create_model(f"{cls.__name__}Section", __base__=Section, type=(str, ...), **fields)


def objective_section(name: str) -> type[Section]:
    """`train.distill_opt` of one objective: its constructor's keywords, and the weights of its terms."""
    return create_model("ObjectiveSection", __base__=section_of(OBJECTIVES[name]), weights=(dict[str, float], ...))


DATASETS: dict[str, type[Section]] = {
    "PairedVideoDataset": PairedVideoSection,
    "PairedVideoTestDataset": PairedVideoTestSection,
}
NETWORKS = {"SLDNet": SLDNet}
LOSSES = {"PyramidSSIMLoss": PyramidSSIMLoss}
MODELS = ("VideoDerainModel", "DistillModel")

# The toolbox's keys, and ours in its sections: a key that is nearly one of these is a typing mistake.
TOOLBOX_KEYS = {
    "": "name model_type scale num_gpu manual_seed datasets network_g network_t path train val logger dist_params"
    " find_unused_parameters",
    "path": "pretrain_network_g pretrain_network_t param_key_g param_key_t strict_load_g strict_load_t resume_state"
    " ignore_resume_networks experiments_root models training_states log visualization results_root",
    "train": "ema_decay optim_g scheduler total_iter warmup_iter pixel_opt grad_clip autocast distill_opt",
    "val": "val_freq save_img suffix pbar metrics batch_size baseline",
    "logger": "print_freq save_checkpoint_freq use_tb_logger wandb",
}


def check_options(opt: Mapping[str, Any], source: str) -> None:
    """Check a parsed option file.

    Args:
        opt: the options, as the toolbox parsed them.
        source: the file they came from, for the message.

    Raises:
        CSDError: the first mistake: file, key, what is wrong, the nearest known key.
    """
    if opt.get("model_type") not in MODELS:
        return  # somebody else's model: its options are not ours to judge
    for section, known in TOOLBOX_KEYS.items():
        content = opt.get(section, {}) if section else opt
        _near_misses(content or {}, known.split(), f"{source}: {section + '.' if section else ''}")
    for required in ("name", "datasets", "network_g", "path", "val" if not opt.get("is_train", True) else "train"):
        if required not in opt:
            raise CSDError(f"{source}: the section {required} is missing")

    for key, content in opt["datasets"].items():
        _check(content, DATASETS.get(content.get("type")), f"{source}: datasets.{key}")
    for key in ("network_g", "network_t"):
        if key in opt:
            network = NETWORKS.get(opt[key].get("type"))
            _check(opt[key], network and section_of(network), f"{source}: {key}")
    train = opt.get("train") or {}
    if "pixel_opt" in train:
        loss = LOSSES.get(train["pixel_opt"].get("type"))
        _check(train["pixel_opt"], loss and section_of(loss), f"{source}: train.pixel_opt")
    elif opt.get("is_train"):
        raise CSDError(f"{source}: train.pixel_opt is missing; `type: PyramidSSIMLoss` is the paper's")
    if train.get("autocast") not in (None, "bf16", "fp16"):
        raise CSDError(f"{source}: train.autocast is {train['autocast']!r}, expected bf16 or fp16")
    if opt["model_type"] == "DistillModel" and opt.get("is_train"):
        _check_distillation(opt, source)


def _check_distillation(opt: Mapping[str, Any], source: str) -> None:
    if "network_t" not in opt:
        raise CSDError(f"{source}: the section network_t is missing: a DistillModel needs its teacher")
    if not opt["path"].get("pretrain_network_t"):
        raise CSDError(f"{source}: path.pretrain_network_t is missing: name the teacher's checkpoint")
    content = opt["train"].get("distill_opt")
    if not content:
        raise CSDError(f"{source}: train.distill_opt is missing; `type: CSD` is the paper's")
    if content.get("type") not in OBJECTIVES:
        raise CSDError(
            f"{source}: train.distill_opt.type is {content.get('type')!r}, expected one of {', '.join(OBJECTIVES)}"
        )
    _check(content, objective_section(content["type"]), f"{source}: train.distill_opt")


def _check(content: Mapping[str, Any], section: type[Section] | None, where: str) -> None:
    if section is None:
        return
    try:
        section(**content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            message = f"is unknown{suggestion(key, section.model_fields)}"
        elif first["type"] == "missing":
            message = "is missing"
        else:
            message = f"is {first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        raise CSDError(f"{where}.{key} {message}") from None


def _near_misses(content: Mapping[str, Any], known: list[str], where: str) -> None:
    for key in content:
        if key not in known and difflib.get_close_matches(str(key), known, 1, cutoff=0.8):
            raise CSDError(f"{where}{key} is unknown{suggestion(str(key), known)}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """'; did you mean NEAREST?', or the list of what is known."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"

"""Models of the toolbox with our networks and data sets: finds what would train on the wrong frames, or fail."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import torch
from basicsr.data.video_test_dataset import VideoRecurrentTestDataset, VideoTestDataset
from basicsr.models.sr_model import SRModel
from basicsr.models.srgan_model import SRGANModel
from basicsr.models.video_base_model import VideoBaseModel
from basicsr.models.video_recurrent_gan_model import VideoRecurrentGANModel
from basicsr.models.video_recurrent_model import VideoRecurrentModel
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY
from torch import nn

from csd_plugin.archs import NETWORKS
from csd_plugin.archs.interface import Interface, interface_section
from csd_plugin.compat import shape_advice
from csd_plugin.data.datasets import DATASETS
from csd_plugin.data.datasets.options import DatasetOptions, TrainingOptions
from csd_plugin.distill.dry_run import clips_of
from csd_plugin.distill.trial import OF_SHAPES, Words, check_trial, is_ours, missing_part, shape_of
from csd_plugin.errors import CSDError, first_line
from csd_plugin.models.building import full_name

_NAMES = ("vid4", "reds4", "redsofficial")
"""The toolbox's test sets of video clips, whatever they contain."""


def options_of(content: Mapping[str, Any]) -> type[DatasetOptions]:
    """The options class of a data set in our table."""
    return DATASETS[content["type"]].options_class  # type: ignore[attr-defined]


def check_role(key: str, content: Mapping[str, Any]) -> None:
    """Raise CSDError if a training data set of ours is to be tested on, or a test data set is to be trained on."""
    trains = issubclass(options_of(content), TrainingOptions)
    if trains != (content["phase"] == "train"):
        use, other = ("training", "PairedVideoTestDataset") if trains else ("tests", "PairedVideoDataset")
        raise CSDError(f"datasets.{key}: {content['type']} is for {use}; use type: {other}")


def check_loader_options(key: str, content: Mapping[str, Any]) -> None:
    """Raise CSDError if another package's set lacks an option that the toolbox's loader needs, or has a wrong type.

    The options of our own sets are checked elsewhere.
    """
    if not isinstance(content.get("name"), str):
        raise CSDError(f"datasets.{key}.name is {content.get('name')!r}: give the set a name")
    if content["phase"] != "train":
        return
    for name, least in {"batch_size_per_gpu": 1, "num_worker_per_gpu": 0}.items():
        value = content.get(name)
        if type(value) is not int or value < least:
            said = f"is {value!r}" if name in content else "is missing"
            raise CSDError(f"datasets.{key}.{name} {said}: give a whole number, {least} or more")
    ratio = content.get("dataset_enlarge_ratio", 1)
    if type(ratio) not in (int, float) or not 0 < ratio < math.inf:
        raise CSDError(f"datasets.{key}.dataset_enlarge_ratio is {ratio!r}: give a number above 0")


def check_foreign_set(key: str, content: Mapping[str, Any], num_frame: int) -> None:
    """Raise CSDError for a test set of the toolbox that our models cannot use, or with a name that it refuses."""
    kind = DATASET_REGISTRY.get(full_name(DATASET_REGISTRY, content["type"]))
    if not (isinstance(kind, type) and issubclass(kind, VideoTestDataset)):
        return
    if issubclass(kind, VideoRecurrentTestDataset):
        raise CSDError(
            f"datasets.{key}: {content['type']} gives whole clips; use type: VideoTestDataset on the same folders, "
            f"with num_frame: {num_frame} and padding: reflection"
        )
    if str(content.get("name")).lower() not in _NAMES:
        raise CSDError(
            f"datasets.{key}.name is {content.get('name')!r}: the toolbox's {content['type']} accepts only the names "
            f"{', '.join(_NAMES)}; give it one of these"
        )


def check_pairs(opt: Mapping[str, Any], build: Callable[[], nn.Module]) -> None:
    """Check that a model of the toolbox can work with our parts in the options. Skips models of other packages.

    Args:
        build: makes the network.

    Raises:
        CSDError: a combination does not work; the message names its key.
    """
    model = MODEL_REGISTRY.get(full_name(MODEL_REGISTRY, opt["model_type"]))
    if not (model.__module__.startswith("basicsr.") and issubclass(model, SRModel)):
        return
    _check_call(model, opt)
    if opt.get("is_train") and issubclass(model, (SRGANModel, VideoRecurrentGANModel)):
        _check_adversary(model, opt)
    _check_validation(model, opt)
    ours = {key: content for key, content in opt["datasets"].items() if content.get("type") in DATASETS}
    network = build() if ours else None
    for key, content in ours.items():
        check_role(key, content)
        if content["phase"] == "train":
            _check_training(model, opt, content, network)
        else:
            _check_test(model, opt, key, content, network)


def _check_call(model: type, opt: Mapping[str, Any]) -> None:
    """Check that sequence networks are used by the toolbox's recurrent models, and others by its other models."""
    name, type_ = opt["model_type"], opt.get("network_g", {}).get("type")
    if type_ not in NETWORKS:
        return
    layout = getattr(ARCH_REGISTRY.get(type_), "layout", "window")
    gives_clip = Interface(1, layout).gives_clip
    if gives_clip != issubclass(model, VideoRecurrentModel):
        other = "VideoRecurrentModel" if gives_clip else "VideoBaseModel"
        raise CSDError(
            f"network_g: {type_} is a network of {layout}s, which {name} does not call as such; use model_type: "
            f"VideoDerainModel, or {other}"
        )


def _check_adversary(model: type, opt: Mapping[str, Any]) -> None:
    """Check the options that the toolbox's models with a discriminator read without checking that they exist."""
    needed = ["network_d", "train.gan_opt", "train.optim_d"]
    needed += ["train.fix_flow"] if issubclass(model, VideoRecurrentGANModel) else []
    for key in needed:
        section, _, name = key.rpartition(".")
        if name not in (opt[section] if section else opt):
            advice = "write `fix_flow: 0` for none" if name == "fix_flow" else "give it"
            raise CSDError(f"{key} is missing, but {opt['model_type']} needs it; {advice}")


def _check_training(model: Any, opt: Mapping[str, Any], content: Mapping[str, Any], network: Any) -> None:
    name, data = opt["model_type"], options_of(content).of(content)
    assert isinstance(data, TrainingOptions)  # `check_role`
    num_frame, num_target, size = data.num_frame, data.num_target, data.gt_size
    if data.as_uint8:
        raise CSDError(
            f"datasets.train.as_uint8 is for models of csd-plugin; {name} does not divide by 255: leave it out"
        )
    if model.feed_data is not SRModel.feed_data and opt.get("high_order_degradation", True):
        raise CSDError(
            f"model_type: {name} does not take pairs of frames as {content['type']} gives them; set "
            f"high_order_degradation: false if it is a model of Real-ESRGAN, or use VideoDerainModel"
        )
    rainy = size // data.scale
    frames = (2, num_frame, 3, rainy, rainy)
    truth = (2, 3, size, size) if num_target == 1 else (2, num_target, 3, size, size)
    output = _output_shape(network, frames, opt, "train")
    if output != truth:
        raise CSDError(
            f"datasets.train: network_g turns clips {frames} into {output}, but the truth is {truth}: {name} would "
            f"compare different frames; {shape_advice(output, truth)}"
        )


def _check_validation(model: type, opt: Mapping[str, Any]) -> None:
    """Check what the toolbox's video models cannot do on any test set."""
    name, val = opt["model_type"], opt.get("val")
    if not issubclass(model, VideoBaseModel) or val is None or not any(map(_is_tested, opt["datasets"].values())):
        return
    if issubclass(model, VideoRecurrentModel) and opt["num_gpu"] == 0:
        raise CSDError(
            f"model_type: {name} cannot validate on a CPU; leave out the sets that are tested, or use model_type: "
            f"VideoDerainModel"
        )
    if "metrics" not in val:
        raise CSDError(f"val.metrics is missing, but {name} needs it: write `metrics: ~` for none")
    if val["metrics"] and opt["num_gpu"] == 0:
        raise CSDError(
            f"val.metrics: {name} computes metrics only on a GPU, but num_gpu is 0; write `metrics: ~`, or use "
            f"model_type: VideoDerainModel"
        )


def _is_tested(content: Mapping[str, Any]) -> bool:
    return content["phase"] != "train"


def _check_test(model: type, opt: Mapping[str, Any], key: str, content: Mapping[str, Any], network: Any) -> None:
    name, val = opt["model_type"], opt.get("val") or {}
    if issubclass(model, VideoRecurrentModel) and not val.get("center_frame_only"):
        raise CSDError(
            f"datasets.{key}: {content['type']} gives windows with the truth of their middle frame, but {name} "
            f"compares whole clips; set val.center_frame_only: true, or use model_type: VideoDerainModel"
        )
    dataset = DATASET_REGISTRY.get(content["type"])(content)
    alone = [sequence.name for sequence in dataset.sequences if sequence.gt is None]
    if alone and (issubclass(model, VideoBaseModel) or val.get("metrics")):
        raise CSDError(
            f"datasets.{key}: {alone[0]} has no truth, without which {name} stops; leave such clips out (clips: "
            f"a list file), or use model_type: VideoDerainModel"
        )
    names = Counter(PurePath(path).stem for path in dataset.data_info["lq_path"])
    if val.get("save_img") and not issubclass(model, VideoBaseModel) and max(names.values()) > 1:
        raise CSDError(
            f"val.save_img: {name} names frames without their clips, but {max(names.values())} clips of "
            f"datasets.{key} have a {names.most_common(1)[0][0]}, which would overwrite each other; switch it off, "
            f"choose one clip (clips: a list file), or use model_type: VideoBaseModel or VideoDerainModel"
        )
    height, width = dataset.store.shape(dataset.sequences[0].lq[0])
    _output_shape(network, (1, options_of(content).of(content).num_frame, 3, height, width), opt, key)


def check_network(
    name: str,
    network: nn.Module,
    interface: Interface,
    opt: Mapping[str, Any],
    size: int | None = None,
    pooled: Sequence[int] = (1,),
) -> None:
    """Raise CSDError unless a network that is not ours runs on the input of our models, crops of the training set.

    `network_g` runs on a whole batch and in training mode, where some networks do something else.

    Args:
        size: of the rainy crops; by default the training set's.
        pooled: the factors by which the objective pools the crops first, `Objective.input_scales`.
    """
    if is_ours(network):
        return
    clips, learns, section = clips_of(opt, size), name == "network_g", interface_section(name)
    place = section if opt.get(section) else name
    num_frame = max(clips.num_frame, interface.num_frame + clips.num_target - 1)
    for factor in pooled:
        side = clips.size // factor
        frames = (clips.batch if learns else 1, num_frame, 3, side, side)
        of = f", crops of {clips.size} pooled by {factor} for train.distill_opt.scale_source: frames," * (factor > 1)
        advice = f"check its options, {section} and datasets.train.gt_size"
        words = Words(
            name, place, of, advice, "set datasets.train.gt_size to a multiple of {}", factor * interface.scale
        )
        check_trial(network, interface, frames, clips.num_target, words, device=_device(opt), learns=learns)


def check_on_test_frames(
    network: nn.Module, interface: Interface, opt: Mapping[str, Any], where: str, size: tuple[int, int]
) -> None:
    """Raise CSDError unless `network_g`, if it is not ours, runs on whole frames of a test set.

    Args:
        where: the set and the clip, for messages.
        size: height and width of the rainy frames.
    """
    if not is_ours(network):
        frames = (1, interface.num_frame, 3, *size)
        padded = "set interface_g.size_divisor: {}, and frames are padded for it"
        place = "interface_g" if opt.get("interface_g") else "network_g"
        words = Words("network_g", place, f" of {where}", "test on frames of another size", padded)
        check_trial(network, interface, frames, 1, words, device=_device(opt))


def _output_shape(network: nn.Module, frames: tuple[int, ...], opt: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """The shape of a network's output for frames. Raises CSDError if it cannot process them."""
    try:
        return shape_of(network, network, frames, _device(opt))
    except OF_SHAPES as error:
        if missing := missing_part(error):
            raise CSDError(f"network_g: {type(network).__name__} {missing}") from error
        raise CSDError(
            f"datasets.{key} gives clips {frames}, which network_g ({type(network).__name__}) cannot process "
            f"({first_line(error)}); set num_frame to what it needs, or use model_type: VideoDerainModel, with an "
            f"interface_g for networks of single images"
        ) from error


def _device(opt: Mapping[str, Any]) -> torch.device:
    return torch.device("cuda" if opt["num_gpu"] and torch.cuda.is_available() else "cpu")

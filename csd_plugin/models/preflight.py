"""Mistakes that can be found before a run writes anything: parts, data, windows, checkpoints, schedule."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.utils.registry import DATASET_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY
from torch import nn

from csd_plugin.archs.checkpoint import PARAM_KEYS, load_plain, load_weights, weights_in
from csd_plugin.archs.interface import Interface, interface_section
from csd_plugin.data.datasets import DATASETS
from csd_plugin.data.features import read_manifest
from csd_plugin.devices import forked_random
from csd_plugin.digests import file_digest
from csd_plugin.distill.adapters import adapted_shapes
from csd_plugin.distill.dry_run import Clips, Dry, DryRunError, clips_of, dry_run
from csd_plugin.distill.objective import Objective, build_objective, weighted_sum
from csd_plugin.distill.settings import Distillation, read_distillation
from csd_plugin.distill.taps import tap_compared
from csd_plugin.errors import CSDError, suggestion
from csd_plugin.metrics.protocols import PROTOCOLS, Quality
from csd_plugin.metrics.results import load_results
from csd_plugin.models.building import (
    as_mistakes,
    build_interface,
    build_network,
    check_sizes,
    construct,
    find_metrics,
    find_type,
    network_names,
)
from csd_plugin.models.data_checks import check_data
from csd_plugin.models.layers import check_layers, check_learns
from csd_plugin.models.mixing import check_loss, check_metric, keywords_of
from csd_plugin.models.pairing import check_network, check_pairs
from csd_plugin.models.repeating import check_rebuilt
from csd_plugin.models.schedules import SCHEDULERS, build_optimizer
from csd_plugin.options.checks import distils, loss_sections, meant_model
from csd_plugin.options.problems import Problems
from csd_plugin.options.sections import MODELS
from csd_plugin.resume_states import find_resume_state
from csd_plugin.types import ClipView

_MOST_BY_THE_CLOCK = 1_000_000
"""The most iterations of a schedule by the clock: each is a scheduler step of some 20 microseconds."""
_TESTED_SIZE = 128
"""Side, in pixels, of the largest clips on which networks that are only tested are tried."""
_LOSS_SIZE = 64
"""Side, in pixels, of the images on which losses are tried."""


def check_run(opt: dict[str, Any], problems: Problems | None = None) -> None:
    """Find the data, build the networks and the objective, and load their initial weights.

    Args:
        opt: the options of a run, which have passed `check_options`.
        problems: mistakes found before; checks that need a section with a mistake are skipped.

    Raises:
        CSDError: lists everything that would stop the run: types that are not registered, a wrong root, an empty
            folder, windows longer than the clips, frames too small for a metric, a checkpoint that is missing or does
            not fit.
    """
    problems = Problems("") if problems is None else problems
    opt = _with_model_meant(opt, problems)
    if opt["model_type"] not in MODELS:
        problems.raise_any()
        with forked_random():
            check_pairs(opt, lambda: build_network(opt["network_g"], "network_g"))
        return
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if opt["dist"] else 1
    problems.attempt(["num_gpu", "train.distill_opt"], check_devices, opt, here)
    problems.attempt(["train"], check_clock, opt)
    problems.attempt(["train"], check_graph, opt)
    problems.attempt(["val"], _check_validation, opt.get("val") or {})
    if opt["is_train"]:
        problems.attempt(["name", "logger"], _check_boards, opt)
        problems.attempt(["logger", "val", "datasets"], _check_keep_best, opt)
    networks, interfaces = check_parts(opt, problems)

    needed = ["network_g"]
    if distils(opt):
        taught_by = problems.attempt(["train.distill_opt"], lambda: read_distillation(opt).taught_by())
        needed += [f"network_{label}" for label in taught_by or ()]
    for name in (name for name in needed if name in networks):  # before dry runs, which may leave tensors in them
        problems.attempt(["datasets"], _check_rebuilt, opt, name, networks[name], interfaces[name])
    network = networks.get("network_g")
    check_data(opt, network, {name: interfaces[name] for name in needed if name in interfaces}, problems)
    complete = all(name in networks for name in needed)
    needed = [name for name in needed if name in networks]
    if opt["is_train"]:
        pooled = problems.attempt(["train.distill_opt"], input_scales, opt) or (1,)
        with forked_random():
            for name in needed:
                of = name, networks[name], interfaces[name]
                problems.attempt(["datasets.train"], check_network, *of, opt, pooled=pooled)
    sections = [interface_section(name) for name in needed]
    with_features = distils(opt) and complete and problems.sound("datasets", "train.distill_opt", *needed, *sections)
    if with_features and opt["datasets"]["train"]["type"] in DATASETS:
        problems.attempt([], _check_features, opt, networks, interfaces)

    if opt["is_train"]:
        problems.attempt(["datasets.train", "path", "train.distill_opt"], _check_stored, opt, interfaces)

    resumed = problems.attempt(["path"], find_resume_state, opt) if opt["is_train"] else None
    for name in needed:
        if not (name == "network_g" and resumed and resumed[0]):
            problems.attempt([f"path.pretrain_{name}"], _check_checkpoint, opt["path"], name, networks[name])
    if not opt["is_train"] and "network_g" in networks and problems.sound("datasets.train"):
        problems.attempt(["path.pretrain_network_g"], _check_trained, opt["path"], networks["network_g"])
    problems.raise_any()


def _check_rebuilt(opt: dict[str, Any], name: str, network: nn.Module, interface: Interface) -> None:
    size = clips_of(opt).size if opt["is_train"] else _TESTED_SIZE
    check_rebuilt(name, network, functools.partial(build_network, opt[name], name), interface, size)


def check_parts(
    opt: Mapping[str, Any], problems: Problems | None = None
) -> tuple[dict[str, nn.Module], dict[str, Interface]]:
    """Check what needs neither data nor checkpoints: types, networks, objective, optimizer and schedule.

    The run's random numbers are not changed by this check.

    Args:
        problems: collects the mistakes; without it, they are raised.

    Returns:
        The networks that could be built, and their interfaces, both by their names in the options (`network_g`).

    Raises:
        CSDError: all mistakes, if `problems` is not given.
    """
    found = Problems("") if problems is None else problems
    opt = _with_model_meant(opt, found)
    for key, content in opt["datasets"].items() if found.sound("datasets") else ():
        where = f"datasets.{key}.type"
        found.attempt([where], find_type, DATASET_REGISTRY, content.get("type"), where)
    found.attempt(["val"], find_metrics, opt.get("val") or {})
    found.attempt(["name", "logger"], _boards, opt)
    networks, interfaces = {}, {}
    with forked_random():
        for name in network_names(opt):
            network = found.attempt([name], build_network, opt.get(name), name)
            if network is None:
                continue
            section = interface_section(name)
            interface = found.attempt([section, "scale"], build_interface, network, opt, name)
            if interface is not None:
                networks[name], interfaces[name] = network, interface
        if opt["is_train"] and opt["model_type"] in MODELS:
            if distils(opt):
                found.attempt(["train.distill_opt"], _try_objective, opt)
            if "network_g" in networks:
                found.attempt(["network_g"], check_learns, networks["network_g"])
            # without weights of network_g, any module shows whether optimizer and schedule can be built
            network, train = nn.Linear(2, 2, bias=False), opt.get("train") or {}
            if "network_g" in networks and found.sound("network_g"):
                network = networks["network_g"]
            _check_training(train, network, found)
            if "network_g" in networks and train.get("layers"):
                found.attempt(["train.layers"], check_layers, train["layers"], network)
    if problems is None:
        found.raise_any()
    return networks, interfaces


def _with_model_meant(opt: Mapping[str, Any], problems: Problems) -> dict[str, Any]:
    """The options; an unknown model is a problem, and if one of ours is meant, the options are checked for that one."""
    name = opt["model_type"]
    problems.attempt(["model_type"], find_type, MODEL_REGISTRY, name, "model_type")
    return {**opt, "model_type": meant_model(name) or name}


def checked_objective(distillation: Distillation) -> Objective:
    """The objective, built; the run's random numbers are not changed.

    Raises CSDError for options that it refuses, or if terms and weights differ.
    """
    with forked_random():
        objective = build_objective(distillation.objective)
    weighted_sum({term: torch.zeros(()) for term in objective.terms}, distillation.weights_at(1))
    return objective


def input_scales(opt: Mapping[str, Any]) -> tuple[int, ...]:
    """The factors by which a run pools the frames that its networks get; only 1 but for some objectives."""
    if not distils(opt):
        return (1,)
    distillation = read_distillation(opt)
    return checked_objective(distillation).input_scales if distillation.teaches else (1,)


def _try_objective(opt: Mapping[str, Any]) -> None:
    with as_mistakes("train.distill_opt"):
        objective = checked_objective(read_distillation(opt))
        if opt.get("dist"):  # the wrapper that adds their gradients needs all sizes
            check_sizes(objective, "so several processes cannot train it")


def _check_features(opt: dict[str, Any], networks: dict[str, nn.Module], interfaces: dict[str, Interface]) -> None:
    """Check that the tapped layers exist, and that their features suit the objective, by a dry run."""
    distillation = read_distillation(opt)
    if not distillation.teaches:
        return
    objective = checked_objective(distillation)
    if not objective.needs_features:
        return
    views = {}
    for name, layers in distillation.layers().items():
        try:
            dry = placed_dry_run(opt, name, networks[name], interfaces[name], clips_of(opt), layers, tapped=True)
        except DryRunError:
            return
        views[name] = dry.view()
    student = views.pop("network_g")
    for teacher in views.values():
        check_features(objective, adapted_shapes(student, teacher, distillation.adapters), teacher)


def check_features(objective: Objective, student: ClipView, teacher: ClipView) -> None:
    """`Objective.check`, whose errors begin with their key."""
    try:
        objective.check(student, teacher)
    except CSDError as error:
        raise CSDError(f"train.distill_opt: {error}") from error


def placed_dry_run(
    opt: Mapping[str, Any],
    name: str,
    network: nn.Module,
    interface: Interface,
    clips: Clips,
    layers: list[str] | None,
    *,
    tapped: bool,
    may_compute: bool = False,
) -> Dry:
    """`dry_run` of `network_g` or a teacher, whose errors begin with their key."""
    where = "train.distill_opt.taps"
    try:
        for tap in tap_compared(network, interface, layers) if tapped else ():
            tap.remove()
        section = interface_section(name)
        where = section if opt.get(section) else name
        return dry_run(network, interface, clips, layers, tapped=tapped, may_compute=may_compute)
    except DryRunError:
        raise
    except CSDError as error:
        raise CSDError(f"{where}: {error}") from error


def _check_stored(opt: Mapping[str, Any], interfaces: Mapping[str, Interface]) -> None:
    """Check that stored features are those of the teacher, at the layers that are compared."""
    folder = opt["datasets"]["train"].get("features")
    if not folder:
        return
    where = f"datasets.train.features: {folder}"
    if not distils(opt):
        raise CSDError(f"{where}: {opt['model_type']} compares no features; leave it out")
    distillation, stored = read_distillation(opt), read_manifest(Path(folder))
    if list(distillation.teachers) != ["t"]:
        raise CSDError(
            f"{where}: stored features are for one teacher, but there are {len(distillation.teachers)}; leave it out"
        )
    checkpoint = opt["path"].get("pretrain_network_t")
    there = checkpoint and Path(checkpoint).is_file()  # otherwise its own check reports it
    if there and file_digest(Path(checkpoint)) != stored["network"]:
        raise CSDError(
            f"{where}: not the features of {checkpoint}; compute them with this teacher, or give their teacher there"
        )
    objective = checked_objective(distillation)
    layers = distillation.teacher_layers["t"] or [str(interfaces["network_t"].feature)]
    if objective.needs_features and layers != stored["layers"]:
        compared, there = (", ".join(names) for names in (layers, stored["layers"]))
        raise CSDError(f"{where}: features of {there}, but {compared} is compared; set taps.teacher to the former")


def _check_trained(paths: Mapping[str, Any], network: nn.Module) -> None:
    """Raise CSDError for a test of random weights."""
    if not paths.get("pretrain_network_g") and next(network.parameters(), None) is not None:
        raise CSDError("path.pretrain_network_g is missing: the scores would be those of an untrained network")


def _check_checkpoint(paths: dict[str, Any], name: str, network: nn.Module) -> None:
    path, label = paths.get(f"pretrain_{name}"), name.removeprefix("network_")
    if not path:
        return
    key, strict, advice = paths.get(f"param_key_{label}"), paths.get(f"strict_load_{label}", True), ""
    try:
        content = load_plain(path, "checkpoint")
        state = weights_in(content, str(path), key, fallback=key in PARAM_KEYS)
        try:
            load_weights(network, state, source=f"checkpoint {path}", strict=strict)
        except CSDError:
            if strict:
                load_weights(network, state, source=f"checkpoint {path}", strict=False)
                advice = f", or set path.strict_load_{label}: false if that is meant"
            raise
    except CSDError as error:
        raise CSDError(f"path.pretrain_{name}: {error}{advice}") from error


def check_devices(opt: Mapping[str, Any], processes: int = 1) -> None:
    """Check that the GPUs of the options exist on this machine, and that the processes can use them.

    Args:
        processes: their number on this machine.

    Raises:
        CSDError: the GPUs do not exist, or one process cannot use them.
    """
    if opt["num_gpu"] > torch.cuda.device_count():
        raise CSDError(
            f"num_gpu is {opt['num_gpu']}, but {torch.cuda.device_count()} were found; use 0 for the CPU, or auto"
        )
    if opt["num_gpu"] and processes > torch.cuda.device_count():
        raise CSDError(
            f"num_gpu is {opt['num_gpu']}, but {torch.cuda.device_count()} GPUs were found for {processes} processes, "
            f"which need one each; start fewer, or set num_gpu to 0 for the CPU"
        )
    if opt["num_gpu"] > 1 and not opt["dist"]:
        job = "train" if opt["is_train"] else "test"
        raise CSDError(
            f"num_gpu is {opt['num_gpu']}: these models take one process per GPU; set num_gpu: 1, or use "
            f"torchrun --nproc_per_node {opt['num_gpu']} -m csd_plugin.{job} .. --launcher pytorch"
        )


def check_clock(opt: Mapping[str, Any]) -> None:
    """Raise CSDError for training by the clock in several processes, or with a schedule that is too long for it."""
    train = opt.get("train") or {}
    if not (opt["is_train"] and train.get("max_seconds")):
        return
    if opt["dist"]:
        raise CSDError(
            "train.max_seconds is for one process: the clocks of several, and with them their schedules, would differ; "
            "set total_iter"
        )
    total = train.get("total_iter", 0)
    if total > _MOST_BY_THE_CLOCK:
        raise CSDError(
            f"train.max_seconds: the schedule goes through all of total_iter, and {total:,} steps take too long; "
            f"set total_iter (and periods) to {_MOST_BY_THE_CLOCK:,} or less"
        )


def check_graph(opt: Mapping[str, Any]) -> None:
    """Raise CSDError for recorded steps in several processes, which add their gradients in between."""
    if opt["is_train"] and opt["dist"] and opt["train"].get("cuda_graph"):
        raise CSDError("train.cuda_graph is for one process; leave it out of a run of several")


def _check_validation(val: dict[str, Any]) -> None:
    protocols = [f"{protocol}/{value}" for protocol in PROTOCOLS for value in Quality._fields]
    for name, metric in find_metrics(val).items():
        if name in protocols:
            raise CSDError(
                f"val.metrics.{name}: this name is taken by what is always measured; give the metric another name"
            )
        better = val["metrics"][name].get("better", "higher")
        if better not in ("higher", "lower"):
            raise CSDError(f"val.metrics.{name}.better is {better!r}, expected higher or lower")
        keywords = keywords_of(val["metrics"][name])
        check = getattr(metric, "check", None) or functools.partial(check_metric, metric)
        try:
            check(**keywords)
        except CSDError as error:
            raise CSDError(f"val.metrics.{name}: {error}") from error
    if val.get("baseline"):
        try:
            load_results(val["baseline"])
        except CSDError as error:
            raise CSDError(f"val.baseline: {error}; test that network first, or leave val.baseline out") from error


def _boards(opt: Mapping[str, Any]) -> dict[str, str]:
    """The packages with which a training logs -> the key that requests them, by the toolbox's rules.

    Raises CSDError for Weights & Biases without TensorBoard.
    """
    logger = opt.get("logger") or {}
    if not opt["is_train"] or "debug" in opt["name"]:
        return {}
    boards = {"tensorboard": "use_tb_logger"} if logger.get("use_tb_logger") else {}
    if (logger.get("wandb") or {}).get("project") is None:
        return boards
    if not boards:
        raise CSDError(
            "logger.wandb: it copies TensorBoard's log; set logger.use_tb_logger to true, or leave wandb out"
        )
    return boards | {"wandb": "wandb"}


def _check_boards(opt: Mapping[str, Any]) -> None:
    for package, key in _boards(opt).items():
        if importlib.util.find_spec(package) is None:
            instead = "set it to false" if key == "use_tb_logger" else "leave it out"
            raise CSDError(f"logger.{key}: {package} is not installed; pip install {package}, or {instead}")


def _check_keep_best(opt: Mapping[str, Any]) -> None:
    metric = opt["logger"].get("keep_best")
    if metric is None:
        return
    if not opt.get("val") or "val" not in opt["datasets"]:
        raise CSDError("logger.keep_best: it needs validation; give the sections val and datasets.val, or leave it out")
    known = [f"{protocol}/{value}" for protocol in PROTOCOLS for value in Quality._fields]
    known += opt["val"].get("metrics") or {}
    if metric not in known:
        raise CSDError(f"logger.keep_best: {metric!r} is unknown{suggestion(metric, known)}")
    content = opt["datasets"]["val"]
    without_truth = content.get("dataroot_lq") and not (content.get("dataroot_gt") or content.get("dataroot"))
    if content.get("type") in DATASETS and without_truth and metric not in (opt["val"].get("metrics") or {}):
        raise CSDError(f"logger.keep_best: {metric} needs the truth, and datasets.val has none; give it dataroot_gt")


def _try_optimizer(content: Mapping[str, Any], network: nn.Module) -> None:
    """Build an optimizer and try a step, as some report only then what they need."""
    optim_type, keywords = content.get("type"), keywords_of(content)
    weights = [nn.Parameter(torch.zeros_like(weight)) for weight in network.parameters()]
    optimizer = build_optimizer(optim_type, weights, **keywords)
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    reason = ""
    if closure is not None and closure.default is closure.empty:
        reason = "its step needs a closure that computes the loss again"
    elif isinstance(optimizer, torch.optim.SparseAdam):
        reason = "it does not support dense gradients"
    if reason:
        raise CSDError(f"train.optim_g: {optim_type} cannot train network_g: {reason}; use Adam or AdamW")


def _check_training(train: dict[str, Any], network: nn.Module, problems: Problems) -> None:
    for where, content in loss_sections(train).items():
        problems.attempt([where], _try_loss, where, content)
    problems.attempt(["train.optim_g"], _try_optimizer, train.get("optim_g"), network)
    problems.attempt(["train.scheduler", "train.total_iter"], _try_schedule, train, network)


def _try_loss(where: str, content: dict[str, Any]) -> None:
    cls = find_type(LOSS_REGISTRY, content.get("type"), f"{where}.type")
    keywords = keywords_of(content)
    loss = construct(cls, keywords, where)
    if "loss_weight" in keywords:  # 0 is allowed
        loss = construct(cls, {key: value for key, value in keywords.items() if key != "loss_weight"}, where)
    try:
        check_loss(loss, _LOSS_SIZE)
    except CSDError as error:
        raise CSDError(f"{where}: {content['type']}: {error}") from error


def _try_schedule(train: dict[str, Any], network: nn.Module) -> None:
    schedule = keywords_of(train["scheduler"])
    construct(
        find_type(SCHEDULERS, train["scheduler"].get("type"), "train.scheduler.type"),
        {"optimizer": torch.optim.SGD(network.parameters(), lr=1.0), **schedule},
        "train.scheduler",
    )
    end, total = sum(schedule.get("periods", [math.inf])), train["total_iter"]
    if end < total:  # the toolbox would stop there with its own error
        raise CSDError(
            f"train.scheduler.periods end at iteration {end:g}, but train.total_iter is {total:g}; make them equal"
        )

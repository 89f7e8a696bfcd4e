"""Resuming a run whose options have changed: what comes from its saved state, and what follows the options."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from csd_plugin.archs import NETWORKS, presets_of
from csd_plugin.archs.checkpoint import check_kind
from csd_plugin.data.datasets import DATASETS
from csd_plugin.distill import OBJECTIVES
from csd_plugin.errors import CSDError
from csd_plugin.losses import LOSSES
from csd_plugin.options.sections import TrainSection, WeightSection
from csd_plugin.plain import parse_json

_BY_SCHEDULE = ("params", "lr")
_PLACES_AND_SPEED = {
    *("name", "phase", "scale", "dataroot", "dataroot_lq", "dataroot_gt", "features", "io_backend", "cache_mb"),
    *("num_worker_per_gpu", "persistent_workers", "pin_memory", "prefetch_mode", "num_prefetch_queue", "resumed_at"),
}
"""Options of a training set that may differ between machines without changing results."""
_LEARNED_BY = (
    "pixel_opt",
    "perceptual_opt",
    "extra_opt",
    "distill_opt",
    "autocast",
    "accumulate",
    "ema_decay",
    "ema_warmup",
    "grad_clip",
    "layers",
)
_TYPES: dict[str, tuple[Any, ...]] = {
    "datasets.train": (DATASETS, DATASET_REGISTRY),
    **dict.fromkeys(("train.pixel_opt", "train.perceptual_opt", "train.extra_opt."), (LOSSES, LOSS_REGISTRY)),
    "train.distill_opt": (OBJECTIVES,),
    "network_": (NETWORKS, ARCH_REGISTRY),
    "teachers.network_": (NETWORKS, ARCH_REGISTRY),
}
"""The beginnings of the places of sections with a `type` -> where its class is looked up."""
_LONGEST = 200
_DIGITS = 12
"""Characters of a digest: as many as people compare."""


UNREADABLE = (ValueError, AssertionError, TypeError, LookupError, AttributeError)
"""The errors raised if a state holds something other than what a run saves there."""


def check_form(saved: Any, own: Any, where: str) -> None:
    """Raise CSDError if a value in a file is of a type that a run never saves there.

    Args:
        own: the value that this run would save now.
        where: the beginning of the message.
    """
    pairs: Iterable[tuple[Any, Any, Any]] = ()
    if isinstance(own, Mapping):
        fits = isinstance(saved, Mapping)
        pairs = ((key, saved[key], own[key]) for key in own if key in saved) if fits else ()
    elif isinstance(own, (list, tuple)):
        fits = isinstance(saved, (list, tuple))
        pairs = zip(itertools.count(), saved, own, strict=False) if fits else ()
    elif saved is None or own is None:
        fits = not isinstance(saved, (Mapping, list, tuple))
    else:
        fits = isinstance(saved, (bool, int, float) if isinstance(own, (bool, int, float)) else type(own))
    if not fits:
        raise CSDError(f"{where} is {saved!r:.60}, which no run saves")
    for key, part, mine in pairs:
        check_form(part, mine, f"{where}.{key}")


def best_scores(saved: Mapping[str, Any]) -> dict[str, dict[str, tuple[float, Any]]]:
    """The best value of each metric on each set, with its iteration. Raises one of `UNREADABLE` for anything else.

    Without NaN, which earlier versions kept as the best value forever.
    """
    return {
        str(name): {
            str(metric): (float(value), at) for metric, (value, at) in best.items() if not math.isnan(float(value))
        }
        for name, best in saved.items()
    }


def option_changes(
    state: Mapping[str, Any],
    optimizers: Sequence[Optimizer],
    schedulers: Sequence[LRScheduler],
    warmup_iter: float,
) -> list[str]:
    """How optimizers and schedulers, built with the current options, differ from the saved ones.

    Args:
        state: a training state, with `warmup_iter` if a model of ours has saved it.

    Returns:
        Changes such as `lr 0.1 -> 0.2`, each once.

    Raises:
        CSDError: the state belongs to an optimizer of another kind.
    """
    changes = []
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=False):
        check_kind(optimizer, saved)
        for group, was in zip(optimizer.param_groups, saved["param_groups"], strict=False):
            for key in (key for key in group if key in was and key not in _BY_SCHEDULE):
                changes += _change(key.removeprefix("initial_"), was[key], group[key])
    for scheduler, saved in zip(schedulers, state["schedulers"], strict=False):
        keys = [key for key in inspect.signature(type(scheduler)).parameters if key not in ("optimizer", "last_epoch")]
        if any(key not in saved for key in keys):
            changes.append(f"scheduler -> {type(scheduler).__name__}")
            continue
        for key in keys:
            changes += _change(key, saved[key], getattr(scheduler, key))
    changes += _change("warmup_iter", state.get("warmup_iter", warmup_iter), warmup_iter)
    return list(dict.fromkeys(changes))


def learns_by(opt: Mapping[str, Any], taught_by: Mapping[str, str] | None = None) -> str:
    """The options that change what a run learns, except optimizer and schedule, as JSON.

    Without the seed, as the saved state's is kept.

    Args:
        taught_by: label of each teacher that is run -> its `weights_digest`, rather than its file, which may move.
    """
    data = {key: value for key, value in opt["datasets"].get("train", {}).items() if key not in _PLACES_AND_SPEED}
    parts = {
        "datasets.train": data,
        "scale": opt.get("scale", 1),
        "network_g": opt["network_g"],
        "interface_g": opt.get("interface_g"),
    }
    parts |= {f"train.{key}": opt["train"].get(key) for key in _LEARNED_BY}
    teachers: dict[str, Any] = {}
    for label, digest in (taught_by or {}).items():
        teachers |= {key: opt.get(key) for key in (f"network_{label}", f"interface_{label}")}
        teachers[f"pretrain_network_{label}"] = f"weights {digest[:_DIGITS]}"
    return json.dumps({**parts, "teachers": teachers}, sort_keys=True, default=str)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a network's tensors and their names, in hexadecimal; independent of device and file."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def changes_of_learning(saved: object, now: str) -> list[str]:
    """The differences of two texts of `learns_by`, in parts that both have, as earlier versions wrote fewer.

    A key that is missing has its default, so that it makes no difference whether a file gives that. Empty if the saved
    text is missing or cannot be read.
    """
    try:
        texts = parse_json(str(saved), finite=False), parse_json(now, finite=False)  # options may be .inf
    except ValueError:
        return []
    if not all(isinstance(text, Mapping) for text in texts):
        return []
    both = [key for key in texts[1] if key in texts[0]]
    was, now_is = (_flat({key: text[key] for key in both if text[key] is not None}) for text in texts)
    sides = [(written, _defaults(written)) for written in (was, now_is)]
    changes = []
    for key in now_is | was:
        (old, default), (new, other) = (
            (written.get(key, defaults.get(key)), defaults.get(key)) for written, defaults in sides
        )
        if old != new and not (old == default and new == other):  # with another type come other defaults
            changes.append(f"{key} {old} -> {new}"[:_LONGEST])
    return changes


def _defaults(written: Mapping[str, Any]) -> dict[str, Any]:
    """The values that keys have where an option file lacks them, by place, as far as their classes state them.

    Args:
        written: a text of `learns_by`, flattened.
    """
    fields = {key: field for key, field in TrainSection.model_fields.items() if not field.is_required()}
    found = {f"train.{key}": field.default for key, field in fields.items()}
    for place, value in written.items():
        section, _, key = place.rpartition(".")
        if key == "type":
            preset = written.get(f"{section}.preset")
            found |= {f"{section}.{name}": default for name, default in _of_class(section, value, preset).items()}
        elif key == "schedule":
            found[f"{section}.end"] = WeightSection.model_fields["end"].default
    return {place: _plain(default) for place, default in found.items()}


def _of_class(section: str, name: object, preset: object) -> dict[str, Any]:
    """The defaults of the class that a section names by its `type`, and, if it has presets, by its `preset`."""
    places = [tables for start, tables in _TYPES.items() if section.startswith(start)]
    cls = next((table.get(name) for tables in places for table in tables if name in list(table.keys())), None)
    if cls is None:
        return {}
    if hasattr(cls, "options_class"):
        return {field.name: field.default for field in dataclasses.fields(cls.options_class)}
    keywords = inspect.signature(cls).parameters.values()
    stated = {keyword.name: keyword.default for keyword in keywords if keyword.default is not keyword.empty}
    return stated | presets_of(cls).get(str(stated.get("preset") if preset is None else preset), {})


def _flat(value: Any, where: str = "") -> dict[str, Any]:
    """Nested mappings, also those in lists, flattened to `section.key`."""
    if isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return {where: value} if where else {}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{where}.{key}".lstrip("."))
    return flat


def by_options(
    state: Mapping[str, Any], optimizers: Sequence[Optimizer], schedulers: Sequence[LRScheduler]
) -> dict[str, Any]:
    """A training state with the current settings of these optimizers, and the initial state of these schedulers."""
    saved_optimizers = []
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=False):
        groups = [
            was | {key: value for key, value in group.items() if key != "params"}
            for group, was in zip(optimizer.param_groups, saved["param_groups"], strict=False)
        ]
        saved_optimizers.append({**saved, "param_groups": groups})
    return {
        **state,
        "optimizers": saved_optimizers,
        "schedulers": [scheduler.state_dict() for scheduler in schedulers],
    }


def without_weights(state: dict[str, Any], places: Sequence[int], count: int) -> dict[str, Any]:
    """A training state whose first optimizer lacks the weights at these indices of its only group.

    Args:
        count: the number of weights that remain; a state with another number, or of another form, is unchanged.
    """
    try:
        first, *others = state["optimizers"]
        [group] = first["param_groups"]
        kept = [number for place, number in enumerate(group["params"]) if place not in places]
        if len(group["params"]) != count:
            return state
        found = {new: first["state"][old] for new, old in enumerate(kept) if old in first["state"]}
    except UNREADABLE:
        return state
    group = {**group, "params": list(range(len(kept)))}
    return {**state, "optimizers": [{**first, "state": found, "param_groups": [group]}, *others]}


def _change(name: str, old: Any, new: Any) -> list[str]:
    old, new = _plain(old), _plain(new)
    return [] if old == new else [f"{name} {old} -> {new}"]


def _plain(value: Any) -> Any:
    """Lists for tuples and counters, which options and optimizers use interchangeably; other values unchanged."""
    if isinstance(value, Counter):
        return sorted(value.elements())
    return list(value) if isinstance(value, tuple) else value

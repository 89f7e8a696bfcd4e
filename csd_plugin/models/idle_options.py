"""Options that have no effect in this run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from csd_plugin.devices import gpus_of
from csd_plugin.distill.average import average_warnings
from csd_plugin.distill.schedule import is_gradual
from csd_plugin.models.building import find_type, ignored_keys, network_names
from csd_plugin.models.mixing import keywords_of
from csd_plugin.options.checks import distils
from csd_plugin.options.sections import MODELS, known_keys

_OF_TOOLBOX = {"is_train", "auto_resume", "dist", "rank", "world_size", "root_path", "began"}
"""What its launcher and ours add at the top level."""


def idle_options(opt: Mapping[str, Any]) -> list[str]:
    """Warnings, one line each: keys that nobody reads, or that are only taken; averages, warm-ups and frozen layers too
    long for `total_iter` steps; a graph that records nothing.
    """
    train_opt = opt["train"]
    warmup, total = train_opt.get("warmup_iter", -1), train_opt["total_iter"]
    lines = [*_unread(opt), *_ignored(opt), *average_warnings(train_opt)]
    if warmup >= total and not train_opt.get("max_seconds"):
        lines.append(
            f"train.warmup_iter {int(warmup):,} does not end before total_iter {int(total):,}: the learning rate "
            f"hardly reaches optim_g.lr; use a tenth of the steps or less"
        )
    for layer, content in (train_opt.get("layers") or {}).items():
        frozen = content.get("frozen", False)
        if frozen is not True and frozen >= total and not train_opt.get("max_seconds"):
            lines.append(
                f"train.layers.{layer}.frozen {int(frozen):,} does not end before total_iter {int(total):,}: the layer "
                f"never learns; give fewer steps, or true if it is meant"
            )
    if train_opt.get("cuda_graph") and not gpus_of(opt["num_gpu"]):
        lines.append("train.cuda_graph has no effect without a GPU")
    elif train_opt.get("cuda_graph") and distils(opt) and opt["logger"]["print_freq"] == 1:
        lines.append(
            "train.cuda_graph has no effect with logger.print_freq 1: logged steps of a distillation are not replayed"
        )
    elif train_opt.get("cuda_graph") and distils(opt) and (moving := _moving(train_opt["distill_opt"]["weights"])):
        lines.append(
            f"train.cuda_graph records nothing while weights change ({moving}); only steps of equal weights are"
        )
    return lines


def part_warnings(opt: Mapping[str, Any], network: nn.Module) -> list[str]:
    """A line where a batch in parts (`accumulate`) does not train `network_g` as the whole does."""
    parts = opt["train"].get("accumulate", 1)
    layers = [path for path, layer in network.named_modules() if isinstance(layer, _BatchNorm)]
    if parts == 1 or not layers:
        return []
    return [
        f"train.accumulate {parts}: {layers[0]} of network_g normalises by the clips that it sees, which are those of "
        f"a part and not of the batch"
    ]


def _unread(opt: Mapping[str, Any]) -> list[str]:
    """A line that names the keys which our models leave unread; models of others may read more.

    Of the top level single values alone: mappings there may be anchors, for use elsewhere in the file.
    """
    if opt.get("model_type") not in MODELS:
        return []
    top, sections = known_keys()
    keys = [key for key in opt if key not in top | _OF_TOOLBOX and not isinstance(opt[key], (Mapping, list))]
    for section in ("train", "val", "logger"):
        keys += [f"{section}.{key}" for key in opt.get(section) or {} if key not in sections[section]]
    if not keys:
        return []
    have = "has" if len(keys) == 1 else "have"
    return [f"{', '.join(keys)} {have} no effect: {opt['model_type']} reads no such key; see options/README.md"]


def _ignored(opt: Mapping[str, Any]) -> list[str]:
    """A line for each key of a network that its class takes and never reads."""
    lines = []
    for name in (name for name in network_names(opt) if opt.get(name)):
        cls = find_type(ARCH_REGISTRY, opt[name].get("type"), f"{name}.type")
        for key in ignored_keys(cls, keywords_of(opt[name])):
            lines.append(f"{name}.{key} has no effect: {cls.__name__} takes it and never reads it")
    return lines


def _moving(weights: Mapping[str, Any]) -> str:
    """The terms whose weights change in every step, for a time."""
    return ", ".join(term for term, weight in weights.items() if isinstance(weight, Mapping) and is_gradual(weight))

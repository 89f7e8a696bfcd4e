"""Layers of `network_g` with a learning rate of their own, or frozen for some time or for good: `train.layers`.

Keys are parts of the names of weights, such as `spynet` or `body.0.`; of several in a name, the longest one counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from csd_plugin.errors import CSDError, suggestion

Layers = Mapping[str, Mapping[str, Any]]
"""`train.layers`: key -> `lr_mul` and `frozen`, see `options.sections.LayerSection`."""


def check_layers(layers: Layers, network: nn.Module) -> None:
    """Raise CSDError for a key that changes no weight of the network, or if all of its weights are frozen at once."""
    if "" in layers:
        raise CSDError("train.layers: an empty key names no layer; leave it out, or give a part of its weights' names")
    found = _weights_by_layer(layers, network)
    for key, content in layers.items():
        if not found[key]:
            names = [name for name, _ in network.named_modules() if name]
            longer = any(key in name for name, _ in network.named_parameters())
            why = "longer keys name all of its weights" if longer else f"is unknown{suggestion(key, names)}"
            raise CSDError(f"train.layers.{key}: {why}; csd inspect FILE --layers lists the layers of network_g")
        if not content:
            raise CSDError(f"train.layers.{key}: nothing is said of it; give lr_mul or frozen")
    if not any(weight.requires_grad for key in found if not _is_frozen(layers, key) for weight in found[key]):
        raise CSDError("train.layers: all weights of network_g are frozen, so it cannot learn; name fewer layers")


def check_learns(network: nn.Module) -> None:
    """Raise CSDError for a network without weights, or with frozen ones alone."""
    frozen = [weight for weight in network.parameters() if not weight.requires_grad]
    if len(frozen) == len(list(network.parameters())):
        why = "all of its weights are frozen (requires_grad is False)" if frozen else "it has no weights"
        raise CSDError(
            f"network_g: {type(network).__name__} cannot be trained: {why}; use a network with weights that learn"
        )


def freeze_for_good(layers: Layers, network: nn.Module) -> None:
    """Let weights that never learn need no gradient; before wrappers that add the gradients of all weights."""
    for key, weights in _weights_by_layer(layers, network).items():
        if key and layers[key].get("frozen") is True:
            for weight in weights:
                weight.requires_grad_(False)


def frozen_at(layers: Layers, network: nn.Module, iteration: int) -> list[nn.Parameter]:
    """The weights that need a gradient, but do not learn in this iteration, from 1."""
    frozen = {key for key, content in layers.items() if iteration <= content.get("frozen", 0)}
    found = _weights_by_layer(layers, network) if frozen else {}  # not in every later step
    return [weight for key in frozen for weight in found[key] if weight.requires_grad]


def optimizer_groups(
    layers: Layers, network: nn.Module, weights: Sequence[nn.Parameter], lr: float
) -> list[dict[str, Any]]:
    """The weights to optimise in groups: first those with the usual rate, then those of the keys that change it.

    The order is that of the names, whatever the option file's, so that a saved state fits.
    """
    groups: list[dict[str, Any]] = []
    for key, own in sorted(_weights_by_layer(layers, network).items()):
        if key and layers[key].get("lr_mul", 1) != 1:
            wanted = {id(weight) for weight in own}
            groups.append({"params": [w for w in weights if id(w) in wanted], "lr": lr * layers[key]["lr_mul"]})
    elsewhere = {id(weight) for group in groups for weight in group["params"]}
    usual = {"params": [weight for weight in weights if id(weight) not in elsewhere]}
    return [group for group in (usual, *groups) if group["params"]]


def described(layers: Layers, network: nn.Module) -> list[str]:
    """A line for each key, for the log."""
    lines = []
    for key, weights in sorted(_weights_by_layer(layers, network).items()):
        if key:
            frozen, lr_mul = layers[key].get("frozen", False), layers[key].get("lr_mul", 1)
            facts = [f"{sum(weight.numel() for weight in weights):,} weights"]
            facts += [f"learning rate x {lr_mul:g}"] if lr_mul != 1 and frozen is not True else []
            facts += ["frozen"] if frozen is True else [f"frozen for {int(frozen):,} iterations"] if frozen else []
            lines.append(f"train.layers.{key}: {', '.join(facts)}.")
    return lines


def _is_frozen(layers: Layers, key: str) -> bool:
    """Whether the weights of this key do not learn in the first step; "" is the rest."""
    return bool(key and layers[key].get("frozen"))


def _weights_by_layer(layers: Layers, network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Key -> the network's weights for which it counts; "" has the rest."""
    found: dict[str, list[nn.Parameter]] = {key: [] for key in ("", *layers)}
    for name, weight in network.named_parameters():
        found[max((key for key in layers if key in name), key=len, default="")].append(weight)
    return found

"""From a checkpoint file to tensors, and to a network. Files are read as data only: they cannot run code."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from csd_plugin.archs import halfnet, prenet, s2vd, sldnet
from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.archs.prenet import PReNet
from csd_plugin.archs.s2vd import S2VD
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.errors import CSDError

# What torch's reader raises on files that are cut short or changed: it takes them at their word.
DAMAGED = (
    RuntimeError, ValueError, EOFError, LookupError, AssertionError, AttributeError, TypeError, OSError, struct.error
)  # fmt: skip

# Where a file may keep its weights, best first: the toolbox's averaged and plain weights, the authors' dict.
PARAM_KEYS = ("params_ema", "params", "three_dim_model")

# Networks that a file alone can rebuild: what reads the constructor's numbers off a state dict, or None off another's.
FAMILIES: dict[type[nn.Module], Callable[[Mapping[str, Tensor]], dict[str, Any] | None]] = {
    SLDNet: sldnet.numbers_from_state,
    PReNet: prenet.numbers_from_state,
    S2VD: s2vd.numbers_from_state,
    HalfNet: halfnet.numbers_from_state,
}


def read_state_dict(path: str | Path, param_key: str | None = None, *, fallback: bool = False) -> dict[str, Tensor]:
    """The weights in a checkpoint: name -> tensor, on CPU, without the prefix that wrappers add.

    Reads the toolbox's files (`params_ema`, `params`), the authors' (`three_dim_model`) and bare state dicts.

    Args:
        param_key: take this entry; by default the first of `PARAM_KEYS` that is there.
        fallback: where the file lacks `param_key`, take the default instead of raising.

    Raises:
        CSDError: no such file, not a checkpoint, an entry that is missing, or a file that holds more than data.
    """
    content = load_plain(path, "checkpoint")
    if not isinstance(content, Mapping):
        raise CSDError(f"checkpoint {path} holds a {type(content).__name__}, expected a dict of tensors")

    key = next((key for key in PARAM_KEYS if key in content), None)
    if param_key is not None and (param_key in content or not fallback):
        key = param_key
    if key is not None:
        if key not in content:
            raise CSDError(f"checkpoint {path} has no entry {key!r}; it has {', '.join(map(str, list(content)[:8]))}")
        content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CSDError(
            f"checkpoint {path} holds no state dict of tensors; expected one of the keys {', '.join(PARAM_KEYS)}"
        )
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def load_plain(path: str | Path, what: str) -> Any:
    """What torch.save wrote, as data only, on CPU. `what` begins the message of CSDError where that fails."""
    path = Path(path)
    if not path.is_file():
        raise CSDError(f"{what} {path} does not exist; check the path")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own text would have the user run it
        raise CSDError(
            f"{what} {path} is damaged, or holds more than tensors and plain data, and is not loaded; "
            f"take another copy, or save it again as a plain state dict"
        ) from error
    except DAMAGED as error:
        raise CSDError(f"{what} {path} cannot be read, it is cut short or damaged; take another copy") from error


def load_weights(network: nn.Module, state: Mapping[str, Tensor], *, source: str, strict: bool = True) -> None:
    """Put a state dict into a network, or raise CSDError with the reason, the network unchanged."""
    own = network.state_dict()
    for name in own:
        if name in state and own[name].shape != state[name].shape:
            raise CSDError(
                f"{source}: {name} has shape {tuple(state[name].shape)}, the network expects {tuple(own[name].shape)}; "
                f"the checkpoint is of another size: make the network's options match it"
            )
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if strict and (missing or unexpected):
        what = f"lacks {missing[0]}" if missing else f"has {unexpected[0]}, unknown to the network"
        raise CSDError(
            f"{source}: {what} ({len(missing)} missing, {len(unexpected)} unexpected in all); "
            f"the checkpoint is of another network: make the network's options match it"
        )
    network.load_state_dict(dict(state), strict=False)


def load_network(path: str | Path, param_key: str | None = None) -> nn.Module:
    """A ready network of one of `FAMILIES` in eval mode; its numbers are read off the weights. Raises CSDError."""
    state = read_state_dict(path, param_key)
    for family, numbers_from_state in FAMILIES.items():
        numbers = numbers_from_state(state)
        if numbers is not None:
            network = family(**numbers)
            load_weights(network, state, source=f"checkpoint {path}")
            return network.eval()
    known = ", ".join(family.__name__ for family in FAMILIES)
    raise CSDError(f"checkpoint {path} is not of a network that is known by its weights: {known}")

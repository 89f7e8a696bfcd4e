"""Whether a network computes the same again: after other frames, and when it is built anew with its saved weights.

Both are tried on a small made-up clip. Networks of this package are left out, and so are those that cannot be copied or
do not run on such a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from basicsr.utils import set_random_seed
from torch import Tensor, nn

from csd_plugin.archs.interface import Interface
from csd_plugin.devices import exact_float32, forked_random
from csd_plugin.distill.dry_run import DryRunError, copied
from csd_plugin.distill.trial import OF_SHAPES, is_ours
from csd_plugin.errors import CSDError

_SIDES = (32, 64)
"""Pixels of the clips that are tried, before those of the run."""
_LEAST_CHANGE = 1e-4
"""In frames from 0 to 1: what is no rounding error."""
_LISTED = 3
"""The most names in a message."""
_OF_TORCH = vars(nn.Module()).keys()


class _Tried(NamedTuple):
    """A copy of a network after its first pass, the clip of that pass, and what it made of it."""

    network: nn.Module
    clip: Tensor
    made: Tensor


def carry_warnings(name: str, network: nn.Module, interface: Interface, size: int) -> list[str]:
    """A line for a network whose frames depend on what passed through it before, as by a hidden state that it keeps.

    Args:
        name: of its section. Neither the network nor random numbers change.
        size: of the run's rainy crops.
    """
    with forked_random(), torch.no_grad(), suppress(*OF_SHAPES):
        tried = _try(network, interface, size)
        if tried is not None:
            another = 1 - tried.clip
            if _differ(_made(tried.network, interface, another), _made(copied(network).eval(), interface, another)):
                return [_carries(name, network, tried.network)]
    return []


def _carries(name: str, before: nn.Module, after: nn.Module) -> str:
    was = dict(_kept(before))
    new = [key for key, value in _kept(after) if not _are_equal(was.get(key), value)]
    keeps = f", as it keeps {_listed(new)}" if new else ""
    return (
        f"{name}: {type(after).__name__} makes other frames of a clip if another clip has passed through it before"
        f"{keeps}: batches and clips then depend on those before them, and a resumed run on where it was stopped; let "
        f"its forward begin anew at each call"
    )


def check_rebuilt(
    name: str, network: nn.Module, build: Callable[[], nn.Module], interface: Interface, size: int
) -> None:
    """Raise CSDError for a network that computes with random numbers which no checkpoint of it would hold.

    Args:
        name, size: as for `carry_warnings`.
        network: as built; neither it nor random numbers change.
        build: builds it once more.
    """
    unsaved = {} if is_ours(network) else _unsaved(network)
    if unsaved and (again := _rebuilt_otherwise(network, build, interface, size)) is not None:
        theirs = _unsaved(again)
        unlike = [key for key, value in unsaved.items() if not _are_equal(theirs.get(key), value)]
        raise CSDError(
            f"{name}: {type(network).__name__} computes with random numbers that its checkpoints would lack "
            f"({_listed(unlike)}); keep tensors as parameters or buffers (register_buffer), and layers as attributes "
            f"or in nn.ModuleList, so that its state_dict holds them"
        )


def _rebuilt_otherwise(
    network: nn.Module, build: Callable[[], nn.Module], interface: Interface, size: int
) -> nn.Module | None:
    """Another one with the same saved weights, if it makes other frames of a clip; None if it makes the same."""
    with forked_random(), torch.no_grad(), suppress(*OF_SHAPES):
        tried = _try(network, interface, size)
        if tried is not None:
            set_random_seed(1)
            again = build()
            again.load_state_dict(network.state_dict(), strict=False)
            if _differ(tried.made, _made(again.eval(), interface, tried.clip)):
                return again
    return None


def _try(network: nn.Module, interface: Interface, size: int) -> _Tried | None:
    """A first pass, of the smallest clip that a copy of the network processes; None if there is none."""
    if is_ours(network):
        return None
    device = next((weight.device for weight in network.parameters()), torch.device("cpu"))
    for side in dict.fromkeys((*(side for side in _SIDES if side < size), size)):
        clip = torch.rand(1, interface.num_frame, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
        try:
            apart = copied(network).eval()
        except DryRunError:
            return None
        with suppress(*OF_SHAPES):
            return _Tried(apart, clip, _made(apart, interface, clip))
    return None


def _made(network: nn.Module, interface: Interface, clip: Tensor) -> Tensor:
    """The frames of a clip, by the same random numbers each time."""
    set_random_seed(0)
    with exact_float32():
        return interface.run(network, clip, 1).float()


def _differ(first: Tensor, second: Tensor) -> bool:
    """Whether frames differ; not where both are not finite, as those of random weights may be."""
    return not torch.allclose(first, second, rtol=0, atol=_LEAST_CHANGE, equal_nan=True)


def _kept(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers and the other tensors that the modules of a network hold, but not its parameters, by name."""
    for path, module in network.named_modules():
        for name, value in (*module._buffers.items(), *_own(module)):
            if isinstance(value, Tensor):
                yield f"{path}.{name}".removeprefix("."), value


def _own(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The attributes that are not torch's."""
    return ((name, value) for name, value in vars(module).items() if name not in _OF_TORCH)


def _unsaved(network: nn.Module) -> dict[str, Any]:
    """The tensors in a network that are not in its state dict, and the layers that torch does not find, by name."""
    saved = {value.data_ptr() for value in network.state_dict().values() if isinstance(value, Tensor)}
    layers, found = set(network.modules()), {}
    for path, module in network.named_modules():
        for name, value in (*module._parameters.items(), *module._buffers.items(), *_own(module)):
            held = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
            for one in held:
                of_layer = isinstance(one, nn.Module) and one not in layers
                if of_layer or (isinstance(one, Tensor) and one.numel() and one.data_ptr() not in saved):
                    found[f"{path}.{name}".removeprefix(".")] = one
    return found


def _are_equal(first: Any, second: Any) -> bool:
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return False
    return first.shape == second.shape and torch.equal(first.to(second.device), second)


def _listed(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")

"""Tries a network on clips before a run: whether it processes them, and if not, whether padding, or larger ones, would
help.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor, nn

from csd_plugin.archs.interface import Interface
from csd_plugin.archs.padding import multiple
from csd_plugin.distill.dry_run import without_values
from csd_plugin.errors import CSDError, first_line

OF_SHAPES = (
    *(RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError, NotImplementedError),
    NameError,  # of the toolbox's layers whose compiled part is missing
)
"""The errors of networks for tensors that they cannot process; includes CSDError."""

_DIVISORS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 24, 28, 32, 48, 56, 64, 128)
"""What networks commonly need the sides of frames to be multiples of."""
_PRIMES_OF_THEM = 2 * 3 * 5 * 7
_MULTIPLES_OF_THEM = (384, 280)
"""Each divisor divides one of them: a network that refuses frames of this side needs none of that one's divisors."""


def is_ours(network: nn.Module) -> bool:
    """Whether its class is of this package: those process frames of any size."""
    return type(network).__module__.startswith("csd_plugin.")


def missing_part(error: Exception) -> str:
    """What to say of a network that needs torchvision's compiled part, where this cannot load; else empty.

    Deformable convolutions, as in EDVR and BasicVSR++, need it. torchvision's own error is a paragraph.
    """
    if not str(error).startswith("Couldn't load custom C++ ops"):
        return ""
    return (
        f"needs torchvision's compiled part, which does not load; install the torchvision that belongs to torch "
        f"{torch.__version__}, or use a network without deformable convolutions"
    )


class Words(NamedTuple):
    """Parts of a message: the places of the network and its interface, whose clips they are, and what to do.

    `multiples` is what to do if sides must be multiples of a number, with {} for that number times `pixels`.
    """

    name: str
    interface: str
    of: str
    advice: str
    multiples: str
    pixels: int = 1


def check_trial(
    network: nn.Module,
    interface: Interface,
    frames: tuple[int, ...],
    num_target: int,
    words: Words,
    *,
    device: str | torch.device = "cpu",
    learns: bool = False,
) -> None:
    """Raise CSDError unless a network gives its targets for clips of such a shape, (B, N, 3, H, W).

    Args:
        device: where it runs if a dry run fails; it is on the CPU then again.
        learns: try it in training mode, where some networks do something else.
    """
    try:
        shape_of(lambda batch: interface.run(network, batch, num_target), network, frames, device, learns=learns)
    except OF_SHAPES as error:
        if missing := missing_part(error):
            raise CSDError(f"{words.name}: {type(network).__name__} {missing}") from error
        divisor = _divisor_that_helps(network, interface, frames, num_target)
        if divisor and (larger := _larger_that_helps(network, interface, frames, num_target, divisor)):
            raise CSDError(
                f"{words.name}: {type(network).__name__} cannot process clips {frames}{words.of}, which are too small "
                f"for it: {larger[0]}x{larger[1]} pixels would do; {words.advice}"
            ) from error
        if divisor:
            raise CSDError(
                f"{words.name}: {type(network).__name__} cannot process clips {frames}{words.of} as it needs sides "
                f"that are multiples of {divisor}; {words.multiples.format(divisor * words.pixels)}"
            ) from error
        if isinstance(error, CSDError):
            raise CSDError(f"{words.interface}: {error}") from error
        raise CSDError(
            f"{words.name}: {type(network).__name__} fails on clips {frames}{words.of} ({first_line(error)}); "
            f"{words.advice}; the forward of a subclass can arrange axes (docs/toolboxes.md)"
        ) from error


def _divisor_that_helps(
    network: nn.Module, interface: Interface, frames: tuple[int, ...], num_target: int
) -> int | None:
    """The smallest of `_DIVISORS` to whose multiples frames can be padded so that a network processes them; None if
    none.
    """

    def works(divisor: int, *shapes: tuple[int, ...]) -> bool:
        return _runs(network, replace(interface, size_divisor=divisor), shapes, num_target)

    # a large network takes seconds for a dry run: two of them leave few divisors to try, if any
    refused = [common for common in _MULTIPLES_OF_THEM if not works(common, frames)]
    for divisor in _DIVISORS:
        if any(common % divisor == 0 for common in refused):
            continue
        # a multiple that is none of any other divisor: a network that needs that one does not process it
        only = (next(n for n in count(-(-side // divisor)) if math.gcd(n, _PRIMES_OF_THEM) == 1) for side in frames[3:])
        if works(divisor, (*frames[:3], *(divisor * n for n in only)), frames):
            return divisor
    return None


def _runs(network: nn.Module, interface: Interface, shapes: Iterable[tuple[int, ...]], num_target: int) -> bool:
    """Whether a network processes clips of all these shapes."""
    try:
        with without_values():
            for shape in shapes:
                interface.run(network, torch.empty(shape), num_target)
    except OF_SHAPES:
        return False
    return True


def _larger_that_helps(
    network: nn.Module, interface: Interface, frames: tuple[int, ...], num_target: int, divisor: int
) -> tuple[int, int] | None:
    """Height and width that a network processes where padding to multiples of `divisor` only helps as it enlarges
    frames; None if the sides do have to be multiples.
    """
    height, width = (multiple(side, divisor) + 1 for side in frames[3:])
    return (height, width) if _runs(network, interface, [(*frames[:3], height, width)], num_target) else None


def shape_of(
    run: Callable[[Tensor], Tensor],
    network: nn.Module,
    frames: tuple[int, ...],
    device: str | torch.device,
    *,
    learns: bool = False,
) -> tuple[int, ...]:
    """The output's shape, by a dry run, or, if that fails, by running the network on the run's device.

    Args:
        learns: run it in training mode, where normalisation may need more than one value.
    """
    network.train(learns)
    try:
        with without_values():
            return tuple(run(torch.empty(frames)).shape)
    except CSDError:  # ours, of the output's shape or type, which are the same with values
        raise
    except OF_SHAPES:
        pass
    network.to(device)
    try:
        with torch.no_grad():
            return tuple(run(torch.zeros(frames, device=device)).shape)
    finally:
        network.to("cpu")

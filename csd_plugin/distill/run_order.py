"""Which frame each run of a layer belongs to, where it runs once for each frame: seen by changing single frames.

A layer of the backward half of a recurrent network runs from the last frame to the first, and a block that is used
several times on a whole window may do so as often as there are frames by chance. Shapes do not show either.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from csd_plugin.archs.interface import KINDS, Interface
from csd_plugin.devices import forked_random
from csd_plugin.distill.dry_run import DryRunError, copied
from csd_plugin.distill.taps import FeatureTap, Runs, tap_layers, uncompiled
from csd_plugin.distill.trial import OF_SHAPES, is_ours

_SIDES = (32, 64)
"""Pixels of the frames that are tried, before larger ones: most networks take these, at a fraction of the time."""
_FRAMES = 5
"""Frames of the sequences that are tried with them: the time grows with the square of their number."""
_LEAST_CHANGE = 1e-5
"""Of a run's largest change, what is no rounding error."""
_LEAST_SLOPE, _LEAST_CORRELATION = 0.2, 0.9
"""How clearly the frames that a layer's runs depend on most have to move with the runs: 1 is one frame per run. In
stages on a whole window the slope was at most 0.04; in recurrent networks of both directions, from 0.35 up, but for
those whose state only grows."""


def find_run_orders(
    network: nn.Module,
    interface: Interface,
    taps: Sequence[FeatureTap],
    num_target: int,
    size: tuple[int, int],
) -> None:
    """Set the order of the runs of tapped layers: found for those that run once for each frame, or seem to.

    Runs a copy of the network once, on random frames; neither its state nor the random numbers change. Networks of this
    package have no such layers, and are left out: their order is FORWARD. UNTRIED is that of networks that cannot be
    copied, or do not run on such frames.

    Args:
        taps: of the network's layers, without anything captured.
        num_target, size: of the clips of the run: targets, and height and width, which the network can process.
    """
    for tap in taps:
        tap.runs = Runs.FORWARD
    inner = uncompiled(network)
    targets = num_target if interface.gives_clip else 1
    seen = KINDS[interface.kind].num_seen(targets, interface.num_frame)
    if is_ours(inner) or seen == 1:
        return
    with forked_random(), torch.no_grad():
        layers = [tap.layer for tap in taps]
        tried, captured = _captured(inner, interface, layers, targets, size)
        for tap, runs in zip(taps, captured, strict=True):
            if not tried:
                tap.runs = Runs.UNTRIED
            elif len(runs) in (tried, seen) and all(len(run) == tried + 1 for run in runs):
                # as many as the frames of other clips: the number of frames does not matter
                tap.runs = order_of(changes(runs)) if len(runs) == tried else Runs.UNCLEAR


def _captured(
    network: nn.Module, interface: Interface, layers: Sequence[str], targets: int, size: tuple[int, int]
) -> tuple[int, list[Sequence[Tensor]]]:
    """What the runs of each layer got or gave, for a clip, and for the same clip with each frame replaced by another.

    Before it, the number of frames: 0 if the network cannot be copied, or takes no such frames. Empty for layers that
    did not run.
    """
    try:
        network = copied(network).eval()
    except DryRunError:
        return 0, [()] * len(layers)
    weight = next(network.parameters(), torch.empty(0))
    few = max(1, min(targets, _FRAMES - interface.num_frame + 1))
    small = [(few, (side, side)) for side in _SIDES if side < min(size)]
    for count, sides in dict.fromkeys([*small, (few, size), (targets, size)]):
        seen = KINDS[interface.kind].num_seen(count, interface.num_frame)
        frames = torch.rand(2, seen, 3, *sides, generator=torch.Generator().manual_seed(0)).to(weight.device)
        clips = frames[:1].repeat(seen + 1, 1, 1, 1, 1)
        for number in range(seen):
            clips[number + 1, number] = frames[1, number]
        taps = tap_layers(network, layers)
        with suppress(*OF_SHAPES):
            interface.run(network, clips, count)
            return seen, [tap.take().calls if tap.ran else () for tap in taps]
        for tap in taps:
            tap.remove()
    return 0, [()] * len(layers)


def changes(runs: Sequence[Tensor]) -> Tensor:
    """By how much each run changes with each frame, (runs, frames), from what a layer's runs got for `_captured`."""
    flat = (run.detach().float().flatten(1).double() for run in runs)
    return torch.stack([(run[1:] - run[:1]).norm(dim=1) for run in flat]).cpu()


def order_of(changed: Tensor) -> Runs:
    """The order of runs in time, from how much each changes with each frame, (runs, frames), 0 or more.

    A run of a recurrent layer depends on the frames up to its own; with both directions before it, on all, and most on
    its own.
    """
    depends = (changed > _LEAST_CHANGE * changed.amax(dim=1, keepdim=True)).double()
    if not bool(depends.any(dim=1).all()):
        return Runs.UNCLEAR
    number = torch.arange(len(changed), dtype=torch.double)
    middle = depends @ number / depends.sum(dim=1)
    steps = middle.diff()
    if bool((steps != 0).any()):
        if bool((steps >= 0).all()):
            return Runs.FORWARD
        if bool((steps <= 0).all()):
            return Runs.BACKWARD
    middle = changed @ number / changed.sum(dim=1)
    around, along = middle - middle.mean(), number - number.mean()
    slope = float(around @ along / along.square().sum())
    correlation = float(around @ along / (around.norm() * along.norm()).clamp(min=1e-12))
    if min(abs(slope) / _LEAST_SLOPE, abs(correlation) / _LEAST_CORRELATION) < 1:
        return Runs.UNCLEAR
    return Runs.FORWARD if slope > 0 else Runs.BACKWARD

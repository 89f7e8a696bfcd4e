"""The moving average of the weights (`params_ema`), which is validated and tested."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from decimal import ROUND_UP, Context, Decimal
from typing import Any

import torch
from torch import Tensor, nn

_LARGE_SHARE = 0.05


def decay_at(step: int, decay: float) -> float:
    """The decay of the update after step 1, 2, ..: at most (1 + step) / (10 + step).

    A constant decay keeps decay^steps of the initial weights: 61 % after 500 steps of 0.999. So the average's length
    grows with the run instead, as about its last tenth, until the requested decay is reached. The formula is that of
    timm and diffusers.
    """
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average = decay * average + (1 - decay) * network for all weights; buffers (BatchNorm's) are copied, and so are
    the extra states of modules that have one.

    Saved buffers become those of the network, whatever their size. Of others, such as caches of the frames' size, those
    of equal size are copied if they can be; the average creates the rest itself.
    """
    weights = dict(network.named_parameters())
    averaged = dict(average.named_parameters())
    torch._foreach_lerp_(list(averaged.values()), [weights[name].data for name in averaged], 1 - decay)
    modules = dict(network.named_modules())
    for path, module in average.named_modules():
        if path in modules:
            _copy_buffers(module, modules[path])
            if getattr(type(module), "get_extra_state", None) is not nn.Module.get_extra_state:
                module.set_extra_state(copy.deepcopy(modules[path].get_extra_state()))


def _copy_buffers(average: nn.Module, network: nn.Module) -> None:
    """Copy the buffers of one module, without its children."""
    # layers that torch.jit has compiled have buffers in an object that can do little else than list them
    all_ours, all_theirs = (dict(module._buffers.items()) for module in (average, network))
    for name in all_ours | all_theirs:
        ours, theirs = all_ours.get(name), all_theirs.get(name)
        if ours is not None and theirs is not None and ours.shape == theirs.shape and _is_writable(ours):
            ours.copy_(theirs)
        elif name in all_theirs and name not in network._non_persistent_buffers_set:
            average.register_buffer(name, None if theirs is None else theirs.clone())


def _is_writable(buffer: Tensor) -> bool:
    """Whether a buffer can be written to: not if made in inference mode, nor if expanded, with shared memory."""
    return not buffer.is_inference() and not any(
        stride == 0 and size > 1 for size, stride in zip(buffer.shape, buffer.stride(), strict=True)
    )


def average_warnings(train_opt: Mapping[str, Any]) -> list[str]:
    """Warnings about `train.ema_decay` for a run of `train.total_iter` steps.

    With the warm-up there are none: a decay that the run never reaches changes nothing, and the start is forgotten.
    """
    if train_opt.get("ema_warmup", True):
        return []
    decay, steps = train_opt.get("ema_decay") or 0, int(train_opt["total_iter"])
    share = decay**steps
    if share <= _LARGE_SHARE:
        return []
    return [
        f"train.ema_decay {decay} without ema_warmup: after {steps:,} steps the tested average is still "
        f"{share:.0%} start; ema_decay {_fitting_decay(steps)} or less fits, or leave ema_warmup on"
    ]


def _fitting_decay(steps: int) -> Decimal:
    """The largest decay that leaves at most a small share of the start after these steps, rounded down.

    To two digits of 1 - decay, so that for no number of steps it is rounded up to a decay that is too long.
    """
    lacking = -math.expm1(math.log(_LARGE_SHARE) / max(steps, 1))
    return (1 - Context(prec=2, rounding=ROUND_UP).create_decimal(lacking)).normalize()

"""A convolution fused with the sum and the ReLU after it: on a GPU, in one launch and one pass over memory.

cuDNN's operations for it have no public name in torch and no gradient, and do not exist for all sizes. So each size is
tried at its first use, and uses them only if they return the same as the plain operations and are not slower.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from csd_plugin.archs.short_conv import ShortConv3d
from csd_plugin.errors import NOT_SERVED, first_line

logger = logging.getLogger(__name__)

_LAYERS = (nn.Conv2d, nn.Conv3d, ShortConv3d)
"""The layers whose convolution `fused` can compute."""
_TOLERANCE = {torch.float32: 1e-2, torch.float16: 2e-2, torch.bfloat16: 6e-2}
"""The largest error, relative to the largest result: TF32 and 16 bits round each operation."""
_AT_ONCE = 8
"""Channels of 16 bits that tensor cores process together: an input of 3 would leave most of them idle."""
_TIMES = 3
_suits: dict[tuple[Any, ...], bool] = {}
"""The findings, by everything that they may depend on."""
_told: set[str] = set()
_full: Counter[tuple[Any, ...]] = Counter()
"""The number of trials that failed for lack of memory."""


def conv_relu(layer: nn.Module, x: Tensor, other: Tensor | None = None) -> Tensor:
    """relu(layer(x) + other).

    Args:
        layer: called normally if it has hooks, which need to see its output, and on CPUs.
    """
    if x.is_cuda and type(layer) in _LAYERS and not torch.compiler.is_compiling() and not _is_watched(layer):
        return fused(x, layer.weight, layer.bias, other, layer.stride, layer.padding, layer.dilation, layer.groups)  # type: ignore[arg-type]
    return _sum_relu(layer(x), other)


def fused(x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None, *how: Any) -> Tensor:
    """relu(convolution + other) on a GPU.

    Args:
        how: stride, padding, dilation, groups.
    """
    if has_torch_function((x, weight)):
        return handle_torch_function(fused, (x, weight), x, weight, bias, other, *how)
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        x, weight = x.to(dtype), weight.to(dtype)
        bias, other = (None if value is None else value.to(dtype) for value in (bias, other))
    with torch.autocast("cuda", enabled=False):
        if _padding_pays(x, weight, bias, other, how):
            x, weight = _padded(x, weight)
        if _suits_here(x, weight, bias, other, how):
            return _ConvReLU.apply(x, weight, bias, other, how)  # type: ignore[no-any-return]
        return _by_torch(x, weight, bias, other, how)


def _padded(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors with zero channels added up to the number that tensor cores need; the result does not change."""
    zeros = [0, 0] * (x.dim() - 2) + [0, -x.shape[1] % _AT_ONCE]
    return F.pad(x, zeros), F.pad(weight, zeros)


class _ConvReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None, how: Any) -> Tensor:
        result = _by_cudnn(x, weight, bias, other, how)
        ctx.save_for_backward(x, weight, result)
        ctx.how, ctx.biases = how, None if bias is None else list(bias.shape)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, result = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.how
        grad = torch.ops.aten.threshold_backward(grad, result, 0)
        none = [0] * len(stride)
        gradients = torch.ops.aten.convolution_backward(
            grad, x, weight, ctx.biases, stride, padding, dilation, False, none, groups, ctx.needs_input_grad[:3]
        )
        return *gradients, grad if ctx.needs_input_grad[3] else None, None


def _by_cudnn(x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None, how: Any) -> Tensor:
    if other is None:
        return torch.ops.aten.cudnn_convolution_relu(x, weight, bias, *how)  # type: ignore[no-any-return]
    return torch.ops.aten.cudnn_convolution_add_relu(x, weight, other, 1.0, bias, *how)  # type: ignore[no-any-return]


def _by_torch(x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None, how: Any) -> Tensor:
    convolve = F.conv3d if x.dim() == 5 else F.conv2d
    return _sum_relu(convolve(x, weight, bias, *how), other)


def _sum_relu(x: Tensor, other: Tensor | None) -> Tensor:
    return torch.relu(x if other is None else x + other)


def _is_watched(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def _suits_here(x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None, how: Any) -> bool:
    sizes = (x.device, x.dtype, x.shape, x.stride(), weight.shape, weight.stride(), bias is None, other is None, how)
    key = (*sizes, *_how_cudnn_computes())
    if key not in _suits:
        if x.is_cuda and torch.cuda.is_current_stream_capturing():  # a trial synchronizes, which a recording cannot
            return False
        try:
            reason = _objection(x, weight, bias, other, how)
        except torch.cuda.OutOfMemoryError:  # a trial needs more memory than the layer; later there may be enough
            return _has_no_room(key)
        _suits[key] = reason is None
        if reason not in (None, _SLOWER, *_told):
            _told.add(str(reason))
            logger.warning("some convolutions run without cuDNN's sum and ReLU on %s: %s", x.device, reason)
    return _suits[key]


def _how_cudnn_computes() -> tuple[Any, ...]:
    """Torch's switches that determine cuDNN's choice of algorithm."""
    cudnn: Any = torch.backends.cudnn
    rounding = cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else cudnn.allow_tf32
    return cudnn.benchmark, cudnn.deterministic, rounding


def _padding_pays(x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None, how: Any) -> bool:
    """Whether zero channels make it faster, including the copies for them; tried at the first use of each size."""
    groups = how[-1]
    if x.dtype not in (torch.float16, torch.bfloat16) or x.shape[1] % _AT_ONCE == 0 or groups != 1:
        return False
    key = (x.device, "padded", x.dtype, x.shape, x.stride(), weight.shape, weight.stride(), how, *_how_cudnn_computes())
    if key not in _suits and not (x.is_cuda and torch.cuda.is_current_stream_capturing()):

        def plain() -> Tensor:
            return _by_torch(x, weight, bias, other, how)

        def padded() -> Tensor:
            return _by_torch(*_padded(x, weight), bias, other, how)

        try:
            with torch.no_grad():
                plain(), padded()
                _suits[key] = is_slower(plain, padded, x.device)
        except torch.cuda.OutOfMemoryError:
            return _has_no_room(key)
    return _suits.get(key, False)


def _has_no_room(key: tuple[Any, ...]) -> bool:
    """False; from a few failures on forever, as each failure makes the allocator release its whole cache."""
    _full[key] += 1
    if _full[key] == _TIMES:
        _suits[key] = False
        if _NO_ROOM not in _told:
            _told.add(_NO_ROOM)
            logger.warning("some convolutions run without cuDNN's sum and ReLU on %s: %s", key[0], _NO_ROOM)
    return False


_NO_ROOM = "there is not enough memory to try them"
_SLOWER = "it is slower"


@torch.no_grad()
def _objection(x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None, how: Any) -> str | None:
    """Why these arguments must not go through cuDNN's operations; None if they may."""
    ours, theirs = (partial(way, x, weight, bias, other, how) for way in (_by_cudnn, _by_torch))
    expected = theirs()
    try:
        found = ours()
    except torch.cuda.OutOfMemoryError:
        raise
    except NOT_SERVED as error:
        return first_line(error)
    if found.shape != expected.shape or found.dtype != expected.dtype or found.stride() != expected.stride():
        return "it returns another shape"
    limit = _TOLERANCE.get(x.dtype, 0.0) * expected.max().float()  # after a ReLU nothing is below 0
    if not bool(found.sub_(expected).abs_().max() <= limit):  # in place: frames may be large
        return "it returns other values"
    del found, expected
    return _SLOWER if is_slower(ours, theirs, x.device) else None


def forget() -> None:
    """Discard the findings: every size is tried again."""
    _suits.clear()
    _full.clear()
    _told.clear()


def is_slower(one: Callable[[], object], other: Callable[[], object], device: torch.device) -> bool:
    """Whether the first action takes longer; both must have run before."""
    return _seconds(one, device) > _seconds(other, device)


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    taken = []
    for _ in range(_TIMES):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        action()
        torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return min(taken)

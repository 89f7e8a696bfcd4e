"""Correct results of 3-D convolutions in bf16 on a CPU.

On CPUs with AVX-512, oneDNN (3.12, in torch 2.13) computes wrong weight gradients of 3-D convolutions, also transposed
ones: it reads uninitialised memory, returns values that are not finite, or writes outside its memory. The affected
sizes depend on the CPU's instructions: without AMX, those with fewer frames than the weight has temporal taps; with
AMX, other ones. Forward results of a single frame between padding can be wrong, too. Its 2-D convolutions are correct,
so both cases are computed with them; the rest stays 3-D. Transposed convolutions, which are rare in video networks, are
computed in float32, as are second derivatives and transforms of `torch.func`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from csd_plugin.versions import under_transforms

_of_torch = nn.Conv3d._conv_forward
_transposed_of_torch = nn.ConvTranspose3d.forward


def repair_bf16_conv3d() -> None:
    """Make every `nn.Conv3d` and `nn.ConvTranspose3d` of this process compute like those here, also in others' code.

    `archs.interface`, the backends and a `Distiller` call it, and networks in bf16 on a CPU go through one of them.
    Direct calls of `F.conv3d` are not affected, nor is scripted code (`torch.jit.script`).
    """
    nn.Conv3d._conv_forward = _repaired  # type: ignore[method-assign]
    nn.ConvTranspose3d.forward = _transposed_repaired  # type: ignore[method-assign]


def computes_in_bf16(x: Tensor) -> bool:
    """Whether a convolution of this tensor would be computed in bf16 on a CPU."""
    if x.device.type != "cpu":
        return False
    cast = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
    return (torch.get_autocast_dtype("cpu") if cast else x.dtype) == torch.bfloat16


def conv_forward(self: nn.Conv3d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The result of `nn.Conv3d._conv_forward`, with correct gradients, in bf16 on a CPU; elsewhere, the original."""
    if not computes_in_bf16(x) or x.dim() not in (4, 5):
        return _of_torch(self, x, weight, bias)
    if x.dim() == 4:  # a clip without a batch axis
        return conv_forward(self, x[None], weight, bias)[0]
    padding = self.padding
    if isinstance(padding, str) or self.padding_mode != "zeros":
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=mode), (0, 0, 0)
    # after the padding, which autocast computes in float32
    x, weight = x.to(torch.bfloat16), weight.to(torch.bfloat16)
    bias = None if bias is None else bias.to(torch.bfloat16)
    taps = [tap for tap, reach in _reaches(x, weight, self.stride[0], padding[0], self.dilation[0]) if reach]
    if len(taps) == 1 and x.shape[2] == 1 and weight.shape[2] == 2 * padding[0] // self.dilation[0] + 1:
        flat = (self.stride[1:], padding[1:], self.dilation[1:], self.groups)
        return F.conv2d(x.squeeze(2), weight[:, :, taps[0]], bias, *flat).unsqueeze(2)
    how = (self.stride, padding, self.dilation, self.groups)
    if under_transforms():
        return _in_float32(F.conv3d, x, weight, bias, *how)
    if not torch.is_grad_enabled():
        return F.conv3d(x, weight, bias, *how)
    return _Conv3dByTaps.apply(x, weight, bias, *how)  # type: ignore[no-any-return]


def _transposed(self: nn.ConvTranspose3d, input: Tensor, output_size: list[int] | None = None) -> Tensor:
    """`nn.ConvTranspose3d.forward`, computed in float32 where it would be in bf16 on a CPU."""
    if not computes_in_bf16(input):
        return _transposed_of_torch(self, input, output_size)
    sizes = self.stride, self.padding, self.kernel_size, 3, self.dilation
    added = self._output_padding(input, output_size, *sizes)  # type: ignore[arg-type]
    how = self.stride, self.padding, added, self.groups, self.dilation
    return _in_float32(F.conv_transpose3d, input, self.weight, self.bias, *how)


def _in_float32(convolve: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    """A bf16 convolution computed in float32, whose derivatives of any order are free of torch's fault."""
    with torch.autocast("cpu", enabled=False):
        return convolve(x.float(), weight.float(), None if bias is None else bias.float(), *how).bfloat16()


def _in_place_of(theirs: Any, ours: Callable[..., Tensor]) -> Any:
    """A method that behaves like `ours`, but which `torch.jit.script` sees as `theirs`.

    It compiles the source of the function that a wrapper wraps, with the names of the module that the wrapper states.
    """

    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        return ours(self, *args, **kwargs)

    wrapper = FunctionType(method.__code__, theirs.__globals__, theirs.__name__, None, method.__closure__)
    return update_wrapper(wrapper, theirs)


_repaired, _transposed_repaired = _in_place_of(_of_torch, conv_forward), _in_place_of(_transposed_of_torch, _transposed)


def _reaches(x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int) -> list[tuple[int, range]]:
    """For each temporal tap: its index, and the output frames for which it sees a frame rather than padding."""
    frames, taps = x.shape[2], weight.shape[2]
    after = (frames + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    reaches = []
    for tap in range(taps):
        shift = padding - tap * dilation  # output frame o sees input frame o * stride - shift
        reaches.append((tap, range(max(0, -(-shift // stride)), min(after, (frames - 1 + shift) // stride + 1))))
    return reaches


class _Conv3dByTaps(torch.autograd.Function):
    """F.conv3d whose weight gradient comes from a 2-D convolution for each temporal tap, with frames as the batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        ctx.how = how  # stride, padding, dilation, groups
        return F.conv3d(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        again = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # to be differentiated again
        grad_x, grad_weight = (_gradients_in_float32 if again else _gradients_by_taps)(ctx, grad)
        grad_bias = grad.sum((0, 2, 3, 4)) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias, None, None, None, None


def _gradients_by_taps(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the frames and of the weight, if they are needed."""
    x, weight = ctx.saved_tensors
    stride, padding, dilation, groups = ctx.how
    gradient_of = torch.ops.aten.convolution_backward
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        how = (None, stride, padding, dilation, False, (0, 0, 0), groups, (True, False, False))
        grad_x = gradient_of(grad, x, weight, *how)[0]
    if ctx.needs_input_grad[1]:
        flat = (None, stride[1:], padding[1:], dilation[1:], False, (0, 0), groups, (False, True, False))
        grad_weight = torch.zeros_like(weight)
        for tap, reach in _reaches(x, weight, stride[0], padding[0], dilation[0]):
            if reach:
                first = reach.start * stride[0] + tap * dilation[0] - padding[0]
                seen = _as_batch(x, slice(first, first + (len(reach) - 1) * stride[0] + 1, stride[0]))
                wanted = _as_batch(grad, slice(reach.start, reach.stop))
                grad_weight[:, :, tap] = gradient_of(wanted, seen, weight[:, :, tap], *flat)[1]
    return grad_x, grad_weight


def _gradients_in_float32(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The same gradients, differentiable."""
    needed = ctx.needs_input_grad[:2]
    wanted = [value for value, needs in zip(ctx.saved_tensors, needed, strict=True) if needs]
    result = _in_float32(F.conv3d, *ctx.saved_tensors, None, *ctx.how)
    found = iter(torch.autograd.grad(result, wanted, grad, create_graph=True) if wanted else ())
    return tuple(next(found) if needs else None for needs in needed)


def _as_batch(x: Tensor, frames: slice) -> Tensor:
    """(B, C, T, H, W) -> (B * frames, C, H, W), channels last; without a copy for such memory and all frames."""
    return x.permute(0, 2, 3, 4, 1)[:, frames].flatten(0, 1).permute(0, 3, 1, 2)

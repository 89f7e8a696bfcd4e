"""Convolutions on the CPU, fused with the sum and the ReLU after them: one pass over memory instead of three.

Networks need no change: a convolution returns a `Waiting`, which stands for its result. A following
`torch.relu(waiting)`, or `waiting + x` and then a ReLU, goes into the same oneDNN call; any other operation gets the
result. In-place operations change the `Waiting` itself, which others may hold. A tensor that a `Waiting` has yet to
read must not change: `folding.fold` tries out whether a network complies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

_RELU = (torch.relu, torch.Tensor.relu, F.relu)
_RELU_IN_PLACE = (torch.relu_, torch.Tensor.relu_, F.relu_)
_ADD = (torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__)

Compute = Callable[[Tensor | None, bool], Tensor]
"""(tensor to be added or None, whether a ReLU follows) -> the result."""


class Waiting:
    """The result of a convolution, with a known shape, that is not computed yet."""

    def __init__(self, compute: Compute, shape: Sequence[int], other: Tensor | None = None) -> None:
        self._compute, self.shape, self._other = compute, torch.Size(shape), other
        self._value: Tensor | None = None

    def value(self) -> Tensor:
        """The result, without a further operation."""
        if self._value is None:
            self._value = self._compute(self._other, False)
        return self._value

    def relu(self) -> Tensor:
        return self._compute(self._other, True) if self._value is None else torch.relu(self._value)

    def relu_(self) -> Waiting:
        self._value = self._compute(self._other, True) if self._value is None else torch.relu_(self._value)
        return self

    def __add__(self, other: Any) -> Any:
        other = computed(other)
        return Waiting(self._compute, self.shape, other) if self._takes(other) else self.value() + other

    __radd__ = __add__

    def __iadd__(self, other: Any) -> Waiting:
        other = computed(other)
        if self._takes(other):
            self._other = other
        else:
            self._value = self.value().add_(other)
        return self

    def _takes(self, other: Any) -> bool:
        """Whether the sum can be fused: only one, and only with a tensor that is computed already."""
        return isinstance(other, Tensor) and other.shape == self.shape and self._other is None and self._value is None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.value(), name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func in (*_RELU, *_RELU_IN_PLACE) and args and isinstance(args[0], Waiting):
            in_place = func in _RELU_IN_PLACE or True in (*args[1:], *(kwargs or {}).values())
            return args[0].relu_() if in_place else args[0].relu()
        if func in _ADD and len(args) == 2 and not kwargs:
            one, two = args if isinstance(args[0], Waiting) else args[::-1]
            return one + two
        return func(*tree_map(computed, args), **tree_map(computed, kwargs or {}))


_OPERATORS = (
    "sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul rmatmul and rand or ror xor rxor "
    "neg pos abs invert lt le gt ge eq ne getitem setitem len iter contains bool int float "
    "isub imul itruediv ifloordiv imod ipow iand ior ixor"
)
"""Python looks these up on the class, bypassing `__getattr__`; they are applied to the result."""


def _operator(name: str) -> Callable[..., Any]:
    def operate(self: Waiting, *others: Any) -> Any:
        return getattr(self.value(), name)(*tree_map(computed, others))

    return operate


for _name in _OPERATORS.split():
    setattr(Waiting, f"__{_name}__", _operator(f"__{_name}__"))
Waiting.__hash__ = object.__hash__  # type: ignore[method-assign]


def computed(value: Any) -> Any:
    """The tensor for a `Waiting`; anything else unchanged."""
    return value.value() if isinstance(value, Waiting) else value


def can_wait(x: Tensor) -> bool:
    """Whether oneDNN can convolve tensors like this one; not while a graph is exported, which holds plain layers."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and (x.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
        and not torch.compiler.is_compiling()
    )


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    other: Tensor | None,
    relu: bool,
    stride: Sequence[int] | None = None,
) -> Tensor:
    """A 2-D or 3-D convolution in oneDNN, fused with what follows it: relu(convolution(x) + other).

    Args:
        x: (B, C, [T], H, W), channels-last in memory.
        padding, stride: one number for each of [T], H, W; stride 1 by default.
        other: a tensor of the result's shape, or None.
        relu: whether to apply the ReLU.
    """
    ones = [1] * len(padding)
    where: tuple[Any, ...] = (weight, bias, list(padding), list(stride or ones), ones, 1)
    if other is not None and other.shape[2:].numel() == 1:  # oneDNN of torch 2.11 refuses to add a single pixel
        result = torch.ops.mkldnn._convolution_pointwise(x, *where, "none", [], "") + other
        return result.relu_() if relu else result
    if other is None:
        return torch.ops.mkldnn._convolution_pointwise(x, *where, "relu" if relu else "none", [], "")
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x, other, *where, "add", 1.0, "relu" if relu else None, [], ""
    )

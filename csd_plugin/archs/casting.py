"""Casts all weights to 16 bits together. Autocast casts each one where it is used, with a separate launch, and frozen
ones again in every step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from csd_plugin.archs.fused import fused

_LAYERS = frozenset(
    (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear, fused)
)
"""The functions that autocast runs in 16 bits, with weights among their arguments."""


class CastWeights(TorchFunctionMode):
    """Inside, with an autocast to `dtype`, a network's layers get the same cast weights as from autocast. Where a
    network switches autocast off for a part, that part gets the original weights.

    The first pass shows which weights these are. Weights without gradients are cast only when they have changed.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._cast = _kept.setdefault(network, _Kept())
        self._dtype = dtype
        self._halves: dict[int, Tensor] = {}
        self._used: dict[int, nn.Parameter] = {}

    def __enter__(self) -> CastWeights:
        self._halves = self._cast.halves(self._dtype)
        super().__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        super().__exit__(*exc_info)
        self._cast.weights = list(self._used.values())
        self._halves = {}  # autograd's graph holds what it needs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _LAYERS and self._casts():
            args = tuple(map(self._half, args))
            kwargs = {name: self._half(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def _casts(self) -> bool:
        return torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == self._dtype

    def _half(self, value: Any) -> Any:
        if not isinstance(value, nn.Parameter) or value.dtype != torch.float32:
            return value
        self._used[id(value)] = value
        return self._halves.get(id(value), value)


class _Kept:
    """For one network: the weights that its layers used in the latest pass, and cast weights that stay valid."""

    def __init__(self) -> None:
        self.weights: list[nn.Parameter] = []
        self._frozen: dict[int, Tensor] = {}
        self._state: list[Any] = []

    def halves(self, dtype: torch.dtype) -> dict[int, Tensor]:
        """id of a weight -> its cast."""
        learning = [weight for weight in self.weights if torch.is_grad_enabled() and weight.requires_grad]
        frozen = [weight for weight in self.weights if not (torch.is_grad_enabled() and weight.requires_grad)]
        state = [dtype, *((id(weight), weight.data_ptr(), weight._version) for weight in frozen)]
        if state != self._state:
            self._frozen, self._state = _by_id(frozen, _cast(frozen, dtype)), state
        return {**self._frozen, **(_by_id(learning, _Cast.apply(dtype, *learning)) if learning else {})}


_kept: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


def _by_id(weights: Iterable[Tensor], halves: Iterable[Tensor]) -> dict[int, Tensor]:
    return {id(weight): half for weight, half in zip(weights, halves, strict=True)}


@torch.no_grad()
def _cast(tensors: list[Any], dtype: torch.dtype) -> list[Tensor]:
    """All tensors in this dtype, with one launch on a GPU."""
    with torch.inference_mode(False):  # the kept ones must be usable in training, too
        cast = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if cast:
        torch._foreach_copy_(cast, tensors)
    return cast


class _Cast(torch.autograd.Function):
    """(dtype, weights) -> the weights in this dtype."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(_cast(list(weights), dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # to be differentiated again
            return None, *(None if grad is None else grad.float() for grad in grads)
        found = iter(_cast([grad for grad in grads if grad is not None], torch.float32))
        return None, *(None if grad is None else next(found) for grad in grads)

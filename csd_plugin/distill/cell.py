"""The convolutional LSTM cell that the spatial Connector and the temporal Aggregator are made of.

One 3x3 convolution takes (input, hidden) to the gates i, f, o, g; then

    cell = sigmoid(f) * previous cell + sigmoid(i) * tanh(g),    hidden = sigmoid(o) * tanh(cell).

A distillation step applies it dozens of times, so it is written out for speed; no number changes by it:
the convolution is split into the input's and the hidden state's share (no concatenation, and a zero state costs
nothing), the gates are activated in place, and two gradients are spelled out that autograd finds the long way round.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class State(NamedTuple):
    """What a cell hands on, each (n, hidden, H, W). Where a State is optional, None is the zero state."""

    hidden: Tensor
    cell: Tensor


class ConvLSTMCell(nn.Module):
    """forward((n, in_channels, H, W), state of the same size) -> new state."""

    def __init__(self, *, in_channels: int, hidden: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(9 * (in_channels + hidden))  # the usual start of the one convolution these are parts of

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

        self.weight_input = uniform(4 * hidden, in_channels, 3, 3)
        self.weight_hidden = uniform(4 * hidden, hidden, 3, 3)
        self.bias = uniform(4 * hidden)

    def forward(self, x: Tensor, state: State | None) -> State:
        gates = _ThinConv.apply(x, self.weight_input, self.bias)
        if state is None:
            return State(*_Gates.apply(gates, None))
        gates = gates.add_(F.conv2d(state.hidden, self.weight_hidden, padding=1))
        return State(*_Gates.apply(gates, state.cell))


class _ThinConv(torch.autograd.Function):
    """A 3x3 convolution of an input of one or two channels.

    Only the input's gradient on a CPU differs from conv2d's: its kernels would pad the one or two channels to sixteen
    and do the work of sixteen. A 1x1 convolution to the nine taps, then summed where they overlap, is several times
    faster. On a GPU all gradients are one launch.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x, on_cpu = None, grad.device.type == "cpu"
        if ctx.needs_input_grad[0] and on_cpu:
            taps = weight.permute(1, 2, 3, 0).reshape(-1, grad.shape[1], 1, 1)
            with torch.autocast(grad.device.type, enabled=False):  # backward() may be called inside an autocast
                grad_taps = F.conv2d(grad, taps)
            grad_x = F.fold(grad_taps.flatten(2), x.shape[2:], kernel_size=3, padding=1)
        wanted = [ctx.needs_input_grad[0] and not on_cpu, *ctx.needs_input_grad[1:]]
        by_torch, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad, x, weight, [len(weight)], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted
        )
        return grad_x if on_cpu else by_torch, grad_weight, grad_bias


class _Gates(torch.autograd.Function):
    """(gates i f o g, previous cell or None) -> (hidden, cell). Overwrites `gates`, which nothing else may hold."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden = gates.shape[1] // 4
        gates[:, : 3 * hidden].sigmoid_()
        _tanh_(gates[:, 3 * hidden :])
        i, f, o, g = gates.chunk(4, dim=1)
        cell = i * g
        if previous is not None:
            cell.addcmul_(f, previous)
        tanh_cell = _tanh_(cell.clone())
        ctx.save_for_backward(gates, previous, tanh_cell)
        ctx.set_materialize_grads(False)
        return o * tanh_cell, cell

    @staticmethod
    def backward(ctx: Any, grad_hidden: Tensor | None, grad_cell: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        gates, previous, tanh_cell = ctx.saved_tensors
        i, f, o, g = gates.chunk(4, dim=1)
        grad_gates = torch.empty_like(gates)
        grad_i, grad_f, grad_o, grad_g = grad_gates.chunk(4, dim=1)

        if grad_hidden is None:
            grad_o.zero_()
        else:
            torch.mul(grad_hidden, tanh_cell, out=grad_o)
            through_hidden = torch.ops.aten.tanh_backward(grad_hidden * o, tanh_cell)
            grad_cell = through_hidden if grad_cell is None else through_hidden.add_(grad_cell)
        if grad_cell is None:
            return None, None
        torch.mul(grad_cell, g, out=grad_i)
        torch.mul(grad_cell, i, out=grad_g)
        if previous is None:
            grad_f.zero_()
        else:
            torch.mul(grad_cell, previous, out=grad_f)

        grad_sigmoid, sigmoid = grad_gates[:, : -g.shape[1]], gates[:, : -g.shape[1]]
        torch.ops.aten.sigmoid_backward.grad_input(grad_sigmoid, sigmoid, grad_input=grad_sigmoid)
        torch.ops.aten.tanh_backward.grad_input(grad_g, g, grad_input=grad_g)
        return grad_gates, grad_cell * f if ctx.needs_input_grad[1] else None


def _tanh_(x: Tensor) -> Tensor:
    """tanh in place. On a CPU through the sigmoid, which torch computes ten times faster there."""
    return x.mul_(2).sigmoid_().mul_(2).sub_(1) if x.device.type == "cpu" else x.tanh_()

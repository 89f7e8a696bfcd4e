"""The convolutional LSTM cell that the spatial Connector and the temporal Aggregator are made of.

One 3x3 convolution maps (input, hidden) to the gates i, f, o, g; then

    cell = sigmoid(f) * previous cell + sigmoid(i) * tanh(g),    hidden = sigmoid(o) * tanh(cell).

A distillation step applies it dozens of times, so it is written for speed; the results do not change. On a CPU the
convolution is split into the input's and the hidden state's part (no concatenation, and a zero state costs nothing),
the gates are activated in place, and two gradients are explicit that autograd computes in a slower way. On a GPU the
input's part for all frames is one launch, and everything after the convolutions is another, in torch's own LSTM kernel.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csd_plugin.devices import constant
from csd_plugin.errors import NOT_SERVED, CSDError, first_line

logger = logging.getLogger(__name__)


class State(NamedTuple):
    """The state of a cell, each tensor (n, hidden, H, W). Where a State is optional, None is the zero state."""

    hidden: Tensor
    cell: Tensor


class ConvLSTMCell(nn.Module):
    """forward((n, in_channels, H, W), state of the same size) -> new state."""

    def __init__(self, *, in_channels: int, hidden: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(9 * (in_channels + hidden))  # the default initialisation of the whole convolution

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

        self.weight_input = uniform(4 * hidden, in_channels, 3, 3)
        self.weight_hidden = uniform(4 * hidden, hidden, 3, 3)
        self.bias = uniform(4 * hidden)

    def forward(self, x: Tensor, state: State | None) -> State:
        return self.over([x.unsqueeze(0)]).step(state)

    def over(self, clips: Sequence[Tensor]) -> Steps:
        """The cell's steps over the frames of clips, each (L, n, C, H, W), without channels that only steps provide."""
        fuses = clips[0].is_cuda and _has_fused_lstm(clips[0].device)
        return _FusedSteps(self, clips) if fuses else Steps(self, clips)


class Steps:
    """A cell's steps over the frames of some clips, in any order."""

    def __init__(self, cell: ConvLSTMCell, clips: Sequence[Tensor]) -> None:
        self._cell, self._clips = cell, clips

    def step(self, state: State | None, more: Tensor | None = None, *, clip: int = 0, frame: int = 0) -> State:
        """The state after this frame of this clip.

        Args:
            more: the channels that the clips lack; None means zeros.
        """
        # Frame by frame even if frames are independent: small batches stay in a CPU's caches, as measured.
        cell, x = self._cell, self._clips[clip][frame]
        weight: Tensor = cell.weight_input
        if more is not None:
            x = torch.cat([x, more], dim=1)
        elif x.shape[1] < weight.shape[1]:
            weight = weight[:, : x.shape[1]]
        gates = _ThinConv.apply(x, weight, cell.bias)
        if state is None:
            return State(*_Gates.apply(gates, None))
        gates = gates.add_(F.conv2d(state.hidden, cell.weight_hidden, padding=1))
        return State(*_Gates.apply(gates, state.cell))

    def cells(self, states: Sequence[State | None], more: Sequence[Tensor | None]) -> list[Tensor]:
        """The cell after each frame of the first clip, each from its own state: (n, hidden, H, W) per frame."""
        steps = enumerate(zip(states, more, strict=True))
        return [self.step(state, extra, frame=frame).cell for frame, (state, extra) in steps]


class _FusedSteps(Steps):
    """On a GPU, where launches cost more than memory: the inputs' part of all frames at once, then two launches a step.

    States are channels_last, so that the LSTM's kernel treats every pixel as a sample of a batch.
    """

    def __init__(self, cell: ConvLSTMCell, clips: Sequence[Tensor]) -> None:
        super().__init__(cell, clips)
        given, order = clips[0].shape[2], _lstm_order(cell.weight_hidden.shape[1], clips[0].device)
        of_input, of_hidden, bias = (
            weight.index_select(0, order) for weight in (cell.weight_input, cell.weight_hidden, cell.bias)
        )
        of_clips, of_more = of_input.split([given, of_input.shape[1] - given], dim=1)
        self._of_more, self._of_hidden = of_more, _channels_last(of_hidden)
        self._of_both = _channels_last(torch.cat([of_more, of_hidden], dim=1)) if of_more.shape[1] else None
        self._gates = [
            F.conv2d(_thin_last(frames.flatten(0, 1)), of_clips, bias, padding=1).unflatten(0, frames.shape[:2])
            for frames in clips
        ]
        self._by_frame = [gates.unbind() for gates in self._gates]

    def step(self, state: State | None, more: Tensor | None = None, *, clip: int = 0, frame: int = 0) -> State:
        return self._advance(self._by_frame[clip][frame], state, more)

    def cells(self, states: Sequence[State | None], more: Sequence[Tensor | None]) -> list[Tensor]:
        frames = self._gates[0]
        hidden = _together([None if state is None else state.hidden for state in states])
        cell = _together([None if state is None else state.cell for state in states])
        state = None if hidden is None or cell is None else State(hidden, cell)
        return list(self._advance(frames.flatten(0, 1), state, _together(more)).cell.unflatten(0, frames.shape[:2]))

    def _advance(self, gates: Tensor, state: State | None, more: Tensor | None) -> State:
        if state is None:
            others = None if more is None else F.conv2d(more, self._of_more, padding=1)
        elif more is None:
            others = F.conv2d(state.hidden, self._of_hidden, padding=1)
        else:
            assert self._of_both is not None  # a cell that takes `more` has weights for it
            others = F.conv2d(torch.cat([more, state.hidden], dim=1), self._of_both, padding=1)
        return State(*_FusedGates.apply(gates, others, None if state is None else state.cell))


def _together(parts: Sequence[Tensor | None]) -> Tensor | None:
    """All parts as one batch; None is zeros, if some parts are tensors."""
    known = next((part for part in parts if part is not None), None)
    if known is None:
        return None
    zeros = torch.zeros_like(known)
    return torch.cat([zeros if part is None else part for part in parts])


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _thin_last(x: Tensor) -> Tensor:
    """channels_last also for a single channel: the memory is the same, but convolutions look at the strides."""
    return x.reshape(len(x), *x.shape[2:], 1).permute(0, 3, 1, 2) if x.shape[1] == 1 else _channels_last(x)


class _ThinConv(torch.autograd.Function):
    """A 3x3 convolution of an input of one or two channels.

    On a CPU, only the input's gradient differs from conv2d's, whose kernels would pad the one or two channels to
    sixteen and do the work of sixteen. A 1x1 convolution to the nine taps, summed where they overlap, is several times
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
    """(gates i f o g, previous cell or None) -> (hidden, cell). Overwrites `gates`, which nothing else may use."""

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
        _refuse_second_derivatives()
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


class _FusedGates(torch.autograd.Function):
    """(gates i f g o, addend or None, previous cell or None) -> (hidden, cell), with torch's LSTM kernel.

    torch uses it in nn.LSTMCell on GPUs. On its own it has no public name, and it keeps the gates for second
    derivatives, so its two operations are called here.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, others: Tensor | None, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        rows, size = _rows(gates), gates.shape
        added = torch.zeros_like(rows) if others is None else _rows(others)
        before = rows.new_zeros(len(rows), size[1] // 4) if previous is None else _rows(previous)
        hidden, cell, workspace = torch.ops.aten._thnn_fused_lstm_cell(rows, added, before)
        ctx.save_for_backward(before, cell, workspace)
        ctx.set_materialize_grads(False)
        ctx.size = size
        return _maps(hidden, size), _maps(cell, size)

    @staticmethod
    def backward(ctx: Any, grad_hidden: Tensor | None, grad_cell: Tensor | None) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        if grad_hidden is None and grad_cell is None:
            return None, None, None
        grads = (None if grad is None else _rows(grad) for grad in (grad_hidden, grad_cell))
        grad_gates, grad_before, _ = torch.ops.aten._thnn_fused_lstm_cell_backward_impl(
            *grads, *ctx.saved_tensors, False
        )
        all_grads = [_maps(rows, ctx.size) for rows in (grad_gates, grad_gates, grad_before)]
        return tuple(grad if needed else None for grad, needed in zip(all_grads, ctx.needs_input_grad, strict=True))


def _refuse_second_derivatives() -> None:
    """In a backward pass: raise CSDError if the pass is recorded for further derivatives."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise CSDError(
            "the cells of objectives have no second derivatives: leave create_graph out of their backward pass"
        )


def _rows(maps: Tensor) -> Tensor:
    """(n, C, H, W) -> (n * H * W, C), without a copy if channels_last."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def _maps(rows: Tensor, size: torch.Size) -> Tensor:
    """(n * H * W, C) -> (n, C, H, W), channels_last, of the given size."""
    return rows.view(size[0], *size[2:], -1).permute(0, 3, 1, 2)


@constant
def _lstm_order(hidden: int, device: torch.device) -> Tensor:
    """The indices of the LSTM's gates i f g o among ours, i f o g."""
    i, f, o, g = torch.arange(4 * hidden).split(hidden)
    return torch.cat([i, f, g, o]).to(device)


@lru_cache(maxsize=64)
def _has_fused_lstm(device: torch.device) -> bool:
    """Whether torch has its LSTM kernel for this device and it computes a cell: tried out, as it is not public."""
    gates = torch.linspace(-2, 2, 2 * 8 * 3).view(1, 8, 2, 3)
    previous = torch.linspace(-1, 1, 2 * 2 * 3).view(1, 2, 2, 3)
    order = _lstm_order(2, torch.device("cpu"))
    expected = _Gates.apply(gates.clone(), previous)
    try:
        moved = _channels_last(gates[:, order]).to(device)
        found = _FusedGates.apply(moved, None, _channels_last(previous).to(device))
        if all(torch.allclose(ours.cpu(), theirs, atol=1e-5) for ours, theirs in zip(found, expected, strict=True)):
            return True
        reason = "other results"
    except NOT_SERVED as error:
        reason = first_line(error)
    logger.warning("the cells of objectives run without torch's LSTM kernel on %s, which is slower: %s", device, reason)
    return False


def _tanh_(x: Tensor) -> Tensor:
    """tanh in place. On a CPU by way of the sigmoid, which torch computes ten times faster there."""
    return x.mul_(2).sigmoid_().mul_(2).sub_(1) if x.device.type == "cpu" else x.tanh_()

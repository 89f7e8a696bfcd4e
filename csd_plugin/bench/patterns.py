"""A distillation step written in the simplest way, frame by frame, with which `csd bench step` compares ours.

It computes the same values as a `DistillModel` with the default CSD, from the same weights: `PerFrame` with one
backward pass, `Released` in the way of the authors' released code. It shares only the networks, the image loss and the
weights with the objective.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from csd_plugin.archs.interface import interface_of
from csd_plugin.distill.csd import AlignmentCells
from csd_plugin.distill.taps import FeatureTap

NUM_SCALE = 3
TERM_WEIGHT = 0.1
"""The weight of the spatial and of the temporal loss, as in the option files."""

State = tuple[Tensor, Tensor]


class PerFrame:
    """One backward pass over losses that are computed window by window, frame by frame and cell by cell.

    Args:
        student, teacher: networks of windows with `num_frame` and `feature_tap`.
        cells: the objective's. They are copied, like the student, so that all contenders start equal.
    """

    input_scales: tuple[int, ...] = (1,)

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        cells: AlignmentCells,
        image_loss: Callable[[Tensor, Tensor], Tensor],
        *,
        lr: float,
        autocast: torch.dtype | None,
    ) -> None:
        self.student, self.teacher, self.cells = copy.deepcopy(student), teacher, copy.deepcopy(cells)
        self.image_loss, self.autocast = image_loss, autocast
        self._taps = {net: FeatureTap(net, str(net.feature_tap)) for net in (self.student, self.teacher)}
        self.optimizer = torch.optim.Adam([*self.student.parameters(), *self.cells.parameters()], lr=lr)

    def step(self, lq: Tensor, gt: Tensor) -> float:
        """One step on rainy clips (B, N, 3, H, W) and clean targets (B, L, 3, H, W) -> the loss before the step."""
        self.optimizer.zero_grad()
        loss = self.gradients(lq, gt)
        self.optimizer.step()
        return loss

    def gradients(self, lq: Tensor, gt: Tensor) -> float:
        """The loss; its gradients are in the parameters."""
        total = torch.stack([torch.stack(terms).sum() for terms in self._frames(lq, gt)]).sum()
        total.backward()
        return float(total.detach())

    def _frames(self, lq: Tensor, gt: Tensor) -> Iterator[list[Tensor]]:
        """The weighted terms, frame by frame: reconstruction, three scales, two temporal streams.

        All are divided by L, so that their sum over the clip is the loss.
        """
        count = gt.shape[1]
        taught = learned = None  # the temporal states of teacher and student
        for t in range(count):
            with torch.no_grad():
                _, theirs = self._run(self.teacher, lq, t, count)
            output, ours = self._run(self.student, lq, t, count)
            student_maps, teacher_maps = _maps(ours, theirs)

            with torch.no_grad():
                targets, taught_hint = self._spatial(teacher_maps, taught)
            statuses, hint = self._spatial(student_maps, learned)
            spatial = [
                sum((F.l1_loss(a, b) for a, b in zip(ours, theirs, strict=True)), torch.zeros(()))
                for ours, theirs in zip(statuses, targets, strict=True)
            ]

            mixed = self._temporal(student_maps[0], taught_hint, taught)
            learned = self._temporal(student_maps[0], hint, learned)
            with torch.no_grad():
                taught = self._temporal(teacher_maps[0], taught_hint, taught)
            temporal = [F.l1_loss(learned[1], taught[1]), F.l1_loss(mixed[1], taught[1])]

            yield [
                self.image_loss(output, gt[:, t]) / count,
                *(TERM_WEIGHT * term / count for term in (*spatial, *temporal)),
            ]

    def _run(self, network: nn.Module, lq: Tensor, t: int, count: int) -> tuple[Tensor, list[Tensor]]:
        """Target t of every clip: the frame (B, 3, H, W) at full size, and the feature at each input scale."""
        num_frame = int(network.num_frame)  # type: ignore[arg-type]
        first = (lq.shape[1] - count) // 2 + t - num_frame // 2
        outputs, features = [], []
        for scale in self.input_scales:
            window = lq[:, first : first + num_frame]
            if scale > 1:
                window = F.avg_pool2d(window.flatten(0, 1), scale).unflatten(0, window.shape[:2])
            with torch.autocast(lq.device.type, self.autocast, enabled=self.autocast is not None):
                outputs.append(network(window).float())
            tap = self._taps[network]
            features.append(interface_of(network).features(tap.take(), len(window), 1, tap.path)[:, 0])
        return outputs[0], features

    def _spatial(self, maps: list[Tensor], start: State | None) -> tuple[list[list[Tensor]], Tensor]:
        """The statuses of both passes at each scale, and the hint of the last."""
        assert self.cells.connector is not None and self.cells.hint is not None
        to_global, to_local = self.cells.connector.local_to_global, self.cells.connector.global_to_local
        statuses: list[list[Tensor]] = [[] for _ in maps]
        state = start
        for scale, x in enumerate(maps):
            if scale:
                assert state is not None
                state = (F.avg_pool2d(state[0], 2), F.avg_pool2d(state[1], 2))
            state = _cell(to_global, x, state)
            statuses[scale].append(state[1])
        for scale in reversed(range(len(maps))):
            assert state is not None
            size = maps[scale].shape[2:]
            state = _cell(to_local, maps[scale], (F.interpolate(state[0], size), F.interpolate(state[1], size)))
            statuses[scale].append(state[1])
        return statuses, self.cells.hint(statuses[0][1])

    def _temporal(self, x: Tensor, hint: Tensor, state: State | None) -> State:
        assert self.cells.aggregator is not None
        return _cell(self.cells.aggregator.cell, torch.cat([x, hint], dim=1), state)


class Released(PerFrame):
    """The way of the authors' released code, as far as today's torch allows it.

    Both networks run again on pooled frames for every scale. Each frame has six backward passes, one per term, over
    graphs that are kept through the clip. The optimizer's step, which the released code takes after every pass, is at
    the end of the clip here: torch refuses gradients through weights that have changed.
    """

    input_scales = tuple(2**scale for scale in range(NUM_SCALE))

    def gradients(self, lq: Tensor, gt: Tensor) -> float:
        total = torch.zeros((), device=lq.device)
        for terms in self._frames(lq, gt):
            for term in terms:
                term.backward(retain_graph=True)
                total += term.detach()
        return float(total)


def _maps(student: list[Tensor], teacher: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Standardised squared sums over channels (B, 1, h, w) at every scale, pooled if there is only one feature."""
    student_maps, teacher_maps = [], []
    for ours, theirs in zip(student, teacher, strict=True):
        a, b = (feature.float().sum(dim=1, keepdim=True) ** 2 for feature in (ours, theirs.detach()))
        mean = b.mean(dim=(2, 3), keepdim=True)
        deviation = ((b - mean) ** 2).mean(dim=(2, 3), keepdim=True).sqrt() + 1e-6
        student_maps.append((a - mean) / deviation)
        teacher_maps.append((b - mean) / deviation)
    for maps in (student_maps, teacher_maps):
        while len(maps) < NUM_SCALE:
            maps.append(F.avg_pool2d(maps[-1], 2))
    return student_maps, teacher_maps


def _cell(weights: nn.Module, x: Tensor, state: State | None) -> State:
    """A convolutional LSTM cell: (n, channels, H, W) and the previous state, zeros at first -> (hidden, cell)."""
    weight = torch.cat([weights.weight_input, weights.weight_hidden], dim=1)  # type: ignore[list-item]
    if state is None:
        zeros = x.new_zeros(x.shape[0], weight.shape[0] // 4, *x.shape[2:])
        state = (zeros, zeros)
    gates = F.conv2d(torch.cat([x, state[0]], dim=1), weight, weights.bias, padding=1)  # type: ignore[arg-type]
    i, f, o, g = gates.chunk(4, dim=1)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell

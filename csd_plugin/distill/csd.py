"""Collaborative spatial-temporal distillation (Hu et al., ICME 2023)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csd_plugin.distill.aggregation import AGGREGATIONS
from csd_plugin.distill.cell import State, Steps
from csd_plugin.distill.collapse import FreezeOnCollapse, spread
from csd_plugin.distill.fidelity import FIDELITIES
from csd_plugin.distill.interface import Objective, feature_pairs
from csd_plugin.distill.spatial import Connector, pyramid
from csd_plugin.distill.temporal import Aggregator
from csd_plugin.errors import CSDError, suggestion
from csd_plugin.types import ClipView, Terms

SCALE_SOURCES = ("feature", "frames")
ORDERS = ("spatial_first", "temporal_first")
CELLS = ("joint", "joint_until_collapsed", "frozen", "averaged")
_CHOICES: dict[str, Collection[str]] = {
    "aggregation": AGGREGATIONS,
    "scale_source": SCALE_SOURCES,
    "order": ORDERS,
    "cells": CELLS,
}
_EMA_DECAY, _COLLAPSE_FRACTION = 0.999, 0.5
PASSES = 2
"""The Connector's passes."""


@dataclass
class Trace:
    """The states of the cells for one network's maps, frame by frame; empty for a module that is switched off.

    Attributes:
        spatial: the Connector's statuses, each (B, hidden, h, w).
        hints: the spatial hint, (B, 1, H, W).
        temporal: the Aggregator's state.
    """

    spatial: list[list[Tensor]] = field(default_factory=list)
    hints: list[Tensor] = field(default_factory=list)
    temporal: list[State] = field(default_factory=list)

    def of_scale(self, scale: int) -> list[Tensor]:
        """The statuses of one scale, of both passes."""
        return [statuses[k] for statuses in self.spatial for k in (scale, len(statuses) - 1 - scale)]

    def of_time(self) -> list[Tensor]:
        """The statuses of the video."""
        return [state.cell for state in self.temporal]


class AlignmentCells(nn.Module):
    """All modules that learn with the student, shared by the streams; those switched off do not exist.

    Args:
        temporal_first: in each frame the Aggregator goes first, with the spatial hint of the previous frame, and the
            Connector after it, from the state of this frame; otherwise the reverse, as in the paper.
    """

    def __init__(
        self, *, hidden: int, spatial: bool, cross_scale: bool, temporal: bool, adaptor: bool, temporal_first: bool
    ) -> None:
        super().__init__()
        self.temporal_first = temporal_first
        self.connector = Connector(hidden=hidden, cross_scale=cross_scale) if spatial else None
        self.aggregator = Aggregator(hidden=hidden) if temporal else None
        self.hint = nn.Conv2d(hidden, 1, kernel_size=1, bias=False) if adaptor else None

    def forward(self, scales: Sequence[Tensor], *, temporal: bool = True) -> Trace:
        """Carry one network's maps through the clip, every state starting at zero.

        Args:
            scales: one (L, B, 1, h, w) per scale, largest first.
            temporal: False skips the Aggregator.
        """
        trace = Trace()
        connect = None if self.connector is None else self.connector.over(scales)
        aggregate = None if self.aggregator is None or not temporal else self.aggregator.over(scales[0])
        for t in range(len(scales[0])):
            if self.temporal_first:
                self._advance(aggregate, t, trace)
            self._connect(connect, t, trace)
            if not self.temporal_first:
                self._advance(aggregate, t, trace)
        return trace

    def _connect(self, connect: Callable[[int, State | None], list[Tensor]] | None, frame: int, trace: Trace) -> None:
        """One frame's spatial statuses, from the latest temporal state, and the hint that they give."""
        if connect is None:
            return
        start = trace.temporal[-1] if self.hint is not None and trace.temporal else None
        trace.spatial.append(connect(frame, start))
        if self.hint is not None:
            trace.hints.append(self.hint(trace.spatial[-1][-1]))

    @staticmethod
    def _advance(aggregate: Steps | None, frame: int, trace: Trace) -> None:
        """The temporal state after one more frame, with the latest hint."""
        if aggregate is not None:
            hint = trace.hints[-1] if trace.hints else None
            state = trace.temporal[-1] if trace.temporal else None
            trace.temporal.append(aggregate.step(state, hint, frame=frame))

    def collaborate(self, student: Tensor, teacher: Trace) -> list[Tensor]:
        """Per frame of the student's map (L, B, 1, H, W), the collaborative status C_M (B, hidden, H, W).

        Each takes the student's map, the hint that the teacher had, and the teacher's state of the previous frame; the
        resulting state is dropped.
        """
        assert self.aggregator is not None
        hints: Sequence[Tensor | None] = teacher.hints or [None] * len(student)
        if self.temporal_first:
            hints = [None, *hints[:-1]]
        return self.aggregator.over(student).cells([None, *teacher.temporal[:-1]], hints)


class Traces:
    """The traces of the student and the teacher for one batch, to be compared."""

    def __init__(self, student: Trace, teacher: Trace) -> None:
        self.student, self.teacher = student, teacher

    def distance(self, statuses: Callable[[Trace], list[Tensor]]) -> Tensor:
        """Mean absolute difference between these statuses of both, all of one size. The teacher's get no gradient."""
        return _distance(statuses(self.student), [status.detach() for status in statuses(self.teacher)])


class CSD(Objective):
    """The paper's distillation losses on one feature of teacher and student; their channels may differ.

    Each feature becomes a one-channel map per frame. Frame by frame, the spatial module merges the map's scales and
    compares the merged statuses (term `spatial`, equation 3); the temporal module carries a status through the clip
    and compares the student's, and that of the student's map in the teacher's state, with the teacher's (term
    `temporal`, equation 6); each starts from what the other found (section 2.3). Terms are means over batch, channels
    and pixels, summed over scales, passes and streams, averaged over frames. Everything is float32 under any autocast.

    Diagnostics: `spread_spatial`, `spread_temporal`: deviation of the teacher's status over frames, batch and
    pixels, averaged over channels, scales and passes (a falling loss means nothing if these fall with it), and
    `student_spread_spatial`, `student_spread_temporal` of the student's;
    `correlation`: Pearson's, of teacher's and student's map over a frame's pixels, averaged over frames;
    `frozen`, with `cells: joint_until_collapsed`: 1 once the cells are frozen.

    Args:
        aggregation: how channels are reduced to a map: `sum_squared_standardized`, for networks of any widths;
            `sum_squared_normalized`, each network's map by its own mean and deviation, for networks of different
            families; `mean_squared_standardized`, for equal widths; `mean_squared` (the paper); `sum_squared` (the
            released code).
        scale_source: smaller scales from the pooled `feature`, or from both networks run on pooled `frames` (slower).
        num_scale: scales, each half of the one before.
        hidden: channels of the cells.
        order: within a frame: `spatial_first` (the paper), or `temporal_first` with the spatial hint of the previous
            frame (the released code).
        detach_teacher_state: stop gradients of the collaborative stream at the teacher's state and hint (the released
            code does not). Targets of the losses never have gradients.
        cells: `joint`: they learn with the student (the paper), and can make the losses small by ignoring their input;
            `joint_until_collapsed`: they learn until the spread of the teacher's status falls below `collapse_fraction`
            of its first value, or a loss below 1e-8, and are then frozen, as in STD; `frozen`: they keep their random
            initial weights; `averaged`: the teacher's cells are a moving average of the student's, so that the target
            cannot follow the student at once.
        multi_scale: the paper's MS, in its Table 5.
        cross_scale: the paper's CSC.
        independent: the paper's ITA.
        collaborative: the paper's CTA.
        adaptor: the paper's STA.
        ema_decay: decay of the moving average with `cells: averaged`.
        collapse_fraction: see `cells`.

    Raises:
        CSDError: options are incompatible, or features do not match.
    """

    fidelities = FIDELITIES

    def __init__(
        self,
        *,
        aggregation: str = "sum_squared_standardized",
        scale_source: str = "feature",
        num_scale: int = 3,
        hidden: int = 16,
        order: str = "spatial_first",
        detach_teacher_state: bool = True,
        cells: str = "joint",
        multi_scale: bool = True,
        cross_scale: bool = True,
        independent: bool = True,
        collaborative: bool = True,
        adaptor: bool = True,
        ema_decay: float = _EMA_DECAY,
        collapse_fraction: float = _COLLAPSE_FRACTION,
    ) -> None:
        super().__init__()
        temporal = independent or collaborative
        _check_choices(aggregation=aggregation, scale_source=scale_source, order=order, cells=cells)
        _check_numbers(cells, num_scale, hidden, ema_decay, collapse_fraction)
        _check_modules(multi_scale=multi_scale, cross_scale=cross_scale, temporal=temporal, adaptor=adaptor)
        self.aggregate = AGGREGATIONS[aggregation]
        self.num_scale = num_scale if multi_scale else 1
        if scale_source == "frames":
            self.input_scales = tuple(2**p for p in range(self.num_scale))
        self.independent, self.collaborative, self.adaptor = independent, collaborative, adaptor
        self.detach_teacher_state = detach_teacher_state
        self.ema_decay = ema_decay
        self.cells = AlignmentCells(
            hidden=hidden,
            spatial=multi_scale,
            cross_scale=cross_scale,
            temporal=temporal,
            adaptor=adaptor,
            temporal_first=order == "temporal_first",
        ).requires_grad_(cells != "frozen")
        for weight in self.weights_without_use():
            weight.requires_grad_(False)
        self.averaged_cells = copy.deepcopy(self.cells).requires_grad_(False) if cells == "averaged" else None
        until_collapsed = FreezeOnCollapse(count=len(self.terms), fraction=collapse_fraction)
        self.freeze = until_collapsed if cells == "joint_until_collapsed" else None
        self.follows_steps = self.averaged_cells is not None or self.freeze is not None

    @property
    def terms(self) -> tuple[str, ...]:
        modules = {"spatial": self.cells.connector, "temporal": self.cells.aggregator}
        return tuple(name for name, module in modules.items() if module is not None)

    def weights_without_use(self) -> list[nn.Parameter]:
        connector = self.cells.connector
        if connector is None:
            return []
        if not connector.cross_scale:
            return [cell.weight_hidden for cell in (connector.local_to_global, connector.global_to_local)]
        # with one scale and without hints, every frame's first cell starts from the zero state
        return [] if self.num_scale > 1 or self.adaptor else [connector.local_to_global.weight_hidden]

    def check(self, student: ClipView, teacher: ClipView) -> None:
        [(ours, _)] = feature_pairs("CSD", student, teacher, count=1)
        height, width = ours.shape[3:]
        if min(height, width) < 2 ** (self.num_scale - 1):
            raise CSDError(
                f"CSD: a feature of {height}x{width} is too small for {self.num_scale} scales; use larger crops"
            )

    def forward(self, student: ClipView, teacher: ClipView, target: Tensor) -> Terms:
        """The terms and diagnostics in the class docstring; `target` is not used."""
        if self.freeze is not None:
            self.freeze.hold(self.cells.parameters())
        with torch.autocast(target.device.type, enabled=False):
            student_maps, teacher_maps = self._maps(student, teacher)
            traces = self._traces(student_maps, teacher_maps)

            losses: dict[str, Tensor] = {}
            if "spatial" in self.terms:
                by_scale = [traces.distance(partial(Trace.of_scale, scale=p)) for p in range(self.num_scale)]
                losses["spatial"] = PASSES * torch.stack(by_scale).sum()
            if "temporal" in self.terms:
                losses["temporal"] = self._temporal_loss(student_maps[0], traces)
            diagnostics: dict[str, Tensor] = {}
            if self.diagnoses or self.freeze is not None:
                diagnostics |= _spreads(traces.teacher)
            if self.diagnoses:
                diagnostics["correlation"] = _correlation(student_maps[0], teacher_maps[0])
                diagnostics |= {f"student_{name}": value for name, value in _spreads(traces.student).items()}
            if self.freeze is not None:
                self.freeze.watch(losses.values(), [diagnostics[f"spread_{term}"] for term in losses])
                diagnostics["frozen"] = self.freeze.frozen.float()
        return Terms(losses, diagnostics)

    def _traces(self, student: list[Tensor], teacher: list[Tensor]) -> Traces:
        """The traces of both networks' maps.

        One after the other on a GPU, too: a single batch would take fewer launches, but the teacher's half would go
        through the backward pass, which moves 2.7 GiB more at the paper's settings.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_teacher_state):
            teacher_trace = (self.cells if self.averaged_cells is None else self.averaged_cells)(teacher)
        return Traces(self.cells(student, temporal=self.independent or self.adaptor), teacher_trace)

    @torch.no_grad()
    def after_step(self) -> None:
        if self.freeze is not None:
            self.freeze.restore(self.cells.parameters())
        if self.averaged_cells is not None:
            pairs = zip(self.averaged_cells.parameters(), self.cells.parameters(), strict=True)
            for average, learned in pairs:
                average.lerp_(learned, 1 - self.ema_decay)

    def _maps(self, student: ClipView, teacher: ClipView) -> tuple[list[Tensor], list[Tensor]]:
        """The student's and the teacher's maps, each a list of (L, B, 1, h, w), one per scale, largest first."""
        self.check(student, teacher)
        scales = []
        for scale in self.input_scales:
            [(ours, theirs)] = feature_pairs("CSD", student, teacher, scale=scale, count=1)
            # Frames first, so that each frame is contiguous.
            scales.append(tuple(maps.transpose(0, 1).contiguous() for maps in self.aggregate(ours, theirs)))

        height, width = scales[0][0].shape[3:]
        if len(scales) < self.num_scale:
            student_maps, teacher_maps = (
                [scale.unflatten(0, maps.shape[:2]) for scale in pyramid(maps.flatten(0, 1), self.num_scale)]
                for maps in scales[0]
            )
            return student_maps, teacher_maps
        for scale, (maps, _) in zip(self.input_scales, scales, strict=True):
            if maps.shape[3:] != (height // scale, width // scale):
                raise CSDError(
                    f"CSD: at input scale {scale} the features are {maps.shape[3]}x{maps.shape[4]}, not "
                    f"{height // scale}x{width // scale}; use scale_source: feature with these networks"
                )
        return [ours for ours, _ in scales], [theirs for _, theirs in scales]

    def _temporal_loss(self, student_map: Tensor, traces: Traces) -> Tensor:
        streams = []
        if self.independent:
            streams.append(traces.distance(Trace.of_time))
        if self.collaborative:
            targets = [status.detach() for status in traces.teacher.of_time()]
            streams.append(_distance(self.cells.collaborate(student_map, traces.teacher), targets))
        return torch.stack(streams).sum()


def _check_choices(**given: str) -> None:
    for key, value in given.items():
        if value not in _CHOICES[key]:
            raise CSDError(f"CSD: {key} {value!r} is unknown{suggestion(value, _CHOICES[key])}")


def _check_numbers(cells: str, num_scale: int, hidden: int, ema_decay: float, collapse_fraction: float) -> None:
    if num_scale < 1 or hidden < 1:
        raise CSDError(f"CSD: num_scale is {num_scale} and hidden {hidden}, expected at least 1")
    if not 0 <= ema_decay < 1:
        raise CSDError(f"CSD: ema_decay is {ema_decay}, expected at least 0 and below 1")
    if not 0 < collapse_fraction < 1:
        raise CSDError(f"CSD: collapse_fraction is {collapse_fraction}, expected between 0 and 1")
    for key, given, of, usual in (
        ("ema_decay", ema_decay, "averaged", _EMA_DECAY),
        ("collapse_fraction", collapse_fraction, "joint_until_collapsed", _COLLAPSE_FRACTION),
    ):
        if given != usual and cells != of:
            raise CSDError(f"CSD: {key} has no effect unless cells is {of}; leave it out, or set cells to that")


def _check_modules(*, multi_scale: bool, cross_scale: bool, temporal: bool, adaptor: bool) -> None:
    if not (multi_scale or temporal):
        raise CSDError("CSD: all parts are switched off; switch on multi_scale, independent or collaborative")
    if cross_scale and not multi_scale:
        raise CSDError("CSD: cross_scale needs multi_scale; switch that on, or cross_scale off")
    if adaptor and not (multi_scale and cross_scale and temporal):
        raise CSDError(
            "CSD: adaptor needs multi_scale, cross_scale and one of independent, collaborative; "
            "switch them on or adaptor off"
        )


def _distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference over all elements of tensors of equal size."""
    if ours[0].is_cuda:  # on a GPU, a copy costs less than launches for each tensor
        return F.l1_loss(torch.cat(list(ours)), torch.cat(list(theirs)))
    return torch.stack([F.l1_loss(a, b) for a, b in zip(ours, theirs, strict=True)]).mean()


def _spreads(trace: Trace) -> dict[str, Tensor]:
    """The spread of each kind of status that a trace has."""
    spreads = {}
    if trace.spatial:
        spreads["spread_spatial"] = torch.stack([spread(s) for s in zip(*trace.spatial, strict=True)]).mean()
    if trace.temporal:
        spreads["spread_temporal"] = spread(trace.of_time())
    return spreads


@torch.no_grad()
def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation over the pixels of each frame (L, B, 1, H, W), averaged; 0 for a constant frame."""
    a, b = a.flatten(2), b.flatten(2)
    a, b = a - a.mean(dim=2, keepdim=True), b - b.mean(dim=2, keepdim=True)
    return F.cosine_similarity(a, b, dim=2).mean()

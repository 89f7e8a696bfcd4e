"""Distillation for any training loop: a batch in, named losses out. The loop goes back, steps and saves."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from csd_plugin.archs.bf16_conv3d import repair_bf16_conv3d
from csd_plugin.archs.interface import Interface, interface_of, run_network
from csd_plugin.data.batches import as_clips, as_float, features_of
from csd_plugin.distill.adapters import AdaptedObjective
from csd_plugin.distill.balance import Balance
from csd_plugin.distill.dry_run import Clips, dry_run
from csd_plugin.distill.health import HealthMonitor
from csd_plugin.distill.interface import Objective
from csd_plugin.distill.objective import Comparison, by_name, weighted_sum
from csd_plugin.distill.schedule import Weight, check_weight, is_ever_on, weight_at
from csd_plugin.distill.taps import FeatureTap, listening, quiet, tap_compared
from csd_plugin.errors import CSDError
from csd_plugin.types import ClipView, Terms

TEACHER_TARGETS = 2
"""Targets that the teacher computes at once, or those of one clip: more need memory, one alone is slow on a CPU."""
TEACHER_TARGETS_ON_GPU = 32
"""There each part costs its launches."""

logger = logging.getLogger(__name__)


class Teacher:
    """A frozen network, and the objective that compares the student with it.

    Args:
        network: is put into eval mode, and its weights take no gradient from here on.
        objective: an `Objective`, or a data parallel wrapper of one; its cells learn with the student.
        label: `t`, or among several teachers another for each; it begins the names of their terms.
        share: of the distillation loss; those of all teachers add to 1.
        interface: how the network is called; by default what it says about itself.
        layers: of the network that the objective compares, `conv7` or `conv7:output`; by default its feature.

    Raises:
        CSDError: nobody says how the network is called, or it has no such layers.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: nn.Module,
        *,
        label: str = "t",
        share: float = 1.0,
        interface: Interface | None = None,
        layers: list[str] | None = None,
    ) -> None:
        self.network, self.objective, self.label, self.share = network, objective, label, share
        self.froze = [parameter for parameter in network.parameters() if parameter.requires_grad]
        network.eval().requires_grad_(False)
        self.interface = interface or interface_of(network)
        self.taps = quiet(tap_compared(network, self.interface, layers)) if bare(objective).needs_features else []


class Distiller(nn.Module):
    """A student that learns from the truth and from frozen teachers; `forward` gives the losses of a batch.

    Its parameters are the student's and those of the objectives, for one optimizer; so is its state dict (`student.`,
    `objectives.LABEL.`). Teachers are in neither, but move with `.to()`. Call `after_step` after each optimizer step.

    Args:
        student: may be wrapped for several processes, or compiled.
        teachers: none leaves the reconstruction loss alone.
        reconstruction: frames and truth, (B*L, 3, H, W) in [0, 1] each, to a scalar.
        weights: of the objectives' terms: numbers, schedules, or balances, see `schedule` and `balance`. While all are
            0 no teacher is run. A resumed loop has to give `balance.measured` back what it was.
        interface: how the student is called; by default what it says about itself.
        layers: of the student that are compared, in the order of the teachers' layers; by default its feature.
        autocast: what the networks compute in; None leaves it to an autocast around `forward`. Losses are float32.
        examine_every: iterations between two looks at whether the terms teach, see `health`; 0 for none. The first
            batch is looked at too.
        scaler: the one that the loop's loss goes through, where it trains in fp16.
        warn: takes what the looks find, and what is compared only in part, a line each.

    Raises:
        CSDError: shares that do not add to 1, terms and weights that do not go together, layers that are not there; a
            teacher that has weights which the student learns.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[Teacher],
        reconstruction: nn.Module,
        *,
        weights: Mapping[str, Weight],
        interface: Interface | None = None,
        layers: list[str] | None = None,
        autocast: torch.dtype | None = None,
        examine_every: int = 100,
        scaler: torch.amp.GradScaler | None = None,
        warn: Callable[[str], object] = logger.warning,
    ) -> None:
        super().__init__()
        _check(teachers, weights)
        for teacher in teachers:
            _check_apart(student, teacher)
        if any(parameter.device.type == "cpu" for parameter in student.parameters()):
            repair_bf16_conv3d()  # also where all of this is compiled
        self.student, self.reconstruction = student, reconstruction
        self.objectives = nn.ModuleDict({teacher.label: teacher.objective for teacher in teachers})
        self.teachers = list(teachers)  # a list: no modules of this one
        self.weights, self.balance = dict(weights), Balance(weights)
        self.interface = interface or interface_of(bare(student))
        self.student_taps: list[FeatureTap] = []
        if any(teacher.taps for teacher in teachers):
            self.student_taps = quiet(tap_compared(bare(student), self.interface, layers))
        self.autocast, self.examine_every, self.scaler, self.warn = autocast, examine_every, scaler, warn
        self.monitor = HealthMonitor() if teachers and examine_every else None
        self._examined = 0
        self._warned: set[str] = set()

    @property
    def num_frame(self) -> int:
        """Frames of the longest window that a network needs for a target."""
        return max(self.interface.num_frame, *(teacher.interface.num_frame for teacher in self.teachers), 1)

    def forward(
        self, batch: Mapping[str, Any], iteration: int = 1, *, logged: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses of a batch, weighted: their sum is what is minimised; and scalars to log with them.

        Without gradients (`torch.no_grad`) nothing is looked at or balanced; a balance that was not measured yet counts
        as its share.

        Returns `l_recon` and `l_distill`, scalars; and raw terms (`l_spatial`), `status/..`, `weight/..`, `health/..`.

        Args:
            batch: `lq` (B, N, 3, H, W) and `gt` (B, L, 3, H, W), its middle, or what `as_clips` makes such; in [0, 1],
                or uint8. With the teacher's features (`features_of`) it is not run; `gt` is taken for its frames then.
            iteration: from 1 on; weights and looks go by it.
            logged: False leaves out of `status/..` what takes time, where nobody reads it.

        Raises:
            CSDError: batches that are too short or do not pair, or a term that teaches nothing.
        """
        lq, gt = map(as_float, as_clips(batch, self.num_frame, "the batch"))
        gt = gt.float()  # as the networks' frames are, whatever they compute in
        weights = self._weights_at(iteration)
        if self.teachers and any(weights.values()):
            looks = self.monitor is not None and self._is_due(self.monitor, iteration)
            for module in self.objectives.modules():
                if isinstance(module, Objective):
                    module.diagnoses = logged or looks
            stored = self._stored_view(features_of(batch), gt)
            return self._distill(lq, gt, weights, iteration, looks, stored)
        output = run_network(self.student, lq, gt.shape[1], self.interface, autocast=self.autocast)
        return {"l_recon": self._reconstruct(output, gt)}, self._changing(weights, lq.device)

    def repeats(self, iteration: int, *, logged: bool) -> tuple[float, ...] | None:
        """What this iteration computes beside its batch: equal for iterations that do the same; None: it does more.

        Asks, and changes nothing.
        """
        weights = self._weights_at(iteration)
        if self.teachers and any(weights.values()):
            looks = self.monitor is not None and self._wants_look(self.monitor, iteration)
            if logged or looks or self.balance.wants(iteration, weights):
                return None
        return tuple(weights.values())

    def after_step(self) -> None:
        """To be called after each optimizer step: what follows the weights without being learned."""
        for teacher in self.teachers:
            bare(teacher.objective).after_step()

    def _distill(
        self,
        lq: Tensor,
        gt: Tensor,
        weights: Mapping[str, float],
        iteration: int,
        looks: bool,
        stored: ClipView | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        # The teachers first: their layers need their memory before the student's graph takes its own.
        views = [stored or self._teacher_view(teacher, lq, gt.shape[1]) for teacher in self.teachers]
        scales = dict.fromkeys(scale for teacher in self.teachers for scale in bare(teacher.objective).input_scales)
        student = self._view(self.student, self.interface, self.student_taps, lq, gt.shape[1], scales)
        with torch.autocast(lq.device.type, enabled=False):
            terms = [teacher.objective(student, view, gt) for teacher, view in zip(self.teachers, views, strict=True)]
            recon = self._reconstruct(student.output.flatten(0, 1), gt)
            weights = self._balanced(weights, iteration, recon, terms)
            compared = {
                self._prefix(teacher): self._comparison(teacher, view, of_teacher, weights)
                for teacher, view, of_teacher in zip(self.teachers, views, terms, strict=True)
            }
            raw = by_name(compared, lambda comparison: comparison.terms.losses)
            losses = {
                "l_recon": recon,
                "l_distill": weighted_sum(raw, by_name(compared, lambda comparison: comparison.weights)),
            }
            scalars = self._changing(weights, lq.device) | {f"l_{name}": loss.detach() for name, loss in raw.items()}
            status = by_name(compared, lambda comparison: comparison.terms.diagnostics)
            scalars |= {f"status/{name}": value for name, value in status.items()}
            if self.monitor is not None and looks:
                scalars |= self._examine(self.monitor, losses["l_recon"], student, compared)
        return losses, scalars

    def _weights_at(self, iteration: int) -> dict[str, float]:
        return self.balance.at({term: weight_at(weight, iteration) for term, weight in self.weights.items()})

    def _wants_look(self, monitor: HealthMonitor, iteration: int) -> bool:
        return iteration % self.examine_every == 0 or not monitor.start

    def _is_due(self, monitor: HealthMonitor, iteration: int) -> bool:
        """Whether this batch is looked at: one per iteration, where a batch goes through in parts the first of them."""
        # without gradients, as in a validation, there are none to look at
        due = torch.is_grad_enabled() and self._wants_look(monitor, iteration) and iteration != self._examined
        self._examined = iteration if due else self._examined
        return due

    def _warn_once(self, line: str) -> None:
        if line not in self._warned:
            self._warned.add(line)
            self.warn(line)

    def _prefix(self, teacher: Teacher) -> str:
        return f"{teacher.label}/" if len(self.teachers) > 1 else ""

    def _reconstruct(self, output: Tensor, gt: Tensor) -> Tensor:
        with torch.autocast(output.device.type, enabled=False):
            return self.reconstruction(output, gt.flatten(0, 1))

    def _changing(self, weights: Mapping[str, float], device: torch.device) -> dict[str, Tensor]:
        """Those weights that are no fixed numbers, to be logged. A GPU fills them in; to copy them there would wait."""
        changing = [term for term, weight in self.weights.items() if isinstance(weight, Mapping)]
        return {f"weight/{term}": torch.full((), weights[term], device=device) for term in changing}

    def _balanced(
        self, weights: Mapping[str, float], iteration: int, recon: Tensor, terms: Sequence[Terms]
    ) -> Mapping[str, float]:
        """The weights, after those that follow gradients were measured, where it is time to."""
        due = self.balance.due(iteration, weights) if torch.is_grad_enabled() else []
        if not due:
            return weights
        shares = [teacher.share for teacher in self.teachers]
        losses = {
            term: torch.stack([share * of.losses[term] for share, of in zip(shares, terms, strict=True)]).sum()
            for term in due
        }
        self.balance.measure(recon, losses, self.student.parameters(), scale=self._scale)
        return self.balance.at(weights)

    @property
    def _scale(self) -> float:
        """What the loop multiplies losses by on their way back."""
        return 1.0 if self.scaler is None else float(self.scaler.get_scale())

    def _comparison(self, teacher: Teacher, view: ClipView, terms: Terms, weights: Mapping[str, float]) -> Comparison:
        return Comparison(
            teacher=view,
            terms=terms,
            weights={term: teacher.share * weight for term, weight in weights.items()},
            layers=tuple(tap.layer for tap in self.student_taps),
            learns_scale=bare(teacher.objective).learns_scale,
        )

    def _examine(
        self, monitor: HealthMonitor, recon: Tensor, student: ClipView, compared: Mapping[str, Comparison]
    ) -> dict[str, Tensor]:
        """What the monitor measures, to be logged with the losses; its warnings go where they are wanted."""
        measured, warnings = monitor.examine(recon, student, compared, self.student.parameters(), scale=self._scale)
        for warning in warnings:
            self.warn(warning)
        return {f"health/{name}": value for name, value in measured.items()}

    def _stored_view(self, features: tuple[Tensor, ...], gt: Tensor) -> ClipView | None:
        """What comes with a batch in place of the teacher's work. Raises CSDError where that does not suffice."""
        if not features:
            return None
        if len(self.teachers) > 1:
            raise CSDError("the batch has features of one teacher, and there are several; leave the stored ones out")
        teacher = self.teachers[0]
        scales = bare(teacher.objective).input_scales
        if scales != (1,):
            raise CSDError(f"stored features are of whole frames; the objective compares frames pooled by {scales} too")
        if len(teacher.taps) not in (0, len(features)):
            raise CSDError(f"the batch has {len(features)} stored features, {len(teacher.taps)} are compared")
        return ClipView(gt, {1: tuple(feature.float() for feature in features)})

    @torch.no_grad()
    def _teacher_view(self, teacher: Teacher, lq: Tensor, num_target: int) -> ClipView:
        """What a teacher makes of the batch, a few clips at a time, as nothing of it is kept but the result."""
        scales = bare(teacher.objective).input_scales
        views = [
            self._view(teacher.network, teacher.interface, teacher.taps, clips, num_target, scales)
            for clips in lq.split(-(-(TEACHER_TARGETS_ON_GPU if lq.is_cuda else TEACHER_TARGETS) // num_target))
        ]
        features = {
            scale: tuple(torch.cat(parts) for parts in zip(*(view.features[scale] for view in views), strict=True))
            for scale in views[0].features
        }
        return ClipView(torch.cat([view.output for view in views]), features)

    def _view(
        self,
        network: nn.Module,
        interface: Interface,
        taps: list[FeatureTap],
        clips: Tensor,
        num_target: int,
        scales: Iterable[int],
    ) -> ClipView:
        """Output and features of the middle L frames of (B, N, 3, H, W), at these input scales."""
        batch = len(clips)
        outputs, features = {}, {}
        for scale in scales:
            clip = clips if scale == 1 else F.avg_pool2d(clips.flatten(0, 1), scale).unflatten(0, clips.shape[:2])
            with listening(taps):
                frames = run_network(network, clip, num_target, interface, autocast=self.autocast)
                features[scale] = tuple(
                    interface.features(tap.take(), batch, num_target, tap.path, self._warn_once) for tap in taps
                )
            outputs[scale] = frames.unflatten(0, (batch, num_target))
        return ClipView(outputs[1], features)

    def _apply(self, *arguments: Any, **keywords: Any) -> Distiller:
        """What `.to()` and its like go through: the teachers come along, and objectives compute in float32."""
        for teacher in self.teachers:
            teacher.network._apply(*arguments, **keywords)
        super()._apply(*arguments, **keywords)
        self.objectives.float()
        return self


class Compared(NamedTuple):
    """A network, how it is called, and its layers that are compared; None for the one that its interface names."""

    network: nn.Module
    interface: Interface
    layers: list[str] | None


def adapted(
    objective: Objective, adapters: Sequence[str], *, student: Compared, teacher: Compared, clips: Clips
) -> AdaptedObjective:
    """The objective behind adapters, whose widths a dry run of both networks on such clips gives.

    The networks must not be compiled yet: torch cannot run those dry. Raises CSDError, see `dry_run`.
    """
    ours, theirs = (
        list(dry_run(network, interface, clips, layers, tapped=True).features.values())
        for network, interface, layers in (student, teacher)
    )
    return AdaptedObjective(objective, adapters=adapters, student=ours, teacher=theirs)


def bare(module: nn.Module) -> Any:
    """What a data parallel wrapper holds; other modules as they are."""
    return module.module if isinstance(module, DataParallel | DistributedDataParallel) else module


def _check(teachers: Sequence[Teacher], weights: Mapping[str, Weight]) -> None:
    total = sum(teacher.share for teacher in teachers)
    if teachers and not math.isclose(total, 1):
        raise CSDError(f"the teachers' shares add to {total:g}, expected 1: give each its `share`")
    if len({teacher.label for teacher in teachers}) < len(teachers):
        raise CSDError("two teachers have one label: give each its own, such as t and t2")
    for weight in weights.values():
        check_weight(weight)
    idle = [term for term, weight in weights.items() if is_ever_on(weight)] if not teachers else []
    if idle:
        raise CSDError(f"weights of {', '.join(idle)} are given, and no teacher: give one, or leave the weights out")
    for teacher in teachers:
        zeros = {term: torch.zeros(()) for term in bare(teacher.objective).terms}
        weighted_sum(zeros, {term: weight_at(weight, 1) for term, weight in weights.items()})


def _check_apart(student: nn.Module, teacher: Teacher) -> None:
    """Raise CSDError where weights that the student learns are the teacher's too, or in the same memory.

    What was frozen before it became the teacher's may be shared. The others take gradients again, for another try.
    """
    frozen = {id(parameter) for parameter in teacher.froze}
    theirs = {_memory(parameter) for parameter in teacher.network.parameters()}
    shared = {
        name: parameter
        for name, parameter in bare(student).named_parameters()
        if _memory(parameter) in theirs and (parameter.requires_grad or id(parameter) in frozen)
    }
    for parameter in shared.values():
        parameter.requires_grad_(True)
    if shared:
        raise CSDError(
            f"the teacher {teacher.label} has {len(shared)} weights of the student, such as {next(iter(shared))}, and "
            f"would freeze or follow them: give it layers of its own, as copy.deepcopy makes them"
        )


def _memory(parameter: nn.Parameter) -> tuple[torch.device, int]:
    """Where a parameter's numbers are stored; the parameter itself if it has no storage of its own, as lazy ones."""
    try:
        there = 0 if is_lazy(parameter) or parameter.is_meta else parameter.untyped_storage().data_ptr()
    except RuntimeError:  # classes of tensors that hold others, as quantized or distributed ones do
        there = 0
    return parameter.device, there or id(parameter)

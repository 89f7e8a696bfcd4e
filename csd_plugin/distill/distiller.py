"""Distillation for any training loop: a batch in, named losses out. The loop does backward pass, step and saving."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from csd_plugin.archs.bf16_conv3d import repair_bf16_conv3d
from csd_plugin.archs.interface import KINDS, Interface, interface_of, run_network
from csd_plugin.data.batches import as_clips, as_float, features_of
from csd_plugin.data.windows import target_slice
from csd_plugin.distill.adapters import AdaptedObjective
from csd_plugin.distill.balance import Balance
from csd_plugin.distill.dry_run import Clips, DryRunError, copied, dry_run
from csd_plugin.distill.health import HealthMonitor
from csd_plugin.distill.interface import Objective
from csd_plugin.distill.objective import Comparison, by_name, weighted_sum
from csd_plugin.distill.run_order import find_run_orders
from csd_plugin.distill.schedule import Weight, check_weight, is_ever_on, weight_at
from csd_plugin.distill.taps import FeatureTap, Runs, listening, quiet, tap_compared, uncompiled
from csd_plugin.distill.trial import Words, check_trial, is_ours
from csd_plugin.errors import CSDError
from csd_plugin.losses.several import total_of
from csd_plugin.types import ClipView, Terms
from csd_plugin.versions import keep_graphs

TEACHER_TARGETS = 2
"""Targets that the teacher computes together, at least one clip: more need memory, a single one is slow on a CPU."""
TEACHER_TARGETS_ON_GPU = 32
"""The same on a GPU, where each part costs its launches."""
_OVERSHOOT = 0.1
"""By how much frames may leave [0, 1], as some ways of resizing let them."""

_ASTRAY = 0.1
"""The mean distance from the truth, of [0, 1], beyond which a teacher's frames are looked at: rain is nearer."""

logger = logging.getLogger(__name__)


class Teacher:
    """A frozen network, and the objective that compares the student with it.

    Args:
        network: is put into eval mode; from here on its weights take no gradient.
        objective: an `Objective`, or a data parallel wrapper of one; its cells learn with the student.
        label: `t`, or, among several teachers, a different one for each; it begins the names of their terms.
        share: of the distillation loss; the shares of all teachers add to 1.
        interface: how to call the network; by default as it states itself.
        layers: the network's layers that the objective compares, `conv7` or `conv7:output`; by default its feature.

    Raises:
        CSDError: the network's interface is not stated, or it lacks one of the layers.
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
    """A student that learns from the truth and from frozen teachers; `forward` returns the losses of a batch.

    Its parameters are those of the student and of the objectives, for one optimizer, and so is its state dict
    (`student.`, `objectives.LABEL.`). Teachers and the reconstruction loss are in neither, but move with `.to()`. Call
    `after_step` after each optimizer step. A resumed loop must `restore` what `progress` gave when its state was saved.

    Args:
        student: may be wrapped for several processes, or compiled.
        teachers: if empty, only the reconstruction loss remains.
        reconstruction: maps frames and truth, (B*L, 3, H, W) in [0, 1] each, to a scalar, or to named scalars, which
            are added (`losses.several`).
        weights: of the objectives' terms: numbers, schedules, or balances, see `schedule` and `balance`. While all are
            0, no teacher is run.
        interface: how to call the student; by default as it states itself.
        layers: the student's layers that are compared, in the order of the teachers' layers; by default its feature.
        autocast: the networks' precision; None leaves it to an autocast around `forward`. Losses are float32.
        examine_every: iterations between two examinations of whether the terms teach, see `health`; 0 for none. The
            first batch is examined, too.
        scaler: the gradient scaler of the loop, if it trains in fp16.
        warn: called with each line about what the examinations find, and about calls that are only compared in part.

    Raises:
        CSDError: shares do not add to 1, terms and weights do not match, layers are missing, scales differ, or a
            teacher has weights that the student learns.
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
        self.student = student
        self.objectives = nn.ModuleDict({teacher.label: teacher.objective for teacher in teachers})
        # in lists, so that they are not submodules: their weights are not learned, and not saved
        self.teachers, self._reconstruction = list(teachers), [reconstruction]
        self.weights, self.balance = dict(weights), Balance(weights)
        self.interface = interface or interface_of(bare(student))
        for teacher in teachers:
            _check_scale(self.interface, teacher)
        self.student_taps: list[FeatureTap] = []
        if any(teacher.taps for teacher in teachers):
            self.student_taps = quiet(tap_compared(bare(student), self.interface, layers))
        self.autocast, self.examine_every, self.scaler, self.warn = autocast, examine_every, scaler, warn
        self.monitor = HealthMonitor() if teachers and examine_every else None
        self._examined = self._newest = self._stepped = 0  # iterations: last examined, begun, and ended by a step
        self._orders: dict[str, str] = {}
        self._warned: set[str] = set()
        self._prepare_process()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare_process()  # which may be another one: loops spawn processes, and send the model there

    def _prepare_process(self) -> None:
        if any(parameter.device.type == "cpu" for parameter in self.student.parameters()):
            repair_bf16_conv3d()  # here, too, as all of this may be compiled
        if self.monitor is not None or self.balance.shares:
            keep_graphs()  # both run backward through the student's graph before the loop does

    @property
    def reconstruction(self) -> nn.Module:
        """The loss between frames and truth."""
        return self._reconstruction[0]

    def progress(self) -> dict[str, dict[str, Any]]:
        """What a resumed loop needs besides the state dict, in numbers and text: for `restore`.

        Balances and examinations compare with the first batches, and the order of a layer's runs (`run_order`) was
        found with the weights of that time; other weights could give another.
        """
        state: dict[str, dict[str, Any]] = {"balance": dict(self.balance.measured), "orders": dict(self._orders)}
        return state if self.monitor is None else state | {"health": dict(self.monitor.start)}

    def restore(self, progress: Mapping[str, Any]) -> None:
        """Take over what `progress` gave; what is missing is measured anew.

        Raises ValueError, TypeError, LookupError or AttributeError for anything else, and changes nothing then.
        """
        balance, health = (
            {str(name): float(value) for name, value in progress.get(part, {}).items()}
            for part in ("balance", "health")
        )
        self._orders = {str(name): Runs[order].name for name, order in progress.get("orders", {}).items()}
        self._examined = self._newest = self._stepped = 0
        self.balance.measured = balance
        if self.monitor is not None:
            self.monitor.start = health
        for tap in (*self.student_taps, *(tap for teacher in self.teachers for tap in teacher.taps)):
            tap.runs = None

    @property
    def num_frame(self) -> int:
        """Frames of the longest window that any network needs for a target."""
        return max(self.interface.num_frame, *(teacher.interface.num_frame for teacher in self.teachers), 1)

    def forward(
        self, batch: Mapping[str, Any], iteration: int = 1, *, logged: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weighted losses of a batch, whose sum is to be minimised, and scalars to log with them.

        Without gradients (`torch.no_grad`), nothing is examined or balanced; a balance that was not measured yet counts
        as its share.

        Returns `l_recon` and `l_distill`, scalars; and raw terms (`l_spatial`), `status/..`, `weight/..`, `health/..`,
        and `recon/..` if the reconstruction loss has named parts.

        Args:
            batch: `lq` (B, N, 3, H, W) and `gt` (B, L, 3, H, W), its middle, larger by the student's scale, or anything
                that `as_clips` converts to these; in [0, 1], or uint8. With the teacher's features (`features_of`), it
                is not run, and `gt` stands in for its frames.
            iteration: counted from 1; weights and examinations depend on it.
            logged: False skips slow parts of `status/..`, which nobody reads.

        Raises:
            CSDError: the batch is too short or does not pair, the iteration is below 1, or a term teaches nothing.
        """
        self._begin(iteration)
        lq, gt = map(as_float, as_clips(batch, self.num_frame, "the batch", scale=self.interface.scale))
        rounded, gt = gt.dtype == torch.bfloat16, gt.float()  # like the networks' frames, whatever their precision
        weights = self._weights_at(iteration)
        if self.teachers and any(weights.values()):
            looks = self.monitor is not None and self._is_due(self.monitor, iteration)
            for module in self._parts():
                module.diagnoses = logged or looks
            if looks:
                self._warn_of_range(lq=lq, gt=gt)
                self._warn_of_rounding(rounded)
            stored = self._stored_view(features_of(batch), gt)
            return self._distill(lq, gt, weights, iteration, looks, stored)
        output = run_network(self.student, lq, gt.shape[1], self.interface, autocast=self.autocast)
        recon, parts = self._reconstruct(output, gt)
        return {"l_recon": recon}, self._changing(weights, lq.device) | parts

    def repeats(self, iteration: int, *, logged: bool) -> tuple[float, ...] | None:
        """What this iteration computes besides its batch: equal for iterations that do the same; None if it does more.

        Has no side effects.
        """
        weights = self._weights_at(iteration)
        if self.teachers and any(weights.values()):
            looks = self.monitor is not None and self._wants_look(self.monitor, iteration)
            if logged or looks or self.balance.wants(iteration, weights):
                return None
        return tuple(weights.values())

    def check(self, clips: tuple[int, ...], num_target: int, *, learns: bool = True) -> None:
        """Try the networks on clips of such a shape, without computing much; for use before a long run.

        Networks of this package, which process any size, and those that cannot be copied are left out.

        Args:
            clips: (B, N, 3, H, W) of the rainy frames.
            num_target: frames L of the truth.
            learns: False for frames of a test, which the student alone gets.

        Raises:
            CSDError: a network cannot process them; names what the sides have to be multiples of, if that is why.
        """
        parts, scales = [("student", bare(self.student), self.interface)], {1}
        if learns:
            scales |= {scale for teacher in self.teachers for scale in bare(teacher.objective).input_scales}
            parts += [(f"teacher {teacher.label}", teacher.network, teacher.interface) for teacher in self.teachers]
        for name, network, interface in parts:
            network = uncompiled(network)
            if is_ours(network):
                continue
            advice = "give frames of another size"
            padded = "give an interface with size_divisor {}, and frames are padded for it; or " + advice
            words = Words(f"the {name}", f"the interface of the {name}", "", advice, padded)
            with suppress(DryRunError):
                apart = copied(network).to("cpu")
                for scale in sorted(scales):
                    shape = (*clips[:3], *(side // scale for side in clips[3:]))
                    trains = learns and name == "student"
                    check_trial(apart, interface, shape, num_target, words, learns=trains)

    def after_step(self) -> None:
        """Update what follows the weights without being learned; call it after each optimizer step."""
        self._stepped = self._newest
        for teacher in self.teachers:
            bare(teacher.objective).after_step()

    @torch.no_grad()
    def not_finite(self, batch: Mapping[str, Any]) -> str:
        """What the first teacher that does so gives for a batch that is not finite, and why; empty where none does.

        Runs the teachers once more. Raises CSDError, as `forward`.
        """
        lq, gt = map(as_float, as_clips(batch, self.num_frame, "the batch", scale=self.interface.scale))
        stored = self._stored_view(features_of(batch), gt)
        for teacher in self.teachers:
            view = stored or self._teacher_view(teacher, lq, gt.shape[1])
            given = {"frames": view.output}
            for features in view.features.values():
                given |= {f"features at {tap.layer}": one for tap, one in zip(teacher.taps, features, strict=False)}
            broken = [name for name, value in given.items() if not torch.isfinite(value).all()]
            if broken:
                weights = teacher.network.state_dict()
                bad = [name for name, value in weights.items() if not torch.isfinite(value).all()]
                why = f", as its weight {bad[0]} is not: take another checkpoint" if bad else "; check the network"
                why += ", or compute in float32" if self.autocast and not bad else ""
                return f"the {broken[0]} of the teacher {teacher.label} are not finite{why}"
        return ""

    def _distill(
        self,
        lq: Tensor,
        gt: Tensor,
        weights: Mapping[str, float],
        iteration: int,
        looks: bool,
        stored: ClipView | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        # The teachers first, to use and free their memory before the student's graph takes its own.
        views = [stored or self._teacher_view(teacher, lq, gt.shape[1]) for teacher in self.teachers]
        if looks and not stored:
            self._warn_of_teachers(views, lq, gt)
        scales = dict.fromkeys(scale for teacher in self.teachers for scale in bare(teacher.objective).input_scales)
        student = self._view("student", self.student, self.interface, self.student_taps, lq, gt.shape[1], scales)
        if torch.is_grad_enabled():
            _check_learning(self.student_taps)
        with torch.autocast(lq.device.type, enabled=False):
            terms = [teacher.objective(student, view, gt) for teacher, view in zip(self.teachers, views, strict=True)]
            recon, parts = self._reconstruct(student.output.flatten(0, 1), gt)
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
            scalars = self._changing(weights, lq.device) | parts
            scalars |= {f"l_{name}": loss.detach() for name, loss in raw.items()}
            status = by_name(compared, lambda comparison: comparison.terms.diagnostics)
            scalars |= {f"status/{name}": value for name, value in status.items()}
            if self.monitor is not None and looks:
                scalars |= self._examine(self.monitor, losses["l_recon"], student, compared)
        return losses, scalars

    @torch.compiler.disable
    def _begin(self, iteration: int) -> None:
        """Look at the iteration's number, which schedules, balances and examinations follow without a word.

        Raises CSDError if it is below 1.
        """
        if iteration < 1:
            raise CSDError(f"the iteration is {iteration}: count from 1, as schedules and examinations do")
        if not torch.is_grad_enabled():  # a validation may give any
            return
        if iteration < self._newest or iteration == self._stepped:
            self._warn_once(
                f"iteration {iteration} comes after {self._newest} was done: give distiller(batch, iteration) the "
                f"number of the optimizer step, counted from 1 over all epochs, which schedules, balances and "
                f"examinations follow"
            )
        self._newest = iteration

    def _parts(self) -> list[Objective]:
        """The objectives, and those that are parts of others."""
        return [module for module in self.objectives.modules() if isinstance(module, Objective)]

    def _weights_at(self, iteration: int) -> dict[str, float]:
        return self.balance.at({term: weight_at(weight, iteration) for term, weight in self.weights.items()})

    def _wants_look(self, monitor: HealthMonitor, iteration: int) -> bool:
        return iteration % self.examine_every == 0 or not monitor.start

    def _is_due(self, monitor: HealthMonitor, iteration: int) -> bool:
        """Whether this batch is examined: once per iteration; if a batch goes through in parts, the first part."""
        # without gradients, as in a validation, there is nothing to examine
        due = torch.is_grad_enabled() and self._wants_look(monitor, iteration) and iteration != self._examined
        if due and self._examined and not self._stepped and any(part.follows_steps for part in self._parts()):
            self._warn_once(
                "after_step() was never called: call it on the Distiller after each optimizer step, as the cells of "
                "its objective are averaged or frozen there"
            )
        self._examined = iteration if due else self._examined
        return due

    def _warn_of_range(self, **frames: Tensor) -> None:
        """Frames of -1 to 1, or floats up to 255, would train as well, by a loss that is none."""
        for name, value in frames.items():
            if bool((value < -_OVERSHOOT).any() | (value > 1 + _OVERSHOOT).any()):
                self._warn_once(
                    f"the batch's {name} has values outside [0, 1], for which the losses are made: bring frames there, "
                    f"or give bytes"
                )

    def _warn_of_rounding(self, rounded: bool) -> None:
        """Some frameworks convert all that goes into a model, and the truth then has fewer levels than 8-bit frames."""
        if rounded:
            self._warn_once(
                "the batch's gt is in bfloat16, in which bright frames have 7 bits: keep it in float32, or give bytes "
                "(as_uint8: true in our data sets), which no framework converts"
            )

    def _warn_of_teachers(self, views: Sequence[ClipView], lq: Tensor, gt: Tensor) -> None:
        """A teacher that was made for frames of 0 to 255, or that has untrained weights, would be followed as well."""
        given = lq[:, target_slice(lq.shape[1], gt.shape[1])].flatten(0, 1).float()
        least = F.l1_loss(F.interpolate(given, gt.shape[3:]), gt.flatten(0, 1)).clamp(min=_ASTRAY)
        for teacher, view in zip(self.teachers, views, strict=True):
            if F.l1_loss(view.output, gt) > least:
                self._warn_once(
                    f"the frames of the teacher {teacher.label} are farther from the truth than those that it was "
                    f"given: check its weights, and that it takes and gives values from 0 to 1"
                )

    def _warn_once(self, line: str) -> None:
        if line not in self._warned:
            self._warned.add(line)
            self.warn(line)

    def _prefix(self, teacher: Teacher) -> str:
        return f"{teacher.label}/" if len(self.teachers) > 1 else ""

    def _reconstruct(self, output: Tensor, gt: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The reconstruction loss, and its named parts, to be logged."""
        with torch.autocast(output.device.type, enabled=False):
            recon, parts = total_of(self.reconstruction(output, gt.flatten(0, 1)))
        return recon, {f"recon/{name}": part for name, part in parts.items()}

    def _changing(self, weights: Mapping[str, float], device: torch.device) -> dict[str, Tensor]:
        """The weights that are not constant, to be logged. A GPU fills them in, as copying them there would wait."""
        changing = [term for term, weight in self.weights.items() if isinstance(weight, Mapping)]
        return {f"weight/{term}": torch.full((), weights[term], device=device) for term in changing}

    def _balanced(
        self, weights: Mapping[str, float], iteration: int, recon: Tensor, terms: Sequence[Terms]
    ) -> Mapping[str, float]:
        """The weights, after measuring those that follow gradients, if they are due."""
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
        """The factor by which the loop multiplies losses before the backward pass."""
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
        """The monitor's measurements, to be logged with the losses; passes on its warnings."""
        measured, warnings = monitor.examine(recon, student, compared, self.student.parameters(), scale=self._scale)
        for warning in warnings:
            self.warn(warning)
        return {f"health/{name}": value for name, value in measured.items()}

    def _stored_view(self, features: tuple[Tensor, ...], gt: Tensor) -> ClipView | None:
        """The view from features stored with a batch, in the teacher's place. Raises CSDError if they are too few."""
        if not features:
            return None
        if len(self.teachers) > 1:
            raise CSDError(
                "the batch has stored features of one teacher, but there are several; leave the stored ones out"
            )
        teacher = self.teachers[0]
        scales = bare(teacher.objective).input_scales
        if scales != (1,):
            raise CSDError(
                f"stored features are of unpooled frames, but the objective also compares frames pooled by {scales}"
            )
        if len(teacher.taps) not in (0, len(features)):
            raise CSDError(f"the batch has {len(features)} stored features, but {len(teacher.taps)} are compared")
        return ClipView(gt, {1: tuple(feature.float() for feature in features)})

    @torch.no_grad()
    def _teacher_view(self, teacher: Teacher, lq: Tensor, num_target: int) -> ClipView:
        """A teacher's view of the batch, computed a few clips at a time, as only the result is kept."""
        if teacher.network.training:
            teacher.network.eval()  # a model that also holds it as a part of its own was put into training mode
        scales = bare(teacher.objective).input_scales
        views = [
            self._view(teacher.label, teacher.network, teacher.interface, teacher.taps, clips, num_target, scales)
            for clips in lq.split(-(-(TEACHER_TARGETS_ON_GPU if lq.is_cuda else TEACHER_TARGETS) // num_target))
        ]
        features = {
            scale: tuple(torch.cat(parts) for parts in zip(*(view.features[scale] for view in views), strict=True))
            for scale in views[0].features
        }
        return ClipView(torch.cat([view.output for view in views]), features)

    def _view(
        self,
        name: str,
        network: nn.Module,
        interface: Interface,
        taps: list[FeatureTap],
        clips: Tensor,
        num_target: int,
        scales: Iterable[int],
    ) -> ClipView:
        """Output and features of the middle L frames of (B, N, 3, H, W), at these input scales.

        Args:
            name: of the network, among those of this distiller.
        """
        batch = len(clips)
        outputs, features = {}, {}
        if any(tap.runs is None for tap in taps):
            self._find_orders(name, network, interface, taps, num_target, (clips.shape[3], clips.shape[4]))
        for scale in scales:
            clip = clips if scale == 1 else F.avg_pool2d(clips.flatten(0, 1), scale).unflatten(0, clips.shape[:2])
            with listening(taps):
                frames = run_network(network, clip, num_target, interface, autocast=self.autocast)
                size = (clip.shape[3], clip.shape[4])
                features[scale] = tuple(
                    interface.features(tap.take(), batch, num_target, tap.path, self._warn_once, size=size)
                    for tap in taps
                )
            outputs[scale] = frames.unflatten(0, (batch, num_target))
        return ClipView(outputs[1], features)

    @torch.compiler.disable
    def _find_orders(
        self,
        name: str,
        network: nn.Module,
        interface: Interface,
        taps: list[FeatureTap],
        num_target: int,
        size: tuple[int, int],
    ) -> None:
        """Find in which order the tapped layers of a network run; before its first pass, which leaves a graph.

        What was found for as many frames before, also by the run that this one resumes, is kept.
        """
        seen = KINDS[interface.kind].num_seen(num_target, interface.num_frame)
        cls = type(uncompiled(bare(network))).__name__
        keys = [f"{name} ({cls}) {tap.layer}, {seen} frames" for tap in taps]
        if not self._orders.keys() >= set(keys):
            find_run_orders(bare(network), interface, taps, num_target, size)
            self._orders |= {key: tap.runs.name for key, tap in zip(keys, taps, strict=True) if tap.runs}
        for key, tap in zip(keys, taps, strict=True):
            tap.runs = Runs[self._orders[key]]

    def _apply(self, *arguments: Any, **keywords: Any) -> Distiller:
        """Used by `.to()` and similar methods: also moves the teachers, and keeps losses in float32."""
        for module in (self.reconstruction, *(teacher.network for teacher in self.teachers)):
            module._apply(*arguments, **keywords)
        super()._apply(*arguments, **keywords)
        self.reconstruction.float()
        self.objectives.float()
        return self


class Compared(NamedTuple):
    """A network, its interface, and its layers that are compared; None for the feature that the interface names."""

    network: nn.Module
    interface: Interface
    layers: list[str] | None


def adapted(
    objective: Objective, adapters: Sequence[str], *, student: Compared, teacher: Compared, clips: Clips
) -> AdaptedObjective:
    """The objective with adapters, for whose sizes both networks are dry-run on such clips.

    The networks must not be compiled yet, as torch cannot dry-run compiled ones. Raises CSDError, see `dry_run`.
    """
    ours, theirs = (
        list(dry_run(network, interface, clips, layers, tapped=True, may_compute=True).features.values())
        for network, interface, layers in (student, teacher)
    )
    return AdaptedObjective(objective, adapters=adapters, student=ours, teacher=theirs)


def bare(module: nn.Module) -> Any:
    """The module in a data parallel wrapper; other modules unchanged."""
    return module.module if isinstance(module, DataParallel | DistributedDataParallel) else module


def _check(teachers: Sequence[Teacher], weights: Mapping[str, Weight]) -> None:
    total = sum(teacher.share for teacher in teachers)
    if teachers and not math.isclose(total, 1):
        raise CSDError(f"the teachers' shares add to {total:g}, expected 1: change their `share`")
    if len({teacher.label for teacher in teachers}) < len(teachers):
        raise CSDError("two teachers have the same label: give each its own, such as t and t2")
    for weight in weights.values():
        check_weight(weight)
    idle = [term for term, weight in weights.items() if is_ever_on(weight)] if not teachers else []
    if idle:
        raise CSDError(f"weights of {', '.join(idle)} are given, but no teacher: give one, or leave the weights out")
    for teacher in teachers:
        zeros = {term: torch.zeros(()) for term in bare(teacher.objective).terms}
        weighted_sum(zeros, {term: weight_at(weight, 1) for term, weight in weights.items()})


def _check_learning(taps: Sequence[FeatureTap]) -> None:
    """Raise CSDError for a layer of the student that keeps no graph, so that nothing compared there teaches it."""
    for tap in taps:
        if not tap.learns:
            raise CSDError(
                f"feature tap {tap.path!r}: the student runs this layer without gradients, as torch.utils.checkpoint "
                f"with use_reentrant=True does, so the comparison would not teach it; give use_reentrant=False, or tap "
                f"a layer outside of that part"
            )


def _check_scale(student: Interface, teacher: Teacher) -> None:
    if teacher.interface.scale != student.scale:
        raise CSDError(
            f"the scale of the teacher {teacher.label} is {teacher.interface.scale}, and the student's is "
            f"{student.scale}: give both interfaces the same scale"
        )


def _check_apart(student: nn.Module, teacher: Teacher) -> None:
    """Raise CSDError if weights that the student learns also belong to the teacher, or share memory with its weights.

    Weights that were frozen before they became the teacher's may be shared. After the error the others take gradients
    again, for another attempt.
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
            f"the teacher {teacher.label} shares {len(shared)} weights with the student, such as {next(iter(shared))}, "
            f"which it would freeze or follow: give it its own layers, for example by copy.deepcopy"
        )


def _memory(parameter: nn.Parameter) -> tuple[torch.device, int]:
    """Where a parameter's values are stored; the parameter itself if it has no storage, like lazy ones."""
    try:
        there = 0 if is_lazy(parameter) or parameter.is_meta else parameter.untyped_storage().data_ptr()
    except RuntimeError:  # tensor classes that wrap others, such as quantized or distributed ones
        there = 0
    return parameter.device, there or id(parameter)

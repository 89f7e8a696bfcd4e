"""Stage 2: a student trained with the reconstruction loss and a distillation objective against frozen teachers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.utils import get_root_logger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from csd_plugin.archs.checkpoint import load_weights, read_state_dict
from csd_plugin.archs.interface import Interface, interface_of
from csd_plugin.devices import forked_random
from csd_plugin.distill.adapters import AdaptedObjective
from csd_plugin.distill.fidelity import filled, mismatches, report
from csd_plugin.distill.health import HealthMonitor
from csd_plugin.distill.objective import Comparison, Objective, build_objective, by_name, weighted_sum
from csd_plugin.distill.settings import read_distillation
from csd_plugin.distill.taps import FeatureTap, tap_compared
from csd_plugin.models.dry_run import clips_of, dry_run
from csd_plugin.models.video_derain_model import VideoDerainModel, save_atomically
from csd_plugin.types import ClipView

TEACHER_TARGETS = 2
"""Targets that the teacher computes at once, or those of one clip: more need memory, one alone is slow on a CPU."""


@dataclass
class Teacher:
    """One frozen network, and what the student is compared with it by.

    share: of the distillation loss; those of all teachers add to 1.
    prefix: of its terms' names, `t2/` among several teachers. entry: of its objective in `objective_N.pth`.
    objective: with cells of its own; wrapped for several processes where it learns.
    taps: of `network`, none where the objective compares no features.
    """

    share: float
    prefix: str
    entry: str
    network: nn.Module
    interface: Interface
    objective: nn.Module
    taps: list[FeatureTap]


class DistillModel(VideoDerainModel):
    """`network_g` learns from `network_t`, `network_t2` .. by the objective of `train.distill_opt`, one step per batch.

    `train.distill_opt` holds the objective's `type` and options, the `weights` of its terms, numbers or schedules, and
    of `teachers`, and the layers that are compared (`taps`, for `student` and `teacher`; by default the one feature
    that each network names; `adapters` bring the student's to the teacher's width and size).
    With every weight at zero neither teachers nor objectives are built, and training is stage 1's bit for bit; in
    iterations where schedules have all weights at zero the teachers are not run. Teachers are frozen, and outside
    optimizer, EMA and checkpoints; the objectives' own weights (CSD's cells) learn with the student and are saved
    apart, as `models/objective_N.pth`. With `train.health`, the default, the first iteration and all that are logged
    tell whether the terms teach, see `distill.health`.
    """

    def init_training_settings(self) -> None:
        for line in report(self.opt):
            get_root_logger().info(line)
        for line in mismatches(self.opt):
            get_root_logger().warning(line)
        self.opt["train"] = filled(self.opt)["train"]
        self.distillation = read_distillation(self.opt)
        self.scheduled = [term for term, weight in self.distillation.weights.items() if isinstance(weight, Mapping)]
        self.teachers: list[Teacher] = []
        self.student_taps: list[FeatureTap] = []
        self.monitor: HealthMonitor | None = None
        if self.distillation.teaches:
            # Stage 1 draws none of these numbers: without the fork, its data and ours would differ.
            with forked_random():
                self.teachers = [self._build_teacher(*item) for item in self.distillation.teachers.items()]
            if self.teachers[0].taps:
                student = self.get_bare_model(self.net_g)
                self.student_taps = tap_compared(student, self.interface_of(student), self.distillation.student_layers)
            if self.opt["train"].get("health", True):
                self.monitor = HealthMonitor()
        super().init_training_settings()

    def _build_teacher(self, label: str, share: float) -> Teacher:
        path, layers = self.opt["path"], self.distillation.teacher_layers[label]
        network = build_network(self.opt[f"network_{label}"]).to(self.device)
        self.load_network(
            network,
            path[f"pretrain_network_{label}"],
            path.get(f"strict_load_{label}", True),
            path.get(f"param_key_{label}", "params_ema"),
        )
        network.eval().requires_grad_(False)
        interface = interface_of(network, self.opt.get(f"interface_{label}"))
        objective = build_objective(self.distillation.objective)
        if self.distillation.adapters:
            objective = self._adapted(objective, network, interface, layers)
        taps = tap_compared(network, interface, layers) if objective.needs_features else []
        self.compile_for_training(network)  # what is compiled cannot be dry-run: torch crashes
        return Teacher(
            share=share,
            prefix=f"{label}/" if len(self.distillation.teachers) > 1 else "",
            entry="params" if label == "t" else f"params_{label}",
            network=network,
            interface=interface,
            objective=self._place_objective(objective),
            taps=taps,
        )

    def _adapted(
        self, objective: Objective, teacher: nn.Module, interface: Interface, layers: list[str] | None
    ) -> Objective:
        """The objective behind adapters, whose widths a dry run of both networks tells."""
        student = self.get_bare_model(self.net_g)
        runs = (
            dry_run(network, its_interface, clips_of(self.opt), its_layers, tapped=True)
            for network, its_interface, its_layers in (
                (student, self.interface_of(student), self.distillation.student_layers),
                (teacher, interface, layers),
            )
        )
        ours, theirs = (list(run.features.values()) for run in runs)
        return AdaptedObjective(objective, adapters=self.distillation.adapters, student=ours, teacher=theirs)

    def _place_objective(self, objective: nn.Module) -> nn.Module:
        """On the device; wrapped for several processes where it learns, and of equal weights in all where not."""
        if any(p.requires_grad for p in objective.parameters()):
            return self.model_to_device(objective)
        objective.to(self.device)
        if self.opt["dist"]:
            for value in objective.state_dict().values():
                torch.distributed.broadcast(value, 0)
        return objective

    def parameters_to_optimize(self) -> list[nn.Parameter]:
        cells = [p for teacher in self.teachers for p in teacher.objective.parameters() if p.requires_grad]
        return super().parameters_to_optimize() + cells

    def synchronised_networks(self) -> list[DistributedDataParallel]:
        objectives = (teacher.objective for teacher in self.teachers)
        return super().synchronised_networks() + [o for o in objectives if isinstance(o, DistributedDataParallel)]

    @property
    def networks(self) -> list[nn.Module]:
        return [*super().networks, *(teacher.network for teacher in self.teachers)]

    @property
    def num_frame(self) -> int:
        return max(super().num_frame, *(teacher.interface.num_frame for teacher in self.teachers), 1)

    # ------------------------------------------------------------------ training step
    def compute_losses(self, current_iter: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        weights = self.distillation.weights_at(current_iter)
        scalars = {f"weight/{term}": torch.tensor(weights[term], device=self.device) for term in self.scheduled}
        if not (self.teachers and any(weights.values())):
            losses, others = super().compute_losses(current_iter)
            for tap in self.student_taps:
                tap.forget()
            return losses, scalars | others
        # The teachers first: their layers need their memory before the student's graph takes its own.
        views = [self._teacher_view(teacher) for teacher in self.teachers]
        student = self._view(self.net_g, self.interface_of(self.net_g), self.student_taps, self.lq)
        compared = {
            teacher.prefix: self._compare(student, teacher, view, weights)
            for teacher, view in zip(self.teachers, views, strict=True)
        }
        raw = by_name(compared, lambda comparison: comparison.terms.losses)
        losses = {
            "l_recon": self.cri_pix(student.output.flatten(0, 1), self.gt.flatten(0, 1)),
            "l_distill": weighted_sum(raw, by_name(compared, lambda comparison: comparison.weights)),
        }
        scalars |= {f"l_{name}": loss.detach() for name, loss in raw.items()}
        status = by_name(compared, lambda comparison: comparison.terms.diagnostics)
        scalars |= {f"status/{name}": value for name, value in status.items()}
        if self.monitor is not None and self.part == 0:
            due = current_iter % self.opt["logger"]["print_freq"] == 0
            if due or not self.monitor.start:
                scalars |= self._examine(losses["l_recon"], student, compared)
        return losses, scalars

    def _compare(self, student: ClipView, teacher: Teacher, view: ClipView, weights: Mapping[str, float]) -> Comparison:
        return Comparison(
            teacher=view,
            terms=teacher.objective(student, view, self.gt),
            weights={term: teacher.share * weight for term, weight in weights.items()},
            layers=tuple(tap.layer for tap in self.student_taps),
            learns_scale=self.get_bare_model(teacher.objective).learns_scale,
        )

    def _examine(self, recon: Tensor, student: ClipView, compared: Mapping[str, Comparison]) -> dict[str, Tensor]:
        """What the monitor measures, to be logged beside the losses; its warnings go into the log."""
        assert self.monitor is not None
        scale = float(self.scaler.get_scale())
        measured, warnings = self.monitor.examine(recon, student, compared, self.net_g.parameters(), scale=scale)
        for warning in warnings:
            get_root_logger().warning(warning)
        return {f"health/{name}": value for name, value in measured.items()}

    @torch.no_grad()
    def _teacher_view(self, teacher: Teacher) -> ClipView:
        """What a teacher makes of the batch, a few clips at a time, as nothing of it is kept but the result."""
        clips = self.lq.split(-(-TEACHER_TARGETS // self.gt.shape[1]))
        views = [self._view(teacher.network, teacher.interface, teacher.taps, part) for part in clips]
        features = {
            scale: tuple(torch.cat(parts) for parts in zip(*(view.features[scale] for view in views), strict=True))
            for scale in views[0].features
        }
        return ClipView(torch.cat([view.output for view in views]), features)

    def _view(self, network: nn.Module, interface: Interface, taps: list[FeatureTap], clips: Tensor) -> ClipView:
        """Output and features of all targets of (B, N, 3, H, W), at every input scale that the objectives ask for."""
        batch, num_target = len(clips), self.gt.shape[1]
        outputs, features = {}, {}
        for scale in self.get_bare_model(self.teachers[0].objective).input_scales:
            clip = clips if scale == 1 else F.avg_pool2d(clips.flatten(0, 1), scale).unflatten(0, clips.shape[:2])
            outputs[scale] = self.run_network(network, clip, interface).unflatten(0, (batch, num_target))
            features[scale] = tuple(interface.features(tap.take(), batch, num_target, tap.path) for tap in taps)
        return ClipView(outputs[1], features)

    def after_step(self) -> None:
        for teacher in self.teachers:
            self.get_bare_model(teacher.objective).after_step()

    # ------------------------------------------------------------------ files
    def save(self, epoch: int, current_iter: int) -> None:
        states = self._objective_states()
        if states and self.opt["rank"] == 0:
            label = "latest" if current_iter == -1 else current_iter
            save_atomically(states, self._objective_path(label))
        super().save(epoch, current_iter)

    def training_state(self, epoch: int, current_iter: int) -> dict[str, Any]:
        state = super().training_state(epoch, current_iter)
        return state if self.monitor is None else state | {"health": self.monitor.start}

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        super().resume_training(resume_state)
        if self.monitor is not None:
            self.monitor.start = dict(resume_state.get("health", {}))
        if self._objective_states():
            path = self._objective_path(resume_state["iter"])
            for teacher in self.teachers:
                state = read_state_dict(path, teacher.entry)
                load_weights(self.get_bare_model(teacher.objective), state, source=str(path))
            get_root_logger().info(f"Resumed the objective from {path}.")

    def _objective_states(self) -> dict[str, dict[str, Tensor]]:
        """The objectives' weights, by entry of their file; none without distillation, or for a method without any."""
        states = {}
        for teacher in self.teachers:
            state = self.get_bare_model(teacher.objective).state_dict()
            if state:
                states[teacher.entry] = {name: value.cpu() for name, value in state.items()}
        return states

    def _objective_path(self, label: int | str) -> Path:
        return Path(self.opt["path"]["models"]) / f"objective_{label}.pth"

"""Stage 2: a student trained with the reconstruction loss and a distillation objective against a frozen teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.utils import get_root_logger
from torch import Tensor, nn
from torch.nn import functional as F

from csd_plugin.archs.checkpoint import load_weights, read_state_dict
from csd_plugin.distill.adapters import AdaptedObjective
from csd_plugin.distill.objective import Objective, build_objective, weighted_sum
from csd_plugin.distill.taps import FeatureTap
from csd_plugin.models.dry_run import clips_of, dry_run
from csd_plugin.models.layouts import Layout, layout_of
from csd_plugin.models.video_derain_model import VideoDerainModel, save_atomically
from csd_plugin.types import ClipView

TEACHER_TARGETS = 2
"""Targets that the teacher computes at once, or those of one clip: more need memory, one alone is slow on a CPU."""


class DistillModel(VideoDerainModel):
    """`network_g` learns from `network_t` by the objective of `train.distill_opt`, one step per batch.

    `train.distill_opt` holds the objective's `type` and options, the `weights` of its terms, and the layers that
    it compares (`taps`, lists for `student` and `teacher`; by default the one feature that each network names;
    `adapters` bring the student's to the teacher's width and size).
    With every weight at zero neither teacher nor objective is built, and training is stage 1's bit for bit. The
    teacher is frozen, and outside optimizer, EMA and checkpoints; the objective's own weights (CSD's cells) learn
    with the student and are saved apart, as `models/objective_N.pth`.
    """

    def init_training_settings(self) -> None:
        objective_opt, self.term_weights, layers = split_options(self.opt["train"]["distill_opt"])
        self.distills = any(self.term_weights.values())
        if self.distills:
            # Stage 1 draws none of these numbers: without the fork, its data and ours would differ.
            with torch.random.fork_rng():
                self.net_t = self._build_teacher()
                objective = build_objective(objective_opt)
                if layers.get("adapters"):
                    objective = self._adapted(objective, layers)
                self.objective = self._place_objective(objective)
            self.student_taps, self.teacher_taps = (
                self.layout_of(network).tap(self.get_bare_model(network), layers.get(name))
                if objective.needs_features
                else []
                for name, network in (("student", self.net_g), ("teacher", self.net_t))
            )
        super().init_training_settings()

    def _build_teacher(self) -> nn.Module:
        path = self.opt["path"]
        teacher = build_network(self.opt["network_t"]).to(self.device)
        self.load_network(
            teacher, path["pretrain_network_t"], path.get("strict_load_t", True), path.get("param_key_t", "params_ema")
        )
        return teacher.eval().requires_grad_(False)

    def _adapted(self, objective: Objective, layers: dict[str, list[str]]) -> Objective:
        """The objective behind adapters, whose widths a dry run of both networks tells."""
        clips = clips_of(self.opt)
        shapes = {
            name: list(
                dry_run(
                    self.get_bare_model(network), self.layout_of(network), clips, layers.get(name), tapped=True
                ).features.values()
            )
            for name, network in (("student", self.net_g), ("teacher", self.net_t))
        }
        return AdaptedObjective(objective, adapters=layers["adapters"], **shapes)

    def _place_objective(self, objective: nn.Module) -> nn.Module:
        """On the device; wrapped for several processes where it learns, and of equal weights in all where not."""
        if any(p.requires_grad for p in objective.parameters()):
            return self.model_to_device(objective)
        objective.to(self.device)
        if self.opt["dist"]:
            for value in objective.state_dict().values():
                torch.distributed.broadcast(value, 0)
        return objective

    def layout_of(self, network: nn.Module) -> Layout:
        teacher = self.distills and network is self.net_t
        return layout_of(network, self.opt.get("interface_t")) if teacher else super().layout_of(network)

    def parameters_to_optimize(self) -> list[nn.Parameter]:
        cells = [p for p in self.objective.parameters() if p.requires_grad] if self.distills else []
        return super().parameters_to_optimize() + cells

    def compute_losses(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if not self.distills:
            return super().compute_losses()
        # The teacher first: its layers need their memory before the student's graph takes its own.
        teacher = self._teacher_view()
        student = self._view(self.net_g, self.student_taps, self.lq)
        terms = self.objective(student, teacher, self.gt)
        losses = {
            "l_recon": self.cri_pix(student.output.flatten(0, 1), self.gt.flatten(0, 1)),
            "l_distill": weighted_sum(terms.losses, self.term_weights),
        }
        raw = {f"l_{name}": value.detach() for name, value in terms.losses.items()}
        return losses, raw | {f"status/{name}": value for name, value in terms.diagnostics.items()}

    @torch.no_grad()
    def _teacher_view(self) -> ClipView:
        """What the teacher makes of the batch, a few clips at a time, as nothing of it is kept but the result."""
        clips = self.lq.split(-(-TEACHER_TARGETS // self.gt.shape[1]))
        views = [self._view(self.net_t, self.teacher_taps, part) for part in clips]
        features = {
            scale: tuple(torch.cat(parts) for parts in zip(*(view.features[scale] for view in views), strict=True))
            for scale in views[0].features
        }
        return ClipView(torch.cat([view.output for view in views]), features)

    def _view(self, network: nn.Module, taps: list[FeatureTap], clips: Tensor) -> ClipView:
        """Output and features of all targets of (B, N, 3, H, W), at every input scale that the objective asks for."""
        batch, num_target = len(clips), self.gt.shape[1]
        layout = self.layout_of(network)
        outputs, features = {}, {}
        for scale in self.get_bare_model(self.objective).input_scales:
            clip = clips if scale == 1 else F.avg_pool2d(clips.flatten(0, 1), scale).unflatten(0, clips.shape[:2])
            outputs[scale] = self.run_network(network, clip).unflatten(0, (batch, num_target))
            features[scale] = tuple(layout.features(tap.take(), batch, num_target, tap.path) for tap in taps)
        return ClipView(outputs[1], features)

    def optimize_parameters(self, current_iter: int) -> None:
        super().optimize_parameters(current_iter)
        if self.distills:
            self.get_bare_model(self.objective).after_step()

    def save(self, epoch: int, current_iter: int) -> None:
        state = self._objective_state()
        if state and self.opt["rank"] == 0:
            label = "latest" if current_iter == -1 else current_iter
            save_atomically({"params": state}, self._objective_path(label))
        super().save(epoch, current_iter)

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        super().resume_training(resume_state)
        if self._objective_state():
            path = self._objective_path(resume_state["iter"])
            load_weights(self.get_bare_model(self.objective), read_state_dict(path), source=str(path))
            get_root_logger().info(f"Resumed the objective from {path}.")

    def _objective_state(self) -> dict[str, Tensor]:
        """The objective's weights; none without distillation, or for a method that has none."""
        state = self.get_bare_model(self.objective).state_dict() if self.distills else {}
        return {name: value.cpu() for name, value in state.items()}

    def _objective_path(self, label: int | str) -> Path:
        return Path(self.opt["path"]["models"]) / f"objective_{label}.pth"


def split_options(distill_opt: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float], dict[str, list[str]]]:
    """`train.distill_opt` -> what the objective takes, the weights of its terms, and the layers that are tapped."""
    objective = dict(distill_opt)
    weights, taps = objective.pop("weights"), objective.pop("taps", None)
    return objective, weights, taps or {}

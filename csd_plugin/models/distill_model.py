"""Stage 2: a student trained with the reconstruction loss and a distillation objective against frozen teachers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import get_root_logger
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from csd_plugin.archs.checkpoint import entry_in, load_plain, load_weights
from csd_plugin.archs.interface import Interface, declared_interface, interface_of
from csd_plugin.devices import forked_random
from csd_plugin.distill.distiller import Compared, Distiller, Teacher, adapted
from csd_plugin.distill.dry_run import clips_of
from csd_plugin.distill.fidelity import filled, mismatches, report
from csd_plugin.distill.objective import build_objective
from csd_plugin.distill.settings import read_distillation
from csd_plugin.errors import CSDError
from csd_plugin.models.building import toolbox_network
from csd_plugin.models.checkpoints import save_atomically
from csd_plugin.models.repeating import carry_warnings
from csd_plugin.models.resuming import weights_digest, without_weights
from csd_plugin.models.video_derain_model import VideoDerainModel
from csd_plugin.resume_states import networks_with


class DistillModel(VideoDerainModel):
    """`network_g` learns from `network_t`, `network_t2` .. with the objective of `train.distill_opt`, a step per batch.

    `train.distill_opt` holds the objective's `type` and options, the `weights` of its terms (numbers or schedules) and
    of `teachers`, and the compared layers (`taps`, for `student` and `teacher`; by default the feature that each
    network names; `adapters` bring the student's features to the teacher's channels and size). With every weight at
    zero, neither teachers nor objectives are built, and training is bit for bit that of stage 1; in iterations in which
    schedules set all weights to zero, the teachers are not run. Teachers are frozen, and not part of optimizer, EMA and
    checkpoints; the objectives' own weights (CSD's cells) learn with the student and are saved separately, as
    `models/objective_N.pth`. With `train.health`, the default, the first iteration and all logged ones show whether the
    terms teach, see `distill.health`.
    """

    def init_training_settings(self) -> None:
        for line in report(self.opt):
            get_root_logger().info(line)
        for line in mismatches(self.opt):
            get_root_logger().warning(line)
        self.opt["train"] = filled(self.opt)["train"]
        self.distillation = read_distillation(self.opt)
        self.teachers: list[Teacher] = []
        if self.distillation.teaches:
            # Stage 1 does not draw these random numbers: without the fork, its data and ours would differ.
            with forked_random():
                self.teachers = [self._build_teacher(*item) for item in self.distillation.teachers.items()]
        self._taught_by = {teacher.label: weights_digest(teacher.network.state_dict()) for teacher in self.teachers}
        super().init_training_settings()

    def _build_teacher(self, label: str, share: float) -> Teacher:
        path, layers = self.opt["path"], self.distillation.teacher_layers[label]
        network = toolbox_network(self.opt[f"network_{label}"]).to(self.device)
        self.load_network(
            network,
            path[f"pretrain_network_{label}"],
            path.get(f"strict_load_{label}", True),
            path.get(f"param_key_{label}", "params_ema"),
        )
        self.lay_out(network.eval().requires_grad_(False))
        interface = interface_of(network, declared_interface(self.opt, f"network_{label}"))
        objective = build_objective(self.distillation.objective)
        if self.distillation.adapters:
            bare, layers_g = self.get_bare_model(self.net_g), self.distillation.student_layers
            objective = adapted(
                objective,
                self.distillation.adapters,
                student=Compared(bare, self.interface_of(bare), layers_g),
                teacher=Compared(network, interface, layers),
                clips=clips_of(self.opt),
            )
        for line in carry_warnings(f"network_{label}", network, interface, clips_of(self.opt).size):
            get_root_logger().warning(line)
        placed = self._place_objective(objective)
        teacher = Teacher(network, placed, label=label, share=share, interface=interface, layers=layers)
        self.compile_for_training(network)  # last, as torch crashes in a dry run of a compiled network
        return teacher

    def _place_objective(self, objective: nn.Module) -> nn.Module:
        """Move it to the device; for several processes, wrap it if it learns, else give all the same weights."""
        if any(p.requires_grad for p in objective.parameters()):
            # with one target there is no previous frame, so the weights for its state have no gradient
            return self.model_to_device(objective, in_parts=clips_of(self.opt).num_target == 1)
        objective.to(self.device)
        if self.opt["dist"]:
            for value in objective.state_dict().values():
                torch.distributed.broadcast(value, 0)
        return objective

    def setup_optimizers(self) -> None:
        """Build the distiller first, as its cells learn, too; the toolbox has built the loss by now."""
        self.distiller = Distiller(
            self.net_g,
            self.teachers,
            self.reconstruction,
            weights=self.distillation.weights,
            interface=self.interface_of(self.net_g),
            layers=self.distillation.student_layers,
            autocast=self.autocast_dtype,
            examine_every=self.opt["logger"]["print_freq"] if self.opt["train"].get("health", True) else 0,
            scaler=self.scaler,
            warn=get_root_logger().warning,
        )
        super().setup_optimizers()

    def parameters_to_optimize(self) -> list[nn.Parameter]:
        return super().parameters_to_optimize() + [p for p in self.distiller.objectives.parameters() if p.requires_grad]

    def synchronised_networks(self) -> list[DistributedDataParallel]:
        objectives = (teacher.objective for teacher in self.teachers)
        return super().synchronised_networks() + [o for o in objectives if isinstance(o, DistributedDataParallel)]

    @property
    def called(self) -> dict[str, tuple[nn.Module, Interface]]:
        teachers = {f"network_{of.label}": (of.network, of.interface) for of in self.teachers}
        return super().called | teachers

    @property
    def num_frame(self) -> int:
        return self.distiller.num_frame

    # ------------------------------------------------------------------ training step
    def compute_losses(self, current_iter: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        logged = current_iter % self.opt["logger"]["print_freq"] == 0
        return self.distiller({"lq": self.lq, "gt": self.gt, **self.features}, current_iter, logged=logged)

    def repeats(self, current_iter: int) -> Hashable:
        if type(self).compute_losses is not DistillModel.compute_losses:
            return None
        return self.distiller.repeats(current_iter, logged=current_iter % self.opt["logger"]["print_freq"] == 0)

    def after_step(self) -> None:
        self.distiller.after_step()

    def other_cause(self) -> str:
        return self.distiller.not_finite({"lq": self.lq, "gt": self.gt, **self.features})

    # ------------------------------------------------------------------ files
    def save_files(self, epoch: int, current_iter: int) -> None:
        states = self._objective_states()
        if states and self.opt["rank"] == 0:
            label = "latest" if current_iter == -1 else current_iter
            save_atomically(states, Path(self.opt["path"]["models"]) / f"objective_{label}.pth")
        super().save_files(epoch, current_iter)

    def training_state(self, epoch: int, current_iter: int) -> dict[str, Any]:
        return super().training_state(epoch, current_iter) | self.distiller.progress()

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        paths = self.opt["path"]
        folder = networks_with(Path(paths["resume_state"]), Path(paths["models"]))
        path = folder / f"objective_{resume_state['iter']}.pth"
        if found := path.is_file():
            try:
                self._resume_objectives(path)
            except CSDError as error:
                changes = self.changed_since(resume_state)
                if not changes:
                    raise
                raise CSDError(
                    f"{path} is of another objective: {changes}give the options with which it was made, or another name"
                ) from error
        # last, as lazy modules get the sizes of their weights from the file
        super().resume_training(self._of_todays_weights(resume_state))
        if not found and self._objective_states():
            raise CSDError(f"{path}, which the run has saved with its state, does not exist; use another state")

    def _resume_objectives(self, path: Path) -> None:
        content, learn = load_plain(path, "checkpoint"), False
        for teacher in self.teachers:
            objective = self.get_bare_model(teacher.objective)
            if objective.state_dict():
                load_weights(objective, entry_in(content, str(path), _entry(teacher)), source=str(path))
                learn = True
        if learn:
            get_root_logger().info(f"Resumed the objective from {path}.")

    def _of_todays_weights(self, state: dict[str, Any]) -> dict[str, Any]:
        """Convert a state from before 26 November 2026, in which weights without use learned, too: without these."""
        objectives = [self.get_bare_model(teacher.objective) for teacher in self.teachers]
        idle = {id(p) for objective in objectives for p in objective.weights_without_use()}
        weights = [p for objective in objectives for p in objective.parameters() if p.requires_grad or id(p) in idle]
        earlier = [*super().parameters_to_optimize(), *weights]
        places = [place for place, p in enumerate(earlier) if id(p) in idle]
        return without_weights(state, places, len(earlier)) if places else state

    def _resume_rest(self, resume_state: Mapping[str, Any]) -> None:
        super()._resume_rest(resume_state)
        self.distiller.restore(resume_state)

    def _objective_states(self) -> dict[str, dict[str, Tensor]]:
        """The objectives' weights, by entry of their file; empty without distillation, or if a method has none.

        Lazy modules that have not seen a batch are left out.
        """
        states = {}
        for teacher in self.teachers:
            state = self.get_bare_model(teacher.objective).state_dict()
            state = {name: value.cpu().contiguous() for name, value in state.items() if not is_lazy(value)}
            if state:
                states[_entry(teacher)] = state
        return states


def _entry(teacher: Teacher) -> str:
    """The entry of `objective_N.pth` with the weights of the teacher's objective."""
    return "params" if teacher.label == "t" else f"params_{teacher.label}"

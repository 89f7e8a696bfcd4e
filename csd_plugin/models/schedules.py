"""A run's optimizer and learning rate: any optimizer of torch.optim, and schedules by iteration or by the clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from basicsr.models import lr_scheduler
from basicsr.models.video_base_model import VideoBaseModel
from basicsr.utils import get_root_logger
from torch import nn

from csd_plugin import compat
from csd_plugin.errors import CSDError
from csd_plugin.models.clock import Clock
from csd_plugin.models.layers import Layers, optimizer_groups

_WHOLE = 0.95
"""The share of a time that counts as all of it."""


class MultiStepRestartLR(lr_scheduler.MultiStepRestartLR):
    """The toolbox's schedule, with a rate that depends only on the iteration.

    The toolbox multiplies the current rate, which after a warm-up is that of the warm-up's last step.
    """

    def get_lr(self) -> list[float]:
        """The rate of each group: its initial rate, after the latest restart and the milestones passed since."""
        begun = max((restart for restart in self.restarts if restart <= self.last_epoch), default=None)
        factor = 1.0 if begun is None else self.restart_weights[self.restarts.index(begun)]
        rates = [group["initial_lr"] * factor for group in self.optimizer.param_groups]
        for milestone in sorted(self.milestones):
            if (-1 if begun is None else begun) < milestone <= self.last_epoch:
                rates = [rate * self.gamma ** self.milestones[milestone] for rate in rates]
        return rates


SCHEDULERS: dict[str, Any] = {
    "MultiStepLR": MultiStepRestartLR,
    "MultiStepRestartLR": MultiStepRestartLR,
    "CosineAnnealingRestartLR": lr_scheduler.CosineAnnealingRestartLR,
}
"""Schedulers by the toolbox's names. Their rates depend only on the iteration."""


class ScheduledModel(VideoBaseModel):
    """The toolbox's model with one optimizer, `optimizer_g`, of any class of torch.optim.

    With `train.max_seconds`, `clock` ends the run, and schedules follow the elapsed share of the time.
    """

    clock: Clock | None = None
    schedulers: list[Any]
    iteration = 0
    """The latest iteration that has begun."""

    def init_training_settings(self) -> None:
        seconds = self.opt["train"].get("max_seconds")
        self.clock = clock = Clock(seconds, self.opt.get("began")) if seconds else None
        compat.count_down(None if clock is None else lambda: clock.left)
        super().init_training_settings()

    @property
    def layer_options(self) -> Layers:
        """See `models.layers`."""
        return self.opt["train"].get("layers") or {}

    def setup_optimizers(self) -> None:
        optim_opt = self.opt["train"]["optim_g"]
        optim_type = optim_opt.pop("type")
        network, weights = self.get_bare_model(self.net_g), self.parameters_to_optimize()
        groups = optimizer_groups(self.layer_options, network, weights, optim_opt["lr"])
        self.optimizer_g = self.get_optimizer(optim_type, groups, **optim_opt)
        self.optimizers.append(self.optimizer_g)

    def setup_schedulers(self) -> None:
        """Like the toolbox's, with `SCHEDULERS`."""
        schedule = dict(self.opt["train"]["scheduler"])
        build = SCHEDULERS[schedule.pop("type")]
        self.schedulers += [build(optimizer, **schedule) for optimizer in self.optimizers]

    def parameters_to_optimize(self) -> list[nn.Parameter]:
        return [p for p in self.net_g.parameters() if p.requires_grad]

    def get_optimizer(self, optim_type: str, params: list[dict[str, Any]], lr: float, **kwargs: Any):
        return build_optimizer(optim_type, params, lr=lr, **kwargs)  # BasicSR 1.4.2 itself knows only Adam

    def optimized_parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer_g.param_groups for p in group["params"]]

    def update_learning_rate(self, current_iter: int, warmup_iter: float = -1) -> None:
        """Like the toolbox's; with `train.max_seconds`, schedules only follow the elapsed share of the time."""
        self.iteration = current_iter
        if self.clock is None or current_iter == 1:
            super().update_learning_rate(current_iter, warmup_iter)
            return
        due = self.clock.iteration(self.opt["train"]["total_iter"])
        for scheduler in self.schedulers:
            for _ in range(due - scheduler.last_epoch):
                scheduler.step()
        with self._schedulers_held():
            super().update_learning_rate(current_iter, warmup_iter)

    @contextmanager
    def _schedulers_held(self) -> Iterator[None]:
        """Inside, the toolbox's scheduler steps do nothing."""
        schedulers, self.schedulers = self.schedulers, []
        try:
            yield
        finally:
            self.schedulers = schedulers

    def _replay_rates(self, done: int, warmup_iter: float) -> None:
        """Advance new schedulers to their state after this many iterations."""
        if self.clock is None:
            for iteration in range(1, done + 1):
                self.update_learning_rate(iteration, warmup_iter)
            return
        self.update_learning_rate(max(done, 2), warmup_iter)

    def _warn_of_time_left(self, clock: Clock, current_iter: int) -> None:
        total = int(self.opt["train"]["total_iter"])
        if current_iter == total and (share := clock.iteration(total) / total) < _WHOLE:
            get_root_logger().warning(
                f"train.max_seconds: all {total:,} iterations were done in {share:.0%} of the time, before the "
                f"learning rate reached the end of its schedule: raise train.total_iter"
            )


def build_optimizer(
    optim_type: Any, params: list[nn.Parameter] | list[dict[str, Any]], **keywords: Any
) -> torch.optim.Optimizer:
    """An optimizer of torch.optim.

    Args:
        optim_type: name of its class.
        params: the weights, or groups of them.
        keywords: of its constructor, including `lr`.

    Raises:
        CSDError: there is no such class, or it does not accept a keyword.
    """
    cls = getattr(torch.optim, str(optim_type), None)
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise CSDError(f"train.optim_g.type: {optim_type!r} is not in torch.optim; try Adam or AdamW")
    try:
        return cls(params, **keywords)  # type: ignore[call-arg]
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        raise CSDError(f"train.optim_g: {str(error).removeprefix('Optimizer.')}; check its keys") from error

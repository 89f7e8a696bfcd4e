"""Stopping a Runner from outside: after SIGTERM, SIGHUP or Ctrl-C it ends its step, and saves a checkpoint."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import torch
from mmengine.dist import all_reduce, barrier, is_main_process
from mmengine.fileio import join_path
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.runner import Runner

from csd_plugin.distill.processes import are_several
from csd_plugin.stopping import REQUEST, Stopped


class StoppingHook(Hook):
    """Lets a signal end a training at a step that is saved, from which the run resumes.

    It listens from the first step on; `run_mmengine` adds it to every run. With several processes, a signal to any of
    them stops all at the same step, and one that comes during validation acts after it. With gradients of several
    iterations, the step is the optimizer's.

    Raises:
        Stopped: in the hooks after a step, or after frames of the validation, once the checkpoint is saved.
    """

    priority = "LOWEST"  # after averages, schedules and checkpoints of the same step

    def __init__(self) -> None:
        self._listening = ExitStack()

    def before_train(self, runner: Runner) -> None:
        if not REQUEST.listens():  # as it does already in `run_mmengine`, which also ends it
            self._listening.enter_context(REQUEST.listening())

    def after_train(self, runner: Runner) -> None:
        self._listening.close()  # a signal must act at once again: there is no step whose end it could wait for

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        REQUEST.begin_step()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        if runner.optim_wrapper.should_update() and (number := _agreed()):
            _save_and_stop(runner, runner.iter + 1, number)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any | None = None
    ) -> None:
        if REQUEST.signal and not are_several():
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # the model gets its own weights back, in place of their average
            _save_and_stop(runner, runner.iter, REQUEST.signal)


def _agreed() -> int:
    """The signal that any of the processes has received, or 0."""
    if not are_several():
        return REQUEST.signal
    number = torch.tensor(REQUEST.signal)
    all_reduce(number, "max")
    return int(number)


def _save_and_stop(runner: Runner, done: int, number: int) -> NoReturn:
    """Save a checkpoint of `done` iterations where the run's others are. Raises Stopped."""
    periodic = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
    folder, backend = (periodic.out_dir, periodic.backend_args) if periodic else (runner.work_dir, None)
    path = join_path(folder, f"iter_{done}.pth", backend_args=backend)
    state = {"iter": done, "epoch": runner.epoch}
    runner.save_checkpoint(folder, f"iter_{done}.pth", meta=state, backend_args=backend)
    if is_main_process():
        (Path(runner.work_dir) / "last_checkpoint").write_text(str(path), encoding="utf-8")
    barrier()  # a process that leaves early would end the others
    runner.logger.warning(f"{signal.Signals(number).name}: stopped after iteration {done}; saved as {path}")
    raise Stopped(128 + number, together=True)

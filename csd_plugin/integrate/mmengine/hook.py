"""The work of MMEngine's Runner around the steps and checkpoints of a `CSDDistiller`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner

from csd_plugin.archs.checkpoint import DAMAGED, load_weights, weights_in
from csd_plugin.data.datasets.paired_video import PairedVideoTestDataset
from csd_plugin.data.datasets.sampler import ClipSampler
from csd_plugin.data.datasets.training_clips import TrainingDataset
from csd_plugin.errors import CSDError, first_line
from csd_plugin.integrate.mmengine.model import STUDENT, CSDDistiller
from csd_plugin.integrate.mmengine.starting import check_resumed, check_start

STATE = "csd"
_BUFFER = ("history", "counts", "limit")


class DistillHook(Hook):
    """Counts the steps, updates averaged cells after them, and keeps checkpoints to plain data.

    Checkpoints of MMEngine 0.10 hold its own objects and numpy scalars, which torch's safe reader refuses. With this
    hook they hold tensors, numbers and text, so that runs can resume, and `csd derain` can read them, without running
    code from files. It reads them as data before MMEngine does; if the newest one is damaged, a run resumes from the
    one before it. `load_from` accepts any checkpoint that fits the student, also BasicSR's.
    """

    priority = "HIGH"  # before EMAHook, which takes its weights from the loaded `state_dict`

    def before_run(self, runner: Runner) -> None:
        check_start(runner)

    def before_train(self, runner: Runner) -> None:
        _enter_epochs(runner)
        _check_sizes(runner)
        distiller = _model(runner).distiller
        distiller.scaler = getattr(runner.optim_wrapper, "loss_scaler", None)
        distiller.warn = runner.logger.warning

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        _model(runner).iteration = runner.iter + 1

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        if runner.optim_wrapper.should_update():  # not while gradients are accumulated over several batches
            _model(runner).distiller.after_step()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        hub, distiller = checkpoint["message_hub"], _model(runner).distiller
        hub["log_scalars"] = {name: _packed(buffer) for name, buffer in hub["log_scalars"].items()}
        for part, content in (("message_hub", hub), ("meta", checkpoint["meta"])):
            checkpoint[part], dropped = _plain(content, part)
            if dropped:
                runner.logger.warning(f"The checkpoint leaves out {', '.join(dropped)}: not numbers, text or tensors.")
        checkpoint[STATE] = distiller.progress()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        model, source = _model(runner), f"checkpoint {runner._load_from}"
        load_weights(model.distiller.student, weights_in(checkpoint, str(runner._load_from)), source=source)
        if not any(name.removeprefix("module.").startswith(STUDENT) for name in checkpoint.get("state_dict", {})):
            checkpoint["state_dict"] = model.state_dict()
        if not runner._resume:
            return
        check_resumed(model, getattr(runner.optim_wrapper, "optimizer", None), checkpoint, source)
        hub = checkpoint["message_hub"]
        try:
            hub["log_scalars"] = {name: _unpacked(packed) for name, packed in hub["log_scalars"].items()}
            model.distiller.restore(checkpoint.get(STATE, {}))
        except DAMAGED as error:
            raise CSDError(
                f"{source}: what it says of the run is damaged ({type(error).__name__}: {first_line(error)}); resume "
                f"from an earlier checkpoint, by load_from"
            ) from error


def _enter_epochs(runner: Runner) -> None:
    """Give a loop over epochs samples that end with the epoch, and that go on where a resumed run was."""
    loader, loop = runner.train_dataloader, runner.train_loop
    if not isinstance(loop, EpochBasedTrainLoop):
        return
    if isinstance(loader.sampler, ClipSampler):
        loader.sampler.ends = True
        done = max(loop.iter - loop.epoch * len(loader), 0)
        loader.sampler.resume_at(loop.epoch, done, loader.batch_size or 1)
    elif loop.iter and isinstance(loader.dataset, TrainingDataset):
        runner.logger.warning(
            f"train_dataloader.sampler: with {type(loader.sampler).__name__} a resumed run draws the crops of its "
            f"first epochs again; csd.ClipSampler goes on with new ones"
        )


def _check_sizes(runner: Runner) -> None:
    """Raise CSDError if the networks cannot process the crops of our training set, or the student the test frames."""
    distiller, data = _model(runner).distiller, runner.train_dataloader.dataset
    if isinstance(data, TrainingDataset):
        options = data.options_class.of(data.opt)
        side, batch = options.gt_size // options.scale, runner.train_dataloader.batch_size or 1
        distiller.check((batch, options.num_frame, 3, side, side), options.num_target)
    tested = runner.val_dataloader.dataset if runner.val_loop else None
    if isinstance(tested, PairedVideoTestDataset):
        for height, width in tested.sizes():
            alone = (1, tested.num_frame, 3, height // tested.scale, width // tested.scale)
            distiller.check(alone, 1, learns=False)


def _model(runner: Runner) -> CSDDistiller:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _packed(buffer: HistoryBuffer) -> dict[str, Any]:
    history, counts = (torch.as_tensor(np.asarray(values)) for values in buffer.data)
    return dict(zip(_BUFFER, (history, counts, buffer.max_length), strict=True))


def _unpacked(packed: Any) -> HistoryBuffer:
    if isinstance(packed, HistoryBuffer):  # from a file that was saved without this hook
        return packed
    history, counts, limit = (packed[key] for key in _BUFFER)
    return HistoryBuffer(history.tolist(), counts.tolist(), limit)


def _plain(content: Any, where: str) -> tuple[Any, list[str]]:
    """The content as tensors, numbers, text, and dicts and lists of these; and the places of what was left out."""
    if isinstance(content, np.generic):
        return content.item(), []
    if content is None or isinstance(content, torch.Tensor | bool | int | float | str):
        return content, []
    if isinstance(content, dict):
        parts = {name: _plain(value, f"{where}.{name}") for name, value in content.items()}
        kept = {name: part for name, (part, dropped) in parts.items() if part is not _GONE}
        return kept, [place for _, dropped in parts.values() for place in dropped]
    if isinstance(content, list | tuple):
        items = [_plain(value, f"{where}[{i}]") for i, value in enumerate(content)]
        kept_items = [part for part, _ in items if part is not _GONE]
        return type(content)(kept_items), [place for _, dropped in items for place in dropped]
    return _GONE, [where]


_GONE = object()

"""The checkpoint that a run of MMEngine starts from: found, and checked as data before MMEngine reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from csd_plugin.archs.checkpoint import DAMAGED, load_optimizer, load_plain, load_weights
from csd_plugin.errors import CSDError, first_line

_NUMBERED = re.compile(r"(iter|epoch)_(\d+)\.pth")
"""The names of checkpoints that a run saves as it goes on."""
_ELSEWHERE = re.compile(r"[a-z0-9+.-]+:(//)?", re.IGNORECASE)
"""The beginning of what MMEngine fetches from elsewhere: `https://`, `s3://`, `torchvision://`, `mmcls://` .."""
_OF_WRAPPER = ("base_param_settings", "loss_scaler")
"""What MMEngine's wrappers add to the state of an optimizer."""


def check_start(runner: Runner) -> None:
    """Read the file that a run starts from; in the place of one that cannot be resumed, choose the one before it.

    Files from elsewhere, by their address, are left to MMEngine.

    Raises:
        CSDError: the file does not exist, is damaged, or holds more than data, and no other can take its place.
    """
    if runner._resume and runner._load_from is None:
        runner._load_from = _newest(Path(runner.work_dir), runner.logger.warning)
    elif runner._load_from and not _ELSEWHERE.match(str(runner._load_from)):
        content = load_plain(Path(runner._load_from).expanduser(), "load_from: checkpoint")
        if runner._resume:
            _check_resumable(content, f"load_from: checkpoint {runner._load_from}")


def _newest(folder: Path, warn: Callable[[str], object]) -> str | None:
    """The newest checkpoint of a run that can be resumed; None if it has none yet."""
    last, damage = find_latest_checkpoint(str(folder)), ""
    if last and _ELSEWHERE.match(last):
        return last
    for path in _saved(folder, Path(last) if last else None):
        try:
            _check_resumable(load_plain(path, "checkpoint"), f"checkpoint {path}")
        except CSDError as error:
            damage = damage or str(error)
        else:
            if damage:
                warn(f"{damage}; resuming from {path}")
            return str(path)
    if damage:
        raise CSDError(f"{damage}; no checkpoint of {folder} can be resumed")
    return None


def _saved(folder: Path, last: Path | None) -> list[Path]:
    """The checkpoints of a run, newest first: `last`, also where its folder has moved since, and those before it."""
    numbers = {path: int(found[2]) for path in folder.glob("*.pth") if (found := _NUMBERED.fullmatch(path.name))}
    if last is None:
        return sorted(numbers, key=numbers.__getitem__, reverse=True)
    newest = last if last.is_file() else folder / last.name
    found = _NUMBERED.fullmatch(last.name)
    of_kind = [path for path, number in numbers.items() if found and path.name.startswith(found[1])]
    before = [path for path in of_kind if found and numbers[path] < int(found[2])]
    return [newest, *sorted(before, key=numbers.__getitem__, reverse=True)]


def _check_resumable(content: Any, source: str) -> None:
    parts = {"meta": Mapping, "state_dict": Mapping, "optimizer": Mapping, "message_hub": Mapping}
    fits = isinstance(content, Mapping) and all(isinstance(content.get(key), kind) for key, kind in parts.items())
    if not fits or not {"iter", "epoch"} <= content["meta"].keys():
        raise CSDError(
            f"{source} holds no state to resume from; name a checkpoint that MMEngine has saved, or start from its "
            f"weights by load_from, without resume"
        )


def check_resumed(model: nn.Module, optimizer: Any, checkpoint: Mapping[str, Any], source: str) -> None:
    """Raise CSDError if a checkpoint does not fit the model or the optimizer, of which MMEngine loads what fits."""
    try:
        load_weights(model, checkpoint["state_dict"], source=source)
        if hasattr(optimizer, "param_groups"):
            saved = {key: value for key, value in checkpoint["optimizer"].items() if key not in _OF_WRAPPER}
            load_optimizer(optimizer, saved)
    except DAMAGED as error:  # CSDError included
        where = "" if str(error).startswith(source) else f"{source}: "
        raise CSDError(
            f"{where}{first_line(error)}; it belongs to another run: give the config with which it was made, or "
            f"another work_dir"
        ) from error

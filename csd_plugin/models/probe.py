"""A training run's model on random frames, to time its steps before there are checkpoints or data."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from basicsr.models import build_model
from basicsr.utils import get_root_logger

from csd_plugin.archs.checkpoint import save_plain
from csd_plugin.devices import gpus_of
from csd_plugin.distill.dry_run import clips_of
from csd_plugin.models.building import toolbox_network
from csd_plugin.models.preflight import check_devices


class Probe:
    """`step()` is one optimizer step of the run that training options describe, with its networks, objective and sizes.

    Weights are random, as none of the initial weights need exist. Nothing is logged while building. `model` and its
    input `batch` are available for other uses.
    Raises CSDError for a device that is not available.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        opt = deepcopy(dict(options))
        opt["num_gpu"] = gpus_of(opt["num_gpu"])
        opt |= {"is_train": True, "dist": False, "rank": 0, "world_size": 1}
        check_devices(opt)
        log = get_root_logger()
        level = log.level
        log.setLevel(logging.WARNING)
        try:
            self._folder = tempfile.TemporaryDirectory()  # exists as long as the model, which may write into it
            opt["path"] = _random_starts(opt, Path(self._folder.name))
            self.model = build_model(opt)
        finally:
            log.setLevel(level)
        clips = clips_of(opt)
        shape = (clips.batch, clips.num_frame, 3, clips.size, clips.size)
        lq = torch.rand(shape)
        first = (clips.num_frame - clips.num_target) // 2
        gt = lq[:, first : first + clips.num_target]
        scale = int(opt.get("scale", 1))
        gt = gt.repeat_interleave(scale, dim=3).repeat_interleave(scale, dim=4)
        self.batch: dict[str, Any] = {"lq": lq, "gt": gt, "key": []}
        self._steps = 0

    def step(self) -> None:
        self._steps += 1
        self.model.feed_data(self.batch)
        self.model.optimize_parameters(self._steps)


def _random_starts(opt: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The section `path` with random weights for every network except the one that learns, which needs none."""
    paths = {key: value for key, value in opt["path"].items() if not key.startswith(("pretrain_", "param_key_"))}
    for key in [key for key in opt if key.startswith("network_") and key != "network_g"]:
        file = folder / f"{key}.pth"
        save_plain({"params": toolbox_network(opt[key]).state_dict()}, file)
        paths |= {f"pretrain_{key}": str(file), f"param_key_{key.removeprefix('network_')}": "params"}
    return paths | dict.fromkeys(("experiments_root", "models", "training_states"), str(folder))

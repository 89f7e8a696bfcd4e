"""Runs of the launchers inside the test process, on networks and data that take moments."""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import socket
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
import yaml
from synthetic import TEST, TRAIN, write_ntu_rain

ROOT = Path(__file__).resolve().parents[1]
TEACHER = {"type": "SLDNet", "preset": "teacher", "num_feat": 4}
STUDENT = {"type": "SLDNet", "preset": "student2", "num_feat": 4}
SHALLOW_TEACHER = {"num_frame": 5, "num_feat": 4, "num_pair": 4, "num_transition": 4, "reducing": [4, 7, 10, 13]}
SHALLOW_STUDENT = {"num_frame": 3, "num_feat": 4, "num_pair": 2, "num_transition": 2, "reducing": [4, 7]}
"""SLDNets of 14 and 8 layers instead of the 22 and 14 above, for tests that train or compile often."""


def train_options(data: Path, **changes: Any) -> dict[str, Any]:
    """Stage 1 of the narrow student for two iterations. `changes` replace keys: {'train.ema_decay': 0}."""
    options = {
        "name": "run",
        "model_type": "VideoDerainModel",
        "scale": 1,
        "num_gpu": 0,
        "manual_seed": 3,
        "datasets": {
            "train": {
                "name": "train",
                "type": "PairedVideoDataset",
                "dataroot": str(data),
                "num_frame": 8,
                "num_target": 2,
                "gt_size": 24,
                "random_reverse": True,
                "num_worker_per_gpu": 0,
                "batch_size_per_gpu": 2,
                "dataset_enlarge_ratio": 2,
            }
        },
        "network_g": dict(STUDENT),
        "path": {"pretrain_network_g": None},
        "train": {
            "ema_decay": 0.9,
            "optim_g": {"type": "Adam", "lr": 0.001},
            "scheduler": {"type": "MultiStepLR", "milestones": [1, 3], "gamma": 0.5},
            "total_iter": 2,
            "pixel_opt": {"type": "PyramidSSIMLoss"},
        },
        "logger": {"print_freq": 1, "save_checkpoint_freq": 2, "use_tb_logger": False},
    }
    return changed(options, changes)


def distill_options(data: Path, teacher: Path, **changes: Any) -> dict[str, Any]:
    """Stage 2 of the same, from a teacher's checkpoint."""
    stage2 = {
        "model_type": "DistillModel",
        "network_t": dict(TEACHER),
        "path.pretrain_network_t": str(teacher),
        "train.distill_opt": {"type": "CSD", "hidden": 4, "weights": {"spatial": 0.1, "temporal": 0.1}},
    }
    return train_options(data, **stage2 | changes)


def shallow_options(data: Path, teacher: Path | None = None, **changes: Any) -> dict[str, Any]:
    """Stage 2, or stage 1 without a teacher, of the shallow networks: steps and files take about half the time."""
    network_g, network_t = ({"type": "SLDNet", **numbers} for numbers in (SHALLOW_STUDENT, SHALLOW_TEACHER))
    if teacher is None:
        return train_options(data, **{"network_g": network_g} | changes)
    return distill_options(data, teacher, **{"network_g": network_g, "network_t": network_t} | changes)


def method(name: str) -> dict[str, Any]:
    """The type of an objective, and what it cannot do without."""
    parts = [{"type": "SRKD"}, {"type": "OutputDistillation"}]
    return {"type": name, "objectives": parts} if name == "Combined" else {"type": name}


def scoring_options(data: Path, checkpoint: Path, **changes: Any) -> dict[str, Any]:
    """The narrow student over the synthetic test clip."""
    options = {
        "name": "row",
        "model_type": "VideoDerainModel",
        "scale": 1,
        "num_gpu": 0,
        "manual_seed": 0,
        "datasets": {"test_1": scored_set(data)},
        "network_g": dict(STUDENT),
        "path": {"pretrain_network_g": str(checkpoint), "param_key_g": "params_ema"},
        "val": {"save_img": False, "suffix": None},
    }
    return changed(options, changes)


def write_distillation(folder: Path, **changes: Any) -> dict[str, Any]:
    """Data and a teacher in `folder`, and the options of a distillation of tiny networks on them, for long runs.

    It scores a clip every seven iterations, and has a worker that loads.
    """
    from csd_plugin.archs.sldnet import SLDNet

    clips = {f"{TRAIN}/t1": ("GT", "Rain_01"), f"{TRAIN}/t2": ("GT", "Rain_01"), f"{TEST}/a1": ("GT", "Rain")}
    data = write_ntu_rain(folder / "data", frames=9, height=30, width=40, clips=clips)
    torch.manual_seed(1)
    teacher = folder / "teacher.pth"
    torch.save({"params_ema": SLDNet(preset="teacher", num_feat=4).state_dict()}, teacher)
    options = {
        "datasets.val": scored_set(data),
        "datasets.train.num_worker_per_gpu": 1,
        "datasets.train.dataset_enlarge_ratio": 50,
        "val": {"val_freq": 7, "save_img": False, "pbar": False},
    }
    return distill_options(data, teacher, **options | changes)


def scored_set(data: Path, **changes: Any) -> dict[str, Any]:
    """A test data set of windows of three frames, the first three of each clip."""
    options = {
        "name": "rain",
        "type": "PairedVideoTestDataset",
        "dataroot": str(data),
        "split": "test",
        "num_frame": 3,
        "frame_range": [1, 3],
    }
    return options | changes


def changed(options: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with `section.key` replaced; a value of `...` (Ellipsis) removes the key."""
    options = deepcopy(options)
    for path, value in changes.items():
        *sections, key = path.split(".")
        section = options
        for name in sections:
            section = section[name]
        if value is ...:
            del section[key]
        else:
            section[key] = value
    return options


def torchrun(
    folder: Path, options: dict[str, Any], *flags: str, script: Path | None = None, timeout: int = 300
) -> subprocess.CompletedProcess[str]:
    """`csd_plugin.train`, or a script in its place, in two processes of torchrun."""
    (folder / "options.yml").write_text(yaml.safe_dump(options, sort_keys=False))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    module = ["-m", "csd_plugin.train"] if script is None else [str(script)]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return warm.python(
        *(*launch, *module, "--launcher", "pytorch", "-opt", "options.yml", *flags),
        cwd=folder,
        environment=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        timeout=timeout,
    )


def begin_two(folder: Path, *command: Any, hosts: int = 1, **environment: str) -> list[warm.Child]:
    """`python COMMAND` as torchrun would begin it, of ranks 0 and 1 on one host or two; none is ended for the other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    shared = os.environ | place | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment
    shared["LOCAL_WORLD_SIZE"] = str(2 // hosts)
    ranks = [{"RANK": str(i), "LOCAL_RANK": str(i % (2 // hosts)), "GROUP_RANK": str(i * hosts // 2)} for i in range(2)]
    return [warm.begin(*command, cwd=folder, environment=shared | rank) for rank in ranks]


def two_processes(folder: Path, options: dict[str, Any], *flags: str) -> subprocess.CompletedProcess[str]:
    """`csd_plugin.train` in two processes, their outputs one after the other: `torchrun` without its own start."""
    (folder / "options.yml").write_text(yaml.safe_dump(options, sort_keys=False))
    command = ["-m", "csd_plugin.train", "--launcher", "pytorch", "-opt", "options.yml", *flags]
    processes = begin_two(folder, *command)
    said = [process.communicate() for process in processes]
    out, err = ("".join(texts) for texts in zip(*said, strict=True))
    status = next(filter(None, (process.returncode for process in processes)), 0)
    return subprocess.CompletedProcess(command, status, out, err)


class Launcher:
    """`python -m csd_plugin.train` and `.test` without the start of a process, in a folder of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.models: list[Any] = []
        """What the runs built, newest last."""
        self._monkeypatch = monkeypatch
        monkeypatch.chdir(folder)
        for job in ("train", "test"):
            importlib.import_module(f"csd_plugin.{job}")
            pipeline = importlib.import_module(f"basicsr.{job}")
            monkeypatch.setattr(pipeline, "build_model", self._recording(pipeline.build_model))
        # earlier results are archived under the second in which they are, and here several runs end in one
        seconds = (f"{number:06d}" for number in itertools.count())
        monkeypatch.setattr("basicsr.utils.misc.get_time_str", lambda: next(seconds))

    def train(self, options: dict[str, Any] | str | bytes, *flags: str) -> int:
        return self._launch("train", options, *flags)

    def test(self, options: dict[str, Any] | str | bytes, *flags: str) -> int:
        return self._launch("test", options, *flags)

    def _launch(self, job: str, options: dict[str, Any] | str | bytes, *flags: str) -> int:
        file = self.folder / "options.yml"
        text = yaml.safe_dump(options, sort_keys=False) if isinstance(options, dict) else options
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        self._monkeypatch.setattr(sys, "argv", [job, "-opt", file.name, *flags])
        _forget_log()
        try:
            return importlib.import_module(f"csd_plugin.{job}").main()
        finally:
            _forget_log()

    def _recording(self, build_model: Any) -> Any:
        def build(opt: dict[str, Any]) -> Any:
            self.models.append(build_model(opt))
            return self.models[-1]

        return build

    def weights(self, label: str, name: str = "run", key: str = "params") -> dict[str, torch.Tensor]:
        """A checkpoint of an experiment, `net_g_2` or `objective_2`."""
        file = self.folder / "experiments" / name / "models" / f"{label}.pth"
        return torch.load(file, weights_only=True)[key]

    def written(self) -> list[str]:
        """What a run has left in the folder, beside the option file."""
        return sorted(path.name for path in self.folder.iterdir() if path.name != "options.yml")


def _forget_log() -> None:
    """The toolbox sets its log up once per process, and would go on writing into the first run's file."""
    from basicsr.utils import logger

    logger.initialized_logger.clear()
    log = logging.getLogger("basicsr")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are the same, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

"""The place where cases are made, and the good files that they need beside the bad one."""

from __future__ import annotations

import functools
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from malicious.running import PATIENCE, run

ROOT = Path(__file__).resolve().parents[2]

HEIGHT, WIDTH = 24, 32


class Ground:
    """Where cases are made: a folder that each may fill, next to files that none may touch.

    good: a folder of frames, a network, an option file: what a command needs in addition to the bad file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bad, self.good = folder / "bad", folder / "good"
        self.marker = folder / "ran"
        self.secret = folder / "secret.png"
        self.good.mkdir(parents=True)
        self._make_good()

    def _make_good(self) -> None:
        import cv2
        import numpy as np
        import torch

        from csd_plugin.archs.prenet import PReNet

        torch.manual_seed(0)
        self.frames, self.network = self.good / "frames", self.good / "net.pth"
        self.frames.mkdir()
        rng = np.random.default_rng(0)
        for number in (1, 2):
            cv2.imwrite(str(self.frames / f"{number}.png"), rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
        shutil.copy(self.frames / "1.png", self.secret)
        self.state = PReNet(num_feat=4).state_dict()
        torch.save({"params": self.state}, self.network)
        self.option_file = (ROOT / "options" / "distill" / "student1_csd.yml").read_text()
        self.matrix = "name: m\nrows: {}\n"

    @functools.cached_property
    def trained(self) -> Path:
        """A folder in which a small distillation was stopped half way, with its options."""
        from synthetic import TEST, TRAIN, write_ntu_rain
        from toolbox import distill_options

        folder = self.good / "trained"
        clips = {f"{TRAIN}/t1": ("GT", "Rain_01"), f"{TEST}/a1": ("GT", "Rain")}
        data = write_ntu_rain(folder / "data", frames=9, height=30, width=40, clips=clips)
        teacher = folder / "teacher.pth"
        options = distill_options(data, teacher, **{"network_t": {"type": "PReNet", "num_feat": 4}})
        shutil.copy(self.network, teacher)
        (folder / "options.yml").write_text(yaml.safe_dump(options))
        self._succeed("csd_plugin.train", "-opt", str(folder / "options.yml"))
        options["train"]["total_iter"] = 4
        (folder / "options.yml").write_text(yaml.safe_dump(options))
        return folder

    @functools.cached_property
    def adapted(self) -> Path:
        """A folder in which `csd adapt` was run: garden.pth, its cache, and the state to resume from."""
        import torch
        from synthetic import moving_scene, rain_on, write_image

        from csd_plugin.archs.halfnet import HalfNet

        folder = self.good / "adapted"
        for number, frame in enumerate(rain_on(moving_scene(12, 48, 56, 0), 1), start=1):
            write_image(folder / "garden" / f"{number:05d}.png", frame)
        torch.save({"params": HalfNet(preset="tiny", num_feat=4).state_dict()}, folder / "half.pth")
        self._succeed(*adapting(folder))
        return folder

    @functools.cached_property
    def graph(self) -> bytes:
        """An ONNX model that `csd derain` takes, of few layers: each takes torch's exporter its time."""
        import torch

        from csd_plugin.archs.halfnet import HalfNet

        network = self.good / "flat.pth"
        torch.save({"params": HalfNet(preset="tiny", num_feat=4, num_pair=1).state_dict()}, network)
        self._succeed("export", str(network), str(self.good / "net.onnx"))
        return (self.good / "net.onnx").read_bytes()

    def _succeed(self, *command: str) -> None:
        ended = run(command, self.folder / "log", seconds=PATIENCE)
        if ended.status:
            raise RuntimeError(f"{command} was to succeed: {ended.said}")

    def fresh(self) -> Path:
        shutil.rmtree(self.bad, ignore_errors=True)
        self.bad.mkdir()
        return self.bad


def adapting(folder: Path) -> list[str]:
    files = ("--teacher", "half.pth", "--student", "half.pth", "--out", "garden.pth")
    paths = [str(folder / word) if "." in word else word for word in files]
    return [
        "adapt",
        str(folder / "garden"),
        *paths,
        "--minutes",
        "0.01",
        "--frames",
        "12",
        "--features",
        "--device",
        "cpu",
    ]


CLIP = "Dataset_Testing_Synthetic/a1_Rain"


def scoring(ground: Ground, data: Path, **more: Any) -> list[str]:
    """A run of the test launcher over a data set in the folder of the case."""
    dataset = {"name": "rain", "type": "PairedVideoTestDataset", "dataroot": str(data), "num_frame": 1}
    options = {
        "name": "row", "model_type": "VideoDerainModel", "num_gpu": 0, "manual_seed": 0,
        "datasets": {"test_1": dataset | more},
        "network_g": {"type": "PReNet", "num_feat": 4},
        "path": {"pretrain_network_g": str(ground.network)},
        "val": {"save_img": False},
    }  # fmt: skip
    file = ground.bad / "options.yml"
    file.write_text(yaml.safe_dump(options))
    return ["csd_plugin.test", "-opt", str(file)]


@dataclass(frozen=True)
class Case:
    """A command line, and what it reads; `secret` must not be found in what it writes."""

    name: str
    command: list[str]
    out: Path


Maker = Callable[[Ground, random.Random], Case]

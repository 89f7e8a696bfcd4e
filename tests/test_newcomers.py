"""A new network, objective, metric and data set: one file and one line of a table each, and all jobs know them."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import warm
import yaml
from toolbox import changed, distill_options

PACKAGE = Path(__file__).resolve().parents[1] / "csd_plugin"

NETWORK = """
from torch import nn


class Newcomer(nn.Module):
    num_frame = 3
    feature_tap = "last"
    presets = {"newcomer_wide": {"width": 9}}

    def __init__(self, *, width: int = 6) -> None:
        super().__init__()
        self.width = width
        self.start, self.last = nn.Conv2d(9, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, window):
        return window[:, 1] + 0.01 * self.last(self.start(window.flatten(1, 2)).relu())

    @staticmethod
    def numbers_from_state(state):
        return {"width": state["start.weight"].shape[0]} if "start.weight" in state else None
"""
OBJECTIVE = """
from csd_plugin.distill.interface import Objective
from csd_plugin.types import Terms


class Edges(Objective):
    terms = ("edges",)
    needs_features = False

    def __init__(self, *, step: int = 1) -> None:
        super().__init__()
        self.step = step

    def forward(self, student, teacher, target):
        ours, theirs = (x.output[..., self.step :] - x.output[..., : -self.step] for x in (student, teacher))
        return Terms({"edges": (ours - theirs.detach()).abs().mean()}, {})

    def warnings(self, features):
        return ["edges are coarse"] if self.step > 1 else []
"""
METRIC = """
import numpy as np

from csd_plugin.metrics.metric import Metric


class MeanDifference(Metric):
    title, decimals = "mean difference", 1
    needs_truth = True
    function = "calculate_mean_difference"

    def __init__(self, *, power: float = 1.0) -> None:
        self.power = power

    def __call__(self, view):
        return float((np.abs(view.result.astype(float) - view.truth) ** self.power).mean())
"""
DATASET = """
from dataclasses import dataclass

from csd_plugin.data.datasets.field import option
from csd_plugin.data.datasets.options import TrainingOptions
from csd_plugin.data.datasets.paired_video import PairedVideoDataset


@dataclass(frozen=True, kw_only=True)
class DarkOptions(TrainingOptions):
    gain: float = option(0.5, "frames are multiplied by it", gt=0, le=1)


class DarkVideoDataset(PairedVideoDataset):
    options_class = DarkOptions

    def item(self, sample):
        gain = self.options_class.of(self.opt).gain
        return {key: value if key == "key" else value * gain for key, value in super().item(sample).items()}
"""
# new file, its content, the file with the table, its new line
CHANGES = [
    ("archs/newcomer.py", NETWORK, "archs/__init__.py", '        "Newcomer": "csd_plugin.archs.newcomer:Newcomer",'),
    ("distill/edges.py", OBJECTIVE, "distill/__init__.py", '        "Edges": "csd_plugin.distill.edges:Edges",'),
    (
        "metrics/difference.py",
        METRIC,
        "metrics/__init__.py",
        '        "difference": "csd_plugin.metrics.difference:MeanDifference",',
    ),
    (
        "data/datasets/dark.py",
        DATASET,
        "data/datasets/__init__.py",
        '        "DarkVideoDataset": "csd_plugin.data.datasets.dark:DarkVideoDataset",',
    ),
]


@pytest.fixture(scope="module")
def patched(tmp_path_factory) -> Path:
    """A folder that holds the package with the four changes."""
    folder = tmp_path_factory.mktemp("newcomer")
    shutil.copytree(PACKAGE, folder / "csd_plugin", ignore=shutil.ignore_patterns("__pycache__"))
    for new, content, table, line in CHANGES:
        (folder / "csd_plugin" / new).write_text(content)
        path = folder / "csd_plugin" / table
        before, end, after = path.read_text().partition("\n    }\n)\n")
        assert end
        path.write_text(f"{before}\n{line}{end}{after}")
    return folder


def run(folder: Path, cwd: Path, module: str, *arguments: str) -> str:
    done = warm.python("-m", module, *arguments, cwd=cwd, environment=os.environ | {"PYTHONPATH": str(folder)})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_each_change_is_a_new_file_and_a_line(patched):
    new, touched = set(), {}
    for path in (patched / "csd_plugin").rglob("*.py"):
        original = PACKAGE / path.relative_to(patched / "csd_plugin")
        if not original.exists():
            new.add(path.name)
        elif not filecmp.cmp(path, original, shallow=False):
            touched[original.parent.name] = len(path.read_text().splitlines()) - len(original.read_text().splitlines())
    assert new == {"newcomer.py", "edges.py", "difference.py", "dark.py"}
    assert touched == {"archs": 1, "distill": 1, "metrics": 1, "datasets": 1}


def test_all_jobs_know_the_newcomers(patched, tiny_rain, tiny_teacher, tmp_path):
    options = distill_options(
        tiny_rain,
        tiny_teacher,
        network_g={"type": "Newcomer", "width": 5},
        **{"train.distill_opt": {"type": "Edges", "step": 2, "weights": {"edges": 0.5}}},
    )
    test = {"name": "v", "type": "PairedVideoTestDataset", "dataroot": str(tiny_rain), "num_frame": 7}
    difference = {"type": "calculate_mean_difference", "power": 2.0, "better": "lower"}
    options = changed(
        options,
        {
            "datasets.train.type": "DarkVideoDataset",
            "datasets.train.gain": 0.25,
            "datasets.val": test | {"clips": ["a1"]},
            "val": {"val_freq": options["train"]["total_iter"], "save_img": False, "metrics": {"mine": difference}},
        },
    )
    (tmp_path / "options.yml").write_text(yaml.safe_dump(options))
    inspected = run(patched, tmp_path, "csd_plugin", "inspect", "options.yml")
    assert "Newcomer, learns" in inspected and "warning    edges are coarse" in inspected
    log = run(patched, tmp_path, "csd_plugin.train", "-opt", "options.yml")
    assert "l_edges" in log and "# mine: " in log
    [scores] = (tmp_path / "experiments/run/metrics").glob("*.json")
    assert json.loads(scores.read_text())["average"]["measures"]["mine"] > 0

    checkpoint = tmp_path / "experiments/run/models/net_g_latest.pth"
    assert torch.load(checkpoint, weights_only=True)["params"]["start.weight"].shape == (5, 9, 3, 3)
    rain, truth = (next(tiny_rain.rglob(f"a1_{kind}")) for kind in ("Rain", "GT"))
    run(patched, tmp_path, "csd_plugin", "derain", str(rain), "clean", "--model", str(checkpoint))
    table = run(patched, tmp_path, "csd_plugin", "score", "clean", "--truth", str(truth), "--metrics", "difference")
    assert "mean difference" in table
    bench = [
        "bench",
        "infer",
        "--networks",
        "newcomer_wide",
        "--backends",
        "plain",
        "--sizes",
        "16x16",
        "--rounds",
        "1",
    ]
    assert "newcomer_wide" in run(patched, tmp_path, "csd_plugin", *bench)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("datasets.train.gain", 2.0, "datasets.train.gain is 2.0"),
        ("network_g.widht", 3, "network_g.widht is unknown; did you mean width?"),
        ("train.distill_opt.step", "x", "train.distill_opt.step is 'x'"),
    ],
)
def test_their_options_are_checked(patched, tiny_rain, tiny_teacher, tmp_path, key, value, message):
    options = distill_options(
        tiny_rain,
        tiny_teacher,
        network_g={"type": "Newcomer"},
        **{"train.distill_opt": {"type": "Edges", "weights": {"edges": 0.5}}},
        **{"datasets.train.type": "DarkVideoDataset"},
    )
    (tmp_path / "options.yml").write_text(yaml.safe_dump(changed(options, {key: value})))
    code = "import pathlib, csd_plugin.options.files as files; files.read_options(pathlib.Path('options.yml'))"
    done = warm.python("-c", code, cwd=tmp_path, environment=os.environ | {"PYTHONPATH": str(patched)})
    assert message in done.stderr.splitlines()[-1]

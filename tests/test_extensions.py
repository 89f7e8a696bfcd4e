"""A network and an objective in somebody else's package, which option files then know by name alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from toolbox import distill_options

ROOT = Path(__file__).resolve().parents[1]

PACKAGE = """
import torch
from torch import nn

from csd_plugin.distill.objective import OBJECTIVES, Objective
from csd_plugin.types import Terms


class Blur(nn.Module):
    num_frame = 3
    feature_tap = "last"

    def __init__(self, *, width: int = 6):
        super().__init__()
        self.first, self.last = nn.Conv2d(9, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, window):
        return window[:, 1] + self.last(self.first(window.flatten(1, 2)).relu())


class Edges(Objective):
    terms = ("edges",)
    needs_features = False

    def __init__(self, *, step: int = 1):
        super().__init__()
        self.step = step

    def forward(self, student, teacher, target):
        ours, theirs = (x.output[..., self.step:] - x.output[..., :-self.step] for x in (student, teacher))
        return Terms({"edges": (ours - theirs.detach()).abs().mean()}, {})


def register():
    from basicsr.utils.registry import ARCH_REGISTRY

    ARCH_REGISTRY.register(Blur)
    OBJECTIVES["Edges"] = Edges
"""


@pytest.fixture
def scratch(tmp_path) -> Path:
    """What `pip install` makes of the package: its module, and metadata that name its entry point."""
    folder = tmp_path / "site"
    metadata = folder / "scratch_derain-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "scratch_derain.py").write_text(PACKAGE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: scratch-derain\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[csd_plugin]\nscratch = scratch_derain:register\n")
    return folder


def run(folder: Path, options: dict, cwd: Path) -> subprocess.CompletedProcess:
    (cwd / "options.yml").write_text(yaml.safe_dump(options))
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    command = [sys.executable, "-m", "csd_plugin.train", "-opt", "options.yml"]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_a_network_and_an_objective_of_another_package_train_by_options_alone(
    scratch, tiny_rain, tiny_teacher, tmp_path
):
    options = distill_options(
        tiny_rain,
        tiny_teacher,
        network_g={"type": "Blur", "width": 5},
        **{"train.distill_opt": {"type": "Edges", "step": 2, "weights": {"edges": 0.5}}},
    )
    done = run(scratch, options, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "l_edges" in done.stderr
    weights = torch.load(tmp_path / "experiments/run/models/net_g_latest.pth", weights_only=True)["params"]
    assert weights["first.weight"].shape == (5, 9, 3, 3)

    options["train"]["distill_opt"]["stepp"] = 1
    wrong = run(scratch, json.loads(json.dumps(options)), tmp_path)
    assert wrong.returncode == 2
    assert "train.distill_opt.stepp is unknown; did you mean step?" in wrong.stderr.splitlines()[-1]


def test_a_package_that_fails_is_named(scratch, tiny_rain, tiny_teacher, tmp_path):
    (scratch / "scratch_derain.py").write_text("def register():\n    import not_there\n")
    done = run(scratch, distill_options(tiny_rain, tiny_teacher), tmp_path)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "scratch = scratch_derain:register" in line and "not_there" in line

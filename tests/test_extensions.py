"""A network and an objective in somebody else's package, which options and commands then know by name alone."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import warm
import yaml
from synthetic import write_image
from toolbox import distill_options

from csd_plugin.archs import NETWORKS
from csd_plugin.archs.sldnet import SLDNet

ROOT = Path(__file__).resolve().parents[1]

PACKAGE = """
import torch
from torch import nn

from csd_plugin.distill.objective import OBJECTIVES, Objective
from csd_plugin.types import Terms


class Blur(nn.Module):
    num_frame = 3
    feature_tap = "last"

    @staticmethod
    def numbers_from_state(state):
        if set(state) != {"first.weight", "first.bias", "last.weight", "last.bias"}:
            return None
        return {"width": state["first.weight"].shape[0]}

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


class Absolute(nn.Module):
    def __init__(self, power=2.0):
        super().__init__()
        self.power = power

    def forward(self, output, gt):
        return (output - gt).abs().pow(self.power).mean()


def register():
    OBJECTIVES["Edges"] = Edges
"""
# ours, which is known everywhere; and the toolbox's, for training alone
TABLE = """
    from csd_plugin.archs import NETWORKS
    from csd_plugin.losses import LOSSES

    NETWORKS["Blur"] = Blur
    LOSSES["Absolute"] = Absolute
"""
REGISTRY = """
    from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY

    ARCH_REGISTRY.register(Blur)
    LOSS_REGISTRY.register(Absolute)
"""


@pytest.fixture
def scratch(tmp_path) -> Path:
    """What `pip install` makes of the package: its module, and metadata that name its entry point."""
    folder = tmp_path / "site"
    metadata = folder / "scratch_derain-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "scratch_derain.py").write_text(PACKAGE + TABLE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: scratch-derain\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[csd_plugin]\nscratch = scratch_derain:register\n")
    return folder


def run(folder: Path, options: dict, cwd: Path) -> subprocess.CompletedProcess:
    (cwd / "options.yml").write_text(yaml.safe_dump(options))
    return warm.python("-m", "csd_plugin.train", "-opt", "options.yml", cwd=cwd, environment=with_package(folder))


def with_package(folder: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}


@pytest.mark.parametrize("way", [TABLE, REGISTRY], ids=["table", "registry"])
def test_a_network_a_loss_and_an_objective_of_another_package_train_by_options_alone(
    scratch, tiny_rain, tiny_teacher, tmp_path, way
):
    (scratch / "scratch_derain.py").write_text(PACKAGE + way)
    options = distill_options(
        tiny_rain,
        tiny_teacher,
        network_g={"type": "Blur", "width": 5},
        **{
            "train.distill_opt": {"type": "Edges", "step": 2, "weights": {"edges": 0.5}},
            "train.pixel_opt": {"type": "Absolute", "power": 1.5},
        },
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


WITHOUT_TOOLBOX = """
import sys
sys.modules["basicsr"] = sys.modules["torchvision"] = None
from csd_plugin.cli import main
"""


def csd(folder: Path, *commands: list[str]) -> subprocess.CompletedProcess:
    """Commands one after another in a process without the toolbox; its status is that of the first that fails."""
    return python(folder, WITHOUT_TOOLBOX + f"sys.exit(next((status for c in {commands!r} if (status := main(c))), 0))")


def python(folder: Path, code: str) -> subprocess.CompletedProcess:
    return warm.python("-c", code, environment=with_package(folder))


@pytest.fixture
def blurs(scratch, tmp_path) -> Path:
    """A checkpoint of the other package's network."""
    weights = {"first.weight": torch.zeros(4, 9, 3, 3), "first.bias": torch.zeros(4)}
    weights |= {"last.weight": torch.zeros(3, 4, 3, 3), "last.bias": torch.full((3,), 0.2)}
    torch.save({"params": weights}, tmp_path / "blur.pth")
    return tmp_path / "blur.pth"


def test_commands_know_the_network_of_another_package_also_without_the_toolbox(scratch, blurs, tmp_path):
    frame = np.full((16, 24, 3), 100, np.uint8)
    for i in range(3):
        write_image(tmp_path / "rain" / f"{i}.png", frame)
    figures = tmp_path / "infer.json"
    untimed = WITHOUT_TOOLBOX + (
        "from csd_plugin.report import networks\n"
        "networks.seconds_a_frame = lambda shown: dict.fromkeys(shown, 1.0)\n"
        "sys.exit(main(['models']))"
    )
    listed = python(scratch, untimed)
    assert listed.returncode == 0, listed.stderr[-2000:]
    assert ["Blur", "-", "657", "3", "scratch_derain"] in [line.split() for line in listed.stdout.splitlines()]
    done = csd(
        scratch,
        ["derain", str(tmp_path / "rain"), str(tmp_path / "clean"), "--model", str(blurs)],
        f"bench infer --networks blur {blurs} --backends plain torch --sizes 24x16 --rounds 1 --json {figures}".split(),
        ["export", str(blurs), str(tmp_path / "blur.pt2")],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [first, *_] = sorted((tmp_path / "clean").iterdir())
    assert np.abs(cv2.imread(str(first)) - np.float64(100 + 51)).max() <= 1  # in bfloat16 too
    assert {row["network"] for row in json.loads(figures.read_text())["rows"]} == {"blur", str(blurs)}
    assert "Blur, window of 3" in done.stdout and (tmp_path / "blur.pt2").exists()


def test_other_packages_are_imported_only_for_networks_that_are_not_ours(scratch, tmp_path):
    (scratch / "scratch_derain.py").write_text("raise SystemExit('imported')")
    for i in range(2):
        write_image(tmp_path / "rain" / f"{i}.png", np.zeros((16, 24, 3), np.uint8))
    done = csd(scratch, ["derain", str(tmp_path / "rain"), str(tmp_path / "clean"), "--model", "tiny"])
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_checkpoint_that_nobody_knows_names_the_package_that_failed(scratch, blurs, tmp_path):
    (scratch / "scratch_derain.py").write_text(PACKAGE + REGISTRY)
    done = csd(scratch, ["export", str(blurs), str(tmp_path / "blur.pt2")])
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert "SLDNet, PReNet, S2VD, HalfNet" in line and "scratch = scratch_derain:register" in line and "basicsr" in line


@pytest.mark.parametrize("uses", ["from basicsr.archs.arch_util import make_layer", "import torchvision"])
def test_commands_know_networks_whose_package_imports_the_toolbox(scratch, blurs, tmp_path, uses):
    """Its import fails with today's torchvision unless it is repaired, and so does torchvision's without its part."""
    (scratch / "scratch_derain.py").write_text(f"{uses}\n{PACKAGE}{TABLE}")
    done = python(
        scratch, f"from csd_plugin.cli import main; main({['export', str(blurs), str(tmp_path / 'blur.pt2')]})"
    )
    assert done.returncode == 0 and (tmp_path / "blur.pt2").exists(), done.stderr[-2000:]


def test_whatever_a_package_raises_is_one_line(scratch, blurs, tmp_path):
    (scratch / "scratch_derain.py").write_text("def register():\n    raise ZeroDivisionError('first\\nsecond')\n")
    done = csd(scratch, ["export", str(blurs), str(tmp_path / "blur.pt2")])
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert "scratch = scratch_derain:register cannot be registered (ZeroDivisionError: first); fix or uninstall" in line


def test_a_name_of_ours_is_not_taken_in_the_table():
    with pytest.raises(KeyError, match="another SLDNet"):
        NETWORKS["SLDNet"] = torch.nn.Identity
    NETWORKS["SLDNet"] = SLDNet
    assert list(NETWORKS) == ["SLDNet", "PReNet", "S2VD", "HalfNet"]


def test_a_package_that_fails_is_named(scratch, tiny_rain, tiny_teacher, tmp_path):
    (scratch / "scratch_derain.py").write_text("def register():\n    import not_there\n")
    done = run(scratch, distill_options(tiny_rain, tiny_teacher), tmp_path)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "scratch = scratch_derain:register" in line and "not_there" in line

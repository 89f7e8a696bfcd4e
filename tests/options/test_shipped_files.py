"""Every option file in options/ builds, fits what it starts from, and has the paper's settings where it says so."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from synthetic import REAL, TEST, TRAIN, write_image

from csd_plugin.archs import NETWORKS
from csd_plugin.data.datasets import DATASETS
from csd_plugin.distill import OBJECTIVES
from csd_plugin.losses import LOSSES
from csd_plugin.metrics import results
from csd_plugin.metrics.protocols import score_frame
from csd_plugin.metrics.scores import Scores
from csd_plugin.options import sections
from csd_plugin.options.checks import check_options

OPTIONS = Path(__file__).resolve().parents[2] / "options"
# matrix files are others: tests/lab; so are those that start from what csd adapt makes: tests/adapt
FILES = sorted(f.relative_to(OPTIONS) for f in OPTIONS.rglob("*.yml") if not {"matrix", "adapt"} & set(f.parts))
PAPER = [path for path in FILES if path.parts[0] in ("train", "distill") and "cpu" not in path.stem]

ROW = "row.pth"
"""The checkpoint that a matrix puts into the test file of its rows."""


def parse(file: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The options as a launcher sees them: by the toolbox's parser, with our loader."""
    importlib.import_module("csd_plugin.train")  # registers our classes and puts our loader in
    from basicsr.utils.options import parse_options

    monkeypatch.setattr(sys, "argv", ["job", "-opt", str(file)])
    is_train = "train" in yaml.safe_load(file.read_text())
    opt, _ = parse_options(".", is_train)
    return opt


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with all that the option files start from: data, each other's checkpoints and results."""
    folder = tmp_path_factory.mktemp("workplace")
    black = np.zeros((330, 330, 3), np.uint8)
    data = folder / "datasets" / "NTURain"
    clips = {f"{TRAIN}/t1_GT": 14, f"{TRAIN}/t1_Rain_01": 14, f"{TEST}/a1_GT": 48, f"{TEST}/a1_Rain": 48}
    for clip, frames in (clips | {f"{REAL}/ra1_Rain": 3}).items():
        for i in range(1, frames + 1):
            write_image(data / clip / f"{i:05d}.jpg", black)
    (folder / "datasets" / "rain_clips").symlink_to(data)
    (folder / "data").symlink_to(data)

    for path in FILES:
        opt = yaml.safe_load((OPTIONS / path).read_text())
        keywords = {key: value for key, value in opt["network_g"].items() if key != "type"}
        state = NETWORKS[opt["network_g"]["type"]](**keywords).state_dict()
        if "train" in opt:
            file = folder / "experiments" / opt["name"] / "models" / "net_g_latest.pth"
            file.parent.mkdir(parents=True)
            torch.save({"params": state, "params_ema": state}, file)
        else:
            file = folder / str(opt["path"]["pretrain_network_g"])
            if file.parent.name == "weights":  # published by others, as bare state dicts
                file.parent.mkdir(exist_ok=True)
                torch.save(state, file)
            elif opt["path"]["pretrain_network_g"] is None:
                torch.save(state, folder / ROW)
            scores = Scores()
            scores.record("a1", "00001", score_frame(black, black + 1))
            meta = {"network": opt["name"], "dataset": next(iter(opt["datasets"].values()))["name"]}
            results.write(folder / "results" / opt["name"], meta["dataset"], scores, meta)
    return folder


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_builds_and_fits_what_it_starts_from(path, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    opt = parse(OPTIONS / path, monkeypatch)
    if not opt["is_train"]:
        opt["path"]["pretrain_network_g"] = opt["path"]["pretrain_network_g"] or ROW
    from csd_plugin.models.preflight import check_run

    assert path.parts[0] == "quickstart" or opt["name"] == path.stem, "a file is named for its row"
    check_options(opt, str(path))
    check_run(opt)


def test_names_are_not_used_twice():
    names = [yaml.safe_load((OPTIONS / path).read_text())["name"] for path in FILES if path.parts[0] != "test"]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", PAPER, ids=str)
def test_the_papers_settings(path):
    opt = yaml.safe_load((OPTIONS / path).read_text())
    data = opt["datasets"]["train"]
    assert (data["num_frame"], data["num_target"], data["gt_size"], data["batch_size_per_gpu"]) == (11, 5, 128, 4)
    assert data["scale_range"] == [0.4, 2.0]
    assert data["use_hflip"] and data["use_vflip"] and data["random_reverse"]

    train = opt["train"]
    assert (train["optim_g"]["type"], train["optim_g"]["lr"], train["total_iter"]) == ("Adam", 1e-4, 100 * 200)
    schedule = train["scheduler"]
    assert schedule["milestones"] == list(range(15 * 200, 100 * 200, 15 * 200))
    assert (schedule["type"], schedule["gamma"]) == ("MultiStepLR", 0.5)
    if not path.stem.endswith("_fakd"):  # which reconstructs in its own way
        assert train["pixel_opt"] == {"type": "PyramidSSIMLoss", "scale_weights": [0.6, 0.2, 0.2]}
    assert "autocast" not in train
    if path.parts[0] == "distill":
        assert opt["network_t"] == {"type": "SLDNet", "preset": "teacher"}
    if path.stem.endswith("_csd"):
        assert train["distill_opt"] == {"type": "CSD", "weights": {"spatial": 0.1, "temporal": 0.1}}


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "distill"], ids=str)
def test_a_student_meets_the_same_data_and_schedule_in_both_stages(path):
    stage2 = yaml.safe_load((OPTIONS / path).read_text())
    stage1 = yaml.safe_load((OPTIONS / "train" / re.sub("_(csd|srkd|std|fakd)", "", path.name)).read_text())
    assert stage2["datasets"] == stage1["datasets"]
    assert stage2["network_g"] == stage1["network_g"]
    for opt in (stage1, stage2):
        opt["train"].pop("distill_opt", None)
        if path.stem.endswith("_fakd"):  # which reconstructs in its own way
            del opt["train"]["pixel_opt"]
        if "cpu" in path.stem:
            del opt["train"]["total_iter"], opt["train"]["scheduler"]["periods"]
    assert stage2["train"] == stage1["train"]


def test_every_key_is_explained_beside_the_files():
    text = (OPTIONS / "README.md").read_text()
    classes = [sections.RunSection, sections.TrainSection]
    classes += [sections.dataset_section(cls) for cls in DATASETS.values()]
    classes += [sections.ValSection, sections.LoggerSection, sections.TapsSection, sections.InterfaceSection]
    classes += [sections.WeightSection]
    classes += [sections.objective_section(name) for name in OBJECTIVES]
    classes += [sections.section_of(cls) for cls in (*NETWORKS.values(), *LOSSES.values())]
    keys = {key for cls in classes for key in cls.model_fields}
    assert [key for key in sorted(keys) if f"`{key}`" not in text and f"`{key}: " not in text] == []
    assert [str(path) for path in FILES if path.parts[0] not in text] == []


# ---------------------------------------------------------------------- mistakes

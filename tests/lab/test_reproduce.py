"""`csd reproduce`: slices that restart from weights, and what is packed of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from synthetic import moving_scene, write_image
from test_matrix import Calls, write
from toolbox import STUDENT, distill_options, scored_set, train_options

from csd_plugin.archs.checkpoint import load_network
from csd_plugin.cli import main
from csd_plugin.lab.matrix import read_matrix, runs_of
from csd_plugin.lab.reproduce import continued


@pytest.fixture
def clips(tmp_path) -> tuple[Path, Path]:
    for number, folder in enumerate(("clean", "held_out")):
        for i, frame in enumerate(moving_scene(9, 30, 40, number), start=1):
            write_image(tmp_path / folder / f"clip{number}" / f"{i:05d}.png", frame)
    return tmp_path / "clean", tmp_path / "held_out"


@pytest.fixture
def matrix(tmp_path) -> Path:
    data = Path("datasets/rain_clips")
    options = tmp_path / "options"
    many = {"datasets.train.dataset_enlarge_ratio": 4}
    write(options / "teacher.yml", train_options(data, network_g={**STUDENT, "num_feat": 5}, **many))
    student = distill_options(data, Path("x.pth"), network_t={**STUDENT, "num_feat": 5}, **many)
    write(options / "student.yml", student)
    test = {key: student[key] for key in ("scale", "num_gpu", "manual_seed", "network_g")}
    test |= {"name": "row", "model_type": "VideoDerainModel", "val": {"save_img": False, "suffix": None}}
    test |= {"datasets": {"test_1": scored_set(data, name="validation")}, "path": {"pretrain_network_g": None}}
    write(options / "test.yml", test)
    rows = {
        "input": {"input": True},
        "teacher": {"base": "teacher.yml"},
        "small": {"base": "student.yml", "start": {"network_t": "teacher"}},
    }
    return write(options / "matrix.yml", {"name": "ours", "runs": "r", "test": "test.yml", "rows": rows})


def test_a_further_slice_starts_from_the_weights_of_the_one_before(matrix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("teacher", "small"):
        file = tmp_path / "experiments" / f"r_slice1_{name}" / "models" / "net_g_latest.pth"
        file.parent.mkdir(parents=True)
        file.touch()
    first = runs_of(continued(read_matrix(matrix), 1), matrix)
    assert first["r_slice1_small"].options["path"]["pretrain_network_g"] is None
    second = runs_of(continued(read_matrix(matrix), 2), matrix)
    path = second["r_slice2_small"].options["path"]
    assert path["pretrain_network_g"] == "experiments/r_slice1_small/models/net_g_latest.pth"
    assert path["pretrain_network_t"] == "experiments/r_slice2_teacher/models/net_g_latest.pth"


def test_from_clean_clips_to_packed_networks_in_two_slices(matrix, clips, launcher, monkeypatch, capsys):
    monkeypatch.chdir(launcher.folder)
    calls = Calls(launcher, monkeypatch)
    command = ["reproduce", str(matrix), "--clean", str(clips[0]), "--validation", str(clips[1])]
    assert main(command) == 0
    assert calls.jobs == [
        "train r_slice1_teacher",
        "test r_slice1_teacher",
        "train r_slice1_small",
        "test r_slice1_small",
    ]
    calls.jobs.clear()
    assert main(command) == 0
    assert calls.jobs[0] == "train r_slice2_teacher" and len(calls.jobs) == 4

    folder = Path("results/ours/weights")
    catalogue = json.loads((folder / "networks.json").read_text())["networks"]
    psnrs = [
        json.loads(Path(f"results/r_slice{n}_small/validation.json").read_text())["average"]["nturain_y"]["psnr"]
        for n in (1, 2)
    ]
    assert catalogue["small"]["scores"]["validation"]["nturain_y"]["psnr"] == pytest.approx(max(psnrs), abs=1e-3)
    assert "best of 2 slices" in catalogue["small"]["recipe"]
    assert load_network(folder / "small.pth").num_feat == STUDENT["num_feat"]
    assert "small" in (folder / "networks.md").read_text()
    assert (
        yaml.safe_load(Path("results/r_slice1_runs/options/r_slice1_small.yml").read_text())["name"] == "r_slice1_small"
    )

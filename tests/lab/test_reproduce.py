"""`csd reproduce`: slices that restart from weights, and what is packed of them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from synthetic import moving_scene, write_image, write_ntu_rain
from test_matrix import Calls, write
from toolbox import STUDENT, distill_options, scored_set, train_options

from csd_plugin.archs.checkpoint import load_network
from csd_plugin.cli import main
from csd_plugin.lab import job
from csd_plugin.lab.matrix import read_matrix, runs_of
from csd_plugin.lab.reproduce import _texts, continued
from csd_plugin.report.grid import FORMATS
from csd_plugin.weights import packing


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


def test_a_row_whose_weights_are_all_0_is_no_distilled_network(matrix):
    content = yaml.safe_load(matrix.read_text())
    student = content["rows"]["small"]
    weights = {"none": {"spatial": 0, "temporal": 0.0}, "one": {"spatial": 0, "temporal": 0.1}}
    rows = {name: {**student, "set": {"train.distill_opt.weights": value}} for name, value in weights.items()}
    write(matrix, content | {"rows": content["rows"] | rows})
    runs = runs_of(read_matrix(matrix), matrix)
    what = {row: _texts(runs[f"r_{row}"], 1)["what"] for row in ("teacher", "small", *rows)}
    alone, taught = "student2", "student2 distilled"
    assert what == {"teacher": alone, "small": taught, "none": alone, "one": taught}


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


def test_a_slice_takes_the_same_command_up_again(matrix, clips, launcher, monkeypatch, capsys):
    monkeypatch.chdir(launcher.folder)
    calls = Calls(launcher, monkeypatch)
    calls.fail_at = "train r_slice1_small"
    command = ["reproduce", str(matrix), "--clean", str(clips[0]), "--validation", str(clips[1])]
    assert main(command) == 2
    assert "slice 1, the first" in capsys.readouterr().err
    calls.jobs.clear()
    calls.fail_at = ""
    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_catalogue", interrupt)
        assert main([*command, "--minutes", "1"]) == 130  # a budget that comes too late is no reason to stop
    said = capsys.readouterr().err
    assert "slice 1, resumed" in said and "--minutes 1 is not followed: r_slice1_teacher has begun" in said
    assert calls.jobs == ["train r_slice1_small", "test r_slice1_small"]
    with monkeypatch.context() as patch:
        patch.setattr(job, "FORMATS", FORMATS | {".html": interrupt})
        assert main(command) == 130
    assert main(command) == 0
    said = capsys.readouterr()
    assert "slice 1, resumed" in said.err and "packed: small, teacher into" in said.out
    assert len(calls.jobs) == 2  # nothing was trained for what was interrupted after it
    assert {file.name for file in Path("results/ours_slice1").iterdir()} == {f"table{suffix}" for suffix in FORMATS}

    networks = Path("results/ours/weights/networks.md").read_text()
    rainy = json.loads(Path("results/r_slice1_input/validation.json").read_text())["average"]["nturain_y"]["psnr"]
    assert f"{rainy:.2f}" in networks.splitlines()[-1]

    assert main(["reproduce", str(matrix), "--retrain", "teacher"]) == 2
    assert "slice 2 has not begun" in capsys.readouterr().err
    assert main(["reproduce", str(matrix), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "slice 2, starting from the weights of slice 1" in said.err
    assert "r_slice2_small" in said.out and "missing" in said.out
    assert not Path("results/r_slice2_runs").exists()


def test_slices_validated_on_other_frames_are_not_compared(matrix, clips, launcher, monkeypatch, capsys):
    monkeypatch.chdir(launcher.folder)
    Calls(launcher, monkeypatch)
    assert main(["reproduce", str(matrix), "--clean", str(clips[0]), "--validation", str(clips[1])]) == 0
    file = matrix.parent / "test.yml"
    options = yaml.safe_load(file.read_text())
    options["datasets"]["test_1"]["frame_range"] = [2, 3]
    write(file, options)
    capsys.readouterr()
    assert main(["reproduce", str(matrix)]) == 0
    assert (
        "small: slices validated on other frames than the latest one are not compared with it"
        in capsys.readouterr().out
    )
    catalogue = json.loads(Path("results/ours/weights/networks.json").read_text())["networks"]
    assert catalogue["small"]["scores"]["validation"]["frames"] == 2


def more_frames(folder: Path, name: str, count: int) -> Path:
    for i, frame in enumerate(moving_scene(count, 30, 40, 7), start=1):
        write_image(folder / name / f"{i:05d}.png", frame)
    return folder


@pytest.mark.parametrize("case", ["the same", "inside", "too short", "none", "no validation"])
def test_clips_that_do_not_fit_are_said_before_any_rain(case, matrix, clips, tmp_path, monkeypatch, capsys):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    clean = str(clips[0])
    given = {
        "the same": ["--clean", clean, "--validation", clean],
        "inside": ["--clean", clean, "--validation", f"{clean}/clip0"],
        "too short": ["--clean", clean, "--validation", str(more_frames(tmp_path / "short", "brief", 2))],
        "none": [],
        "no validation": ["--clean", clean],
    }
    messages = {
        "the same": "clip0 is in --clean and in --validation",
        "inside": "clip0 is in --clean and in --validation",
        "too short": "brief: 2 frames, datasets.test_1 of the test set needs 3",
        "none": "give a folder of clean clips with --clean",
        "no validation": "give a folder of clean clips with --validation",
    }
    assert main(["reproduce", str(matrix), *given[case]]) == 2
    assert messages[case] in capsys.readouterr().err
    assert list(work.iterdir()) == []


def test_other_pairs_train_too_where_they_lie_in_the_data_before(matrix, clips, launcher, monkeypatch, capsys):
    monkeypatch.chdir(launcher.folder)
    Calls(launcher, monkeypatch)
    write_ntu_rain(Path("other"))
    root = Path("datasets/rain_clips/Dataset_Training_Synthetic")
    shutil.copytree("other/Dataset_Training_Synthetic", root)
    before = {folder.name for folder in root.iterdir()}
    command = ["reproduce", str(matrix), "--clean", str(clips[0]), "--validation", str(clips[1])]
    assert main(command) == 0
    assert {folder.name for folder in root.iterdir()} == before | {"clip0_GT", *(f"clip0_Rain_0{v}" for v in "1234")}
    assert main([*command, "--dry-run"]) == 0  # the same clips again
    capsys.readouterr()
    assert main(["reproduce", str(matrix), "--clean", str(clips[1])]) == 2
    assert "--clean: " in capsys.readouterr().err


def test_data_made_by_hand_stays_as_it_is(matrix, clips, launcher, monkeypatch, capsys):
    monkeypatch.chdir(launcher.folder)
    calls = Calls(launcher, monkeypatch)
    assert main(["rain", str(clips[0]), "datasets/rain_clips", "--quality", "75"]) == 0
    test = ["--layout", "testing", "--quality", "75", "--seed", "1000"]
    assert main(["rain", str(clips[1]), "datasets/rain_clips", *test]) == 0
    calls.fail_at = "train r_slice1_small"
    assert main(["reproduce", str(matrix)]) == 2
    capsys.readouterr()
    assert main(["reproduce", str(matrix), "--validation", str(clips[0])]) == 2
    assert "was made without the clip clip0" in capsys.readouterr().err
    clips = ('"abc"', '[["a"]]', "[1]", "null", "{}")
    counts = ("Infinity", "NaN", "9" * 400, "-1", "0", "1.0", "true", '"1"', "1000000000")
    damaged = ["[", "[]", '{"clips": ["clip1"]}', *(f'{{"clips": {one}, "variants": 1}}' for one in clips)]
    for content in (*damaged, *(f'{{"clips": ["clip1"], "variants": {count}}}' for count in counts)):
        (Path("datasets/rain_clips/.rain/test_clips.json")).write_text(content)
        assert main(["reproduce", str(matrix)]) == 2
        error = capsys.readouterr().err
        assert "test_clips.json is damaged" in error and len(error.splitlines()) <= 2


def test_later_slices_stay_with_the_clips_of_the_first(matrix, clips, launcher, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(launcher.folder)
    calls = Calls(launcher, monkeypatch)
    calls.fail_at = "train r_slice1_teacher"
    both = ["--clean", str(clips[0]), "--validation", str(clips[1])]
    assert main(["reproduce", str(matrix), *both]) == 2
    calls.fail_at = ""
    held_out = sorted(Path("datasets").rglob("*_GT"))
    other = more_frames(tmp_path / "other", "another", 9)
    assert main(["reproduce", str(matrix), "--validation", str(other)]) == 2
    assert "--validation" in capsys.readouterr().err
    more_frames(clips[0], "another", 9)
    assert main(["reproduce", str(matrix), *both]) == 2
    assert "was made without the clip another" in capsys.readouterr().err
    assert sorted(Path("datasets").rglob("*_GT")) == held_out

    shutil.rmtree(clips[0] / "another")
    shutil.rmtree(next(Path("datasets").rglob("clip0_Rain_03")))  # as if rendering had been interrupted
    assert main(["reproduce", str(matrix)]) == 2
    assert "the rain on clip0 is not complete; give --clean again" in capsys.readouterr().err
    assert main(["reproduce", str(matrix), *both]) == 0


def interrupt(*_):
    raise KeyboardInterrupt


FACTS = {
    **dict.fromkeys(("what", "preset", "stored_as", "trained_on", "recipe", "license", "sha256"), "x"),
    **{"numbers": {}, "parameters": 1, "multiply_adds": 1, "scores": {}},
}
SCORE = {
    **{"clips": ["a"], "frames": 1, "skip": [0, 0]},
    **{key: {"psnr": 30.0, "ssim": 0.9} for key in ("nturain_y", "rgb")},
}


def catalogue(facts=FACTS, **more):
    return json.dumps({"rainy": {}, "networks": {"small": facts}, **more}).encode()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"{}", b"\xff", b"null", b'{"rainy": {}, "networks": []}'),
        catalogue(3),
        catalogue(FACTS | {"new": 1}),
        catalogue({key: FACTS[key] for key in list(FACTS)[1:]}),
        catalogue(FACTS | {"what": 3}),
        catalogue(FACTS | {"parameters": "1"}),
        catalogue(FACTS | {"multiply_adds": float("nan")}),
        catalogue(FACTS | {"scores": {"validation": {}}}),
        catalogue(rainy=[]),
        catalogue(rainy={"validation": SCORE | {"skip": [0]}}),
        catalogue(rainy={"validation": SCORE | {"rgb": {"psnr": float("inf"), "ssim": 1}}}),
        catalogue(rainy={"validation": SCORE | {"rgb": {"psnr": "nan", "ssim": 1}}}),
        catalogue(left=3),
        catalogue(left={"../x": FACTS}),
    ],
)
def test_a_damaged_catalogue_is_said_before_anything_is_trained(content, matrix, clips, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = Path("results/ours/weights/networks.json")
    file.parent.mkdir(parents=True)
    file.write_bytes(catalogue(rainy={"validation": SCORE | {"rgb": {"psnr": "inf", "ssim": 1}}}, left={"old": FACTS}))
    command = ["reproduce", str(matrix), "--clean", str(clips[0]), "--validation", str(clips[1])]
    assert main([*command, "--dry-run"]) == 0
    file.write_bytes(content)
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "networks.json: damaged (" in error and len(error.splitlines()) == 1
    assert not Path("datasets").exists() and not Path("experiments").exists()


def test_a_dry_run_of_the_first_slice_knows_the_data_to_come(matrix, clips, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["reproduce", str(matrix), "--clean", str(clips[0]), "--validation", str(clips[1]), "--dry-run"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"rain on the clips of {clips[0]}" in said and "left out" not in said
    assert re.search(r"r_slice1_input +given +to do: test", said)
    assert not Path("datasets").exists()

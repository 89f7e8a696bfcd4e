"""The quickstart as a user runs it, with networks and iterations cut down to seconds."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import pytest
import quickstart as tool
import warm
import yaml
from videos import make_video, picture

from csd_plugin.data.layout import find_sequences
from csd_plugin.data.stores import open_store
from csd_plugin.metrics.results import load_results

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def quickstart(tmp_path, monkeypatch):
    options = tmp_path / "options"
    shutil.copytree(tool.OPTIONS / "matrix", options / "matrix")
    (options / "quickstart").mkdir()
    for path in (tool.OPTIONS / "quickstart").glob("*.yml"):
        opt = yaml.safe_load(path.read_text(encoding="utf-8"))
        for network in ("network_g", "network_t"):
            if network in opt:
                opt[network]["num_feat"] = 4
        if "train" in opt:
            opt["train"]["total_iter"] = 2
            opt["datasets"]["train"]["gt_size"] = 16
        (options / "quickstart" / path.name).write_text(yaml.safe_dump(opt, sort_keys=False), encoding="utf-8")
    monkeypatch.setattr(tool, "OPTIONS", options)
    monkeypatch.setattr(tool, "TRAIN_PHOTOS", tool.TRAIN_PHOTOS[:2])
    monkeypatch.setattr(tool, "SCENE_FRAMES", 10)
    monkeypatch.setattr(tool, "TEST_FRAMES", 3)
    monkeypatch.setattr(tool, "SCENE_SIZE", (32, 48))
    monkeypatch.chdir(tmp_path)
    return tool


def in_a_fork(job, run, options, space, bar, processes=1):
    """A run of `csd table` that starts at once; how it is started otherwise is in tests/lab."""
    file = space.options(run, job)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(options, sort_keys=False))
    done = warm.python("-m", f"csd_plugin.{job}", "-opt", file, environment=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]


def test_from_nothing_to_a_table_and_a_picture_and_again(quickstart, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("csd_plugin.lab.runner._launch", in_a_fork)
    assert quickstart.main([]) == 0
    work = tmp_path / "quickstart"
    table = (work / "table.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    assert rows[-4:] == ["| rainy input", "| teacher", "| student2 alone", "| student2 + CSD"]
    assert len(load_results(work / "results" / "quickstart_student2_csd" / "test.json").scores.clips) == 1
    for name in ("shipped", "distilled"):
        assert cv2.imread(str(work / f"{name}.png")) is not None
        assert len(list((work / name).iterdir())) == 3

    # run again: nothing is trained or tested a second time
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("csd_plugin.lab.runner._launch", lambda *args: pytest.fail("a finished step ran again"))
    monkeypatch.setattr(quickstart, "derain_clip", lambda *_: None)
    capsys.readouterr()
    assert quickstart.main([]) == 0
    assert "student2 + CSD" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_one_line(quickstart, capsys):
    assert quickstart.main(["nowhere"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "quickstart: error: nowhere is not a folder; give clean clips, or a data set in NTURain's layout"
    ]


def test_one_clip_is_too_few(quickstart, tmp_path, capsys, monkeypatch):
    (tmp_path / "clips" / "only").mkdir(parents=True)
    assert quickstart.main(["clips"]) == 2
    assert "no images, folders of images or video files in it" in capsys.readouterr().err
    make_video(tmp_path / "clips" / "mine.mp4")
    monkeypatch.chdir(tmp_path)
    assert quickstart.main(["clips"]) == 2
    assert "clips has one clip, mine; give at least 2, folders or videos" in capsys.readouterr().err


def test_clips_may_be_whatever_csd_rain_takes(quickstart, tmp_path):
    """Videos, next to folders of frames; what is no clip does not count."""
    source = tmp_path / "clips"
    for name in ("b", "z_notes", ".z"):
        (source / name).mkdir(parents=True)
    for name in ("a.mp4", "c.mp4"):
        make_video(source / name)
    for number in range(9):
        cv2.imwrite(str(source / "b" / f"{number}.png"), picture(number))
    data = quickstart.prepare_data(source)
    keys = open_store(str(data)).keys()
    assert {s.name for s in find_sequences(keys, "train")} == {"a_Rain_01", "a_Rain_02", "b_Rain_01", "b_Rain_02"}
    assert {s.name for s in find_sequences(keys, "test")} == {"c"}

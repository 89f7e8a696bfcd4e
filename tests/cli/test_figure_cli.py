"""`csd figure`: every kind by its command, and one line for what does not fit."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from synthetic import moving_scene, rain_on, write_image

from csd_plugin.cli import main


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    root = tmp_path_factory.mktemp("clip")
    truth = moving_scene(3, 32, 40, 0)
    for i, (clean, rainy) in enumerate(zip(truth, rain_on(truth, 1), strict=True)):
        write_image(root / f"truth/{i:05d}.png", clean)
        write_image(root / f"rain/{i:05d}.png", rainy)
    return ["--clip", str(root / "rain"), "--truth", str(root / "truth")]


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("crops", ["--frame", "0", "--box", "0,0,20,16"], "frame 0, --box 0,0,20,16"),
        ("errors", ["--peak", "30"], "frame 1, --peak 30"),
        ("slice", ["--column", "3", "--end", "2"], "2 frames"),
        ("features", ["--tap", "tail"], "frame 1, realtime 32x16x20"),
    ],
)
def test_pictures(clip, tmp_path, capsys, kind, more, said):
    out = tmp_path / "out.png"
    assert main(["figure", kind, *clip, "--models", "realtime", "--out", str(out), *more]) == 0
    assert capsys.readouterr().out == f"{said}\nwritten: {out}\n"
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (9, 2)])
def test_details_of_frames_that_are_smaller_than_a_detail(tmp_path, capsys, size):
    for i in range(3):
        write_image(tmp_path / f"rain/{i:05d}.png", np.full((*size, 3), 50 * i, np.uint8))
    out = tmp_path / "out.png"
    arguments = ["--clip", str(tmp_path / "rain"), "--models", "tiny", "--out", str(out)]
    if size == (1, 1):
        assert "at least 2x2 pixels" in complaint(capsys, "crops", *arguments)
        return
    assert main(["figure", "crops", *arguments]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["crops", "slice", "errors"])
def test_frames_so_narrow_that_a_figure_would_fill_the_memory_are_one_line(tmp_path, capsys, monkeypatch, kind):
    monkeypatch.setattr("csd_plugin.report.figures.sheet.Sheet.save", lambda *_: pytest.fail("it was drawn"))
    for i in range(2):
        for name in ("rain", "truth"):
            write_image(tmp_path / f"{name}/{i:05d}.png", np.full((900, 2, 3), 50 * i, np.uint8))
    out = tmp_path / "out.png"
    folders = ["--clip", str(tmp_path / "rain"), "--truth", str(tmp_path / "truth")]
    folders = folders[: 4 if kind == "errors" else 2]  # SSIM takes none so small
    arguments = [*folders, "--models", f"again={tmp_path / 'rain'}", "--out", str(out)]
    assert "frames of 2x900 make a figure" in complaint(capsys, kind, *arguments)
    assert not out.exists()


def test_video(clip, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    arguments = ["--models", f"again={clip[1]}", "--split", "--out", str(out)]
    assert main(["figure", "video", *clip, *arguments]) == 0
    assert "3 frames" in capsys.readouterr().out
    assert out.exists()
    before = out.read_bytes()
    assert main(["figure", "video", *clip, "--models", "realtime", "--out", str(out)]) == 2
    assert "already exists; replace it with --overwrite" in capsys.readouterr().err and out.read_bytes() == before
    assert main(["figure", "video", *clip, "--models", "realtime", "--out", str(out), "--overwrite"]) == 0


def complaint(capsys, *arguments):
    assert main(["figure", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_what_does_not_fit_is_one_line(clip, tmp_path, capsys, monkeypatch):
    out = ["--out", str(tmp_path / "x.png")]
    assert "no checkpoint none" in complaint(capsys, "crops", *clip, "--models", "none", *out)
    assert "does not exist" in complaint(capsys, "crops", "--clip", str(tmp_path / "none"), *out)
    assert "ends in .png" in complaint(capsys, "crops", *clip, "--out", str(tmp_path / "x.doc"))
    assert "not both" in complaint(capsys, "crops", *clip, "--box", "0,0,9,9", "--boxes", "2", *out)
    assert "at least 2x2" in complaint(capsys, "crops", *clip, "--box", "0,0,1,1", *out)
    assert "make it first" in complaint(capsys, "slice", *clip, "--out", str(tmp_path / "none/x.png"))
    assert "no frames from 7" in complaint(capsys, "errors", *clip, "--frame", "7", *out)
    assert "pictures side by side do not fit" in complaint(capsys, "crops", *clip, *["--box=0,0,9,9"] * 60, *out)
    for wrong, hint in (("--box=1,2,3", "x,y,width,height"), ("--frame=-1", "number from 0"), ("--boxes=0", "from 1")):
        with pytest.raises(SystemExit):
            main(["figure", "crops", *clip, wrong, *out])
        assert hint in capsys.readouterr().err
    monkeypatch.setattr("csd_plugin.report.figures.sources.Scene.frame", None)  # nothing is computed before
    for module, extra, kind in (
        ("mmengine.visualization", "train", "features"),
        ("matplotlib.figure", "figures", "crops"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        hint = f"needs the package {module.partition('.')[0]}: pip install '.[{extra}]'"
        assert hint in complaint(capsys, kind, *clip, "--models", "realtime", *out)

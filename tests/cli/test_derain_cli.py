"""`csd derain` from the command line."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch

from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.cli import main
from csd_plugin.cli.derain import position
from csd_plugin.data.video import open_reader


@pytest.fixture
def frames(tmp_path):
    """A folder of five small frames, and the same as 'truth', a little darker."""
    for name, offset in (("rain", 0), ("truth", 4)):
        (tmp_path / name).mkdir()
        for number in range(5):
            image = np.full((24, 32, 3), 100 + 5 * number, np.uint8) + np.arange(32, dtype=np.uint8)[None, :, None]
            cv2.imwrite(str(tmp_path / name / f"{number:05d}.png"), image - offset)
    return tmp_path


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "net_g.pth"
    torch.save({"params": SLDNet(preset="student2", num_feat=4).state_dict()}, path)
    return str(path)


def derain(*arguments) -> int:
    return main(["derain", *map(str, arguments), "--device", "cpu"])


def test_folder_to_video_and_folder(frames, model, capsys):
    assert derain(frames / "rain", frames / "out.mp4", "--model", model, "--fps", 10) == 0
    with open_reader(frames / "out.mp4") as reader:
        assert reader.fps == 10 and len(list(reader)) == 5
    assert derain(frames / "rain", frames / "out", "--model", model, "--start", 1, "--end", "0.12s") == 0
    assert sorted(path.name for path in (frames / "out").iterdir()) == ["00001.png", "00002.png"]
    assert "2 frames written" in capsys.readouterr().out


def test_compare_and_side_by_side(frames, model, capsys):
    options = ("--model", model, "--side-by-side", "--compare", frames / "truth")
    assert derain(frames / "rain", frames / "out", *options) == 0
    shown = cv2.imread(str(frames / "out" / "00002.png"))
    assert shown.shape == (24, 96, 3)
    assert np.array_equal(shown[:, :32], cv2.imread(str(frames / "rain" / "00002.png")))
    assert np.array_equal(shown[:, 64:], cv2.imread(str(frames / "truth" / "00002.png")))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("rainy") and f"rgb {20 * np.log10(255 / 4):.2f} dB" in lines[1]
    assert lines[2].startswith("derained")


def test_mistakes_are_one_line_and_leave_nothing(frames, model, capsys):
    (frames / "bad.mp4").write_bytes(b"no video")
    (frames / "short").mkdir()
    cv2.imwrite(str(frames / "short" / "1.png"), np.zeros((24, 32, 3), np.uint8))
    before = sorted(frames.iterdir())
    for arguments, message in (
        ((frames / "rain", frames / "o.mp4"), "no --model is given"),
        ((frames / "rain", frames / "o.mp4", "--model", "nothing.pth"), "there is no checkpoint nothing.pth"),
        ((frames / "bad.mp4", frames / "o.mp4", "--model", model), "not a video"),
        ((frames / "rain", frames / "o.mp4", "--model", model, "--compare", frames / "short"), "ends after 1 frames"),
        ((frames / "rain", frames / "rain", "--model", model), "is the input too"),
    ):
        assert derain(*arguments) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error and error.startswith("csd derain: error: ")
        assert sorted(frames.iterdir()) == before


def test_positions():
    assert position("120") == 120 and isinstance(position("120"), int)
    assert position("4.8s") == position("0:04.8") == position("4.8") == Fraction(24, 5)
    assert position("1:02:03.5") == Fraction(7447, 2)
    with pytest.raises(SystemExit):
        derain("in.mp4", "out.mp4", "--start", "soon")


def test_the_path_to_frames_needs_no_training_toolbox():
    code = (
        "import sys; sys.modules['basicsr'] = None; "
        "import csd_plugin.inference.files, csd_plugin.cli.derain, csd_plugin.metrics.scores"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

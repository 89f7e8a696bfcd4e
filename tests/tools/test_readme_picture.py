"""tools/readme_picture.py: the README's picture, and what it says of wrong flags before any work is done."""

from __future__ import annotations

import pytest
import readme_picture
from PIL import Image
from synthetic import moving_scene, write_image


@pytest.fixture
def clip(tmp_path):
    """A folder of three clean frames, 64 by 48."""
    folder = tmp_path / "clip"
    folder.mkdir()
    for number, frame in enumerate(moving_scene(3, 48, 64, seed=1)):
        write_image(folder / f"{number:03}.png", frame)
    return folder


def test_the_picture_shows_both_halves(clip, tmp_path):
    out = tmp_path / "out.gif"
    arguments = [str(clip), str(out), "--frames", "2", "--box", "8", "4", "20", "16", "--model", "tiny"]
    assert readme_picture.main(arguments) == 0
    with Image.open(out) as picture:
        assert picture.size == (20 + readme_picture.GAP + 20, 16) and picture.n_frames == 2


@pytest.mark.parametrize("flags", [["--box", "60", "0", "20", "16"], ["--start", "3"]])
def test_what_the_clip_lacks_is_said_in_one_line(clip, tmp_path, monkeypatch, capsys, flags):
    monkeypatch.setattr(readme_picture, "Derainer", None)  # nothing is derained first
    assert readme_picture.main([str(clip), str(tmp_path / "out.gif"), *flags]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1


def test_no_picture_has_no_frames(clip, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        readme_picture.main([str(clip), str(tmp_path / "out.gif"), "--frames", "0"])
    assert stop.value.code == 2 and "--frames" in capsys.readouterr().err

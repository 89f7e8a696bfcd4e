"""A slice of the matrix of videos, and that the tool sees what it is there to see."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import video_matrix
from ffmpeg import needs_ffmpeg


@needs_ffmpeg
def test_a_slice_comes_through(tmp_path, capsys):
    assert video_matrix.main(["--count", "5", "--seed", "7", "--out", str(tmp_path / "table.md")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "5 cells, 0 failed"
    table = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert len(table) == 7 and all(row.count("|") == 8 for row in table)


@needs_ffmpeg
def test_a_loss_that_is_not_said_is_a_fault(tmp_path, monkeypatch):
    model = video_matrix.identity(tmp_path / "identity.pth")
    cell = next(cell for cell in video_matrix.cells() if cell.name == "avi mpeg4 8 bit variable libmp3lame to avi")
    honest = video_matrix.judge(cell, tmp_path, model)
    assert not honest.faults
    (tmp_path / "out.avi").unlink()
    derain = video_matrix.derain
    monkeypatch.setattr(video_matrix, "derain", lambda *files: (derain(*files)[0], []))
    silent = video_matrix.judge(cell, tmp_path, model)
    assert set(silent.faults) == set(honest.lost)


def test_what_differs_is_seen():
    cell = video_matrix.cells()[0]
    times = [Fraction(n, 25) for n in range(3)]
    about = {"codec_name": "h264", "pix_fmt": "yuv420p", "depth": "8", "aspect": "4:3", "color_range": "pc"}
    pixels = np.zeros((3, 4, 4, 3), np.float32)
    before = video_matrix.Facts(times, Fraction(1, 1000), pixels, about, [["a", "b"]], Fraction(0))

    def differing(**changes) -> list[str]:
        return video_matrix.compare(cell, before, replace(before, **changes))[0]

    assert differing() == []
    assert differing(frames=[Fraction(n, 24) for n in range(3)]) == ["times"]
    assert differing(frames=times[:2], pixels=pixels[:2]) == ["frames"]
    assert differing(pixels=pixels + 2.1) == ["colours"]
    for off, found in ((2.9, []), (3.1, ["colours"])):  # of one frame
        assert differing(pixels=pixels + np.float32([0, off, 0])[:, None, None, None]) == found
    assert differing(sound=[["a"]]) == ["sound"]
    assert differing(sound_begins=Fraction(1, 10)) == ["step of the sound"]
    assert differing(about={**about, "aspect": "1:1", "color_range": "tv"}) == ["aspect", "color_range"]


def test_without_ffmpeg_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(video_matrix.shutil, "which", lambda name: None)
    assert video_matrix.main([]) == 2
    assert "install them" in capsys.readouterr().err

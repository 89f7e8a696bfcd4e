"""`csd prepare` and tools/prepare_ntu_rain.py in-process; what they do is tested with `data.prepare`."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import prepare_ntu_rain
import pytest
from synthetic import TEST, write_image

from csd_plugin.cli import main


def prepare(*argv) -> int:
    return main(["prepare", *map(str, argv), "--jobs", "1"])


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_report(tiny_rain, tmp_path, capsys):
    assert prepare(tiny_rain, tmp_path / "out") == 0
    assert names(tmp_path / "out") == names(tiny_rain)
    text = capsys.readouterr().out
    assert "train    4 folders: t1_GT, t1_Rain_01, t2_GT, t2_Rain_01" in text
    assert ": 9 of 9\n" in text
    assert "missing of NTURain, real: ra2_Rain, ra3_Rain, ra4_Rain, rb1_Rain, rb2_Rain, rb3_Rain" in text
    assert prepare(tiny_rain, tmp_path / "out") == 0
    assert ": 0 of 9; the others are there already\n" in capsys.readouterr().out


def test_frames_that_do_not_pair_are_told(tiny_rain, tmp_path, capsys):
    shutil.copytree(tiny_rain / TEST, tmp_path / "in")
    (tmp_path / "in" / "a1_GT" / "00009.png").unlink()
    assert prepare(tmp_path / "in", tmp_path / "out") == 0
    assert "note: a1: 9 rainy and 8 clean frames do not pair" in capsys.readouterr().out


def test_clean_clips_are_sent_on_to_csd_rain(tmp_path, capsys):
    write_image(tmp_path / "clean" / "walk" / "00001.png", np.zeros((8, 8, 3), np.uint8))
    assert prepare(tmp_path / "clean", tmp_path / "out") == 2
    assert "`csd rain` adds rain to clean clips" in capsys.readouterr().err
    assert main(["data", str(tmp_path / "clean")]) == 0
    assert "`csd rain` adds rain to clean clips" in capsys.readouterr().out


def test_failures_give_status_2(tiny_rain, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a1_GT.zip", "a1_Rain.zip"):
        (tmp_path / "in" / name).write_bytes(b"PK\x03\x04 and no more")
    shutil.copytree(tiny_rain / TEST / "b1_GT", tmp_path / "in" / "b1_GT")
    assert prepare(tmp_path / "in", tmp_path / "out", "--lmdb", "source") == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 3 and all(line.startswith("csd prepare: error: ") for line in lines[:2])
    assert "no store was built" in lines[2] and ": 1 of 1" in printed.out


@pytest.mark.parametrize(
    "arguments",
    [("nowhere",), ("set", "--verify"), ("set", "--pattern", "{clip}"), ("set", "--pattern", "no/{clip}/{frame}")],
)
def test_errors_are_one_line(tiny_rain, tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").symlink_to(tiny_rain)
    assert prepare(arguments[0], "out", *arguments[1:]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith("csd prepare: error: ")
    assert not (tmp_path / "out").exists()


def test_tool(tiny_rain, tmp_path):
    with zipfile.ZipFile(tmp_path / "a1_Rain.zip", "w") as archive:
        for file in (tiny_rain / TEST / "a1_Rain").iterdir():
            archive.write(file, file.name)
    assert prepare_ntu_rain.main([str(tmp_path / "a1_Rain.zip"), str(tmp_path / "out")]) == 0
    assert names(tmp_path / "out" / TEST / "a1_Rain") == names(tiny_rain / TEST / "a1_Rain")


def test_many_names_are_cut_to_the_first_few():
    from csd_plugin.cli.prepare import _first

    names = [f"t{number}" for number in range(1, 239)]
    assert _first(names) == "t1, t2, t3, t4, t5, t6, t7, t8 and 230 more"
    assert _first(names[:8]) == ", ".join(names[:8])

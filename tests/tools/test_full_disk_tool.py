"""A small slice of the faults on disks, and that the tool sees what it is there to see."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import full_disk
import pytest
from faults import Disk, run_on, why_not

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"no faults can be made here: {why_not()}")


def test_nothing_is_lost(tmp_path):
    """As a command: it forks, and this process may have threads whose locks a fork would never see released."""
    only = ("derain to mkv", "prepare an archive", "score")
    command = [sys.executable, ROOT / "tools/full_disk.py", "--only", *only, "--sample", "8", "--seed", "1"]
    run = subprocess.run([*command, "--work", tmp_path], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    total = run.stdout.splitlines()[-1].split()
    assert total[0] == "all" and sum(map(int, total[1:3])) == 8


def test_a_full_disk_is_one_line_for_all_clips(tmp_path):
    world = full_disk.World(tmp_path)
    (world.folder / "tmp").mkdir()
    place = "out/data/Dataset_Training_Synthetic/.t#_GT.part"
    ended = world.run(("prepare", "in/data", "out/data", "--jobs", "1"), Disk((("mkdir", place), 1)))
    assert ended.status == 2
    [line] = ended.said.splitlines()
    assert line.startswith("csd prepare: error: out/data: ") and "no space left on device; make room there" in line


def leave_half():
    Path("out/b").write_text("hal")
    return 2


def lose_an_earlier_one():
    Path("out/a").unlink()
    return 2


def leave_a_draft():
    Path("out/.b.1.part").write_text("hal")
    return 2


@pytest.mark.parametrize(
    ("reaction", "outcome"),
    [
        (lose_an_earlier_one, "lost"),
        (leave_half, "half written"),
        (leave_a_draft, "half written"),
        (lambda: 1 / 0, "traceback"),
        (lambda: 2, "not told"),
        (lambda: 0, "not told"),
        (lambda: print("x: error: out/b: no room") or 2, "a line"),
    ],
)
def test_harm_is_seen(tmp_path, monkeypatch, reaction, outcome):
    """A command that puts a file in the place of an earlier one, and reacts so where it cannot."""

    def start(folder, line):
        os.chdir(folder)
        if line[0] == "before":
            Path("out/a").write_text("earlier")
            Path("out/b").write_text("earlier")
            return 0
        Path("out/c").write_text("whole")
        try:
            Path("out/c").replace("out/b")
        except OSError:
            Path("out/c").unlink()
            return reaction()
        return 0

    monkeypatch.setattr(full_disk, "_start", start)
    monkeypatch.setattr(full_disk, "_make_inputs", lambda given: (given / "x").write_text("given"))
    world, command = full_disk.World(tmp_path), full_disk.Command(("write",), before=(("before",),))
    reference = full_disk.refer(world, command)
    [write] = [write for write in reference.writes if write.operation == "rename"]
    assert full_disk.judge(world, command, reference, write, errno.EIO)[0] == outcome


def test_the_kernel_asks_at_every_kind_of_write(tmp_path):
    def write():
        (tmp_path / "folder").mkdir()
        file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        os.write(file, b"x")
        os.pwrite(file, b"x", 1)
        os.writev(file, [b"x"])
        os.ftruncate(file, 1)
        os.fsync(file)
        (tmp_path / "second").hardlink_to(tmp_path / "file")
        (tmp_path / "third").symlink_to("file")
        (tmp_path / "second").rename(tmp_path / "other")
        os.open(tmp_path / "file", os.O_RDONLY)
        return 5

    disk = Disk()
    ended = run_on(disk, write, tmp_path, tmp_path.with_suffix(".log"))
    assert ended.status == 5, ended.said
    found = [(write.operation, write.place) for write in disk.asked]
    assert found == [
        ("mkdir", "folder"), ("open", "file"), *[("write", "file")] * 3, ("size", "file"), ("sync", "file"),
        ("link", "second"), ("link", "third"), ("rename", "other"),
    ]  # fmt: skip

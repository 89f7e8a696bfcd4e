"""Machines where no temporary file can be made, as a read-only container: one line that says so, before long work."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import contextmanager

import pytest
from synthetic import moving_scene, write_image

from csd_plugin import extras, locks
from csd_plugin.adapt import run
from csd_plugin.cli import main
from csd_plugin.errors import CSDError
from csd_plugin.report.figures import sheet

LINE = "no folder for temporary files can be written to; set TMPDIR to one that can"


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A clip of frames; Python looks for its temporary folder where there is none."""
    monkeypatch.chdir(tmp_path)
    for number, frame in enumerate(moving_scene(12, 48, 56, 0)):
        write_image(tmp_path / "clip" / f"{number:05d}.png", frame)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/nowhere"])
    return tmp_path


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_jobs_that_need_some_say_so_before_they_work(work, capsys, monkeypatch):
    monkeypatch.setattr(run, "open_teacher", lambda *_, **__: pytest.fail("the teacher is not opened"))
    assert main(["adapt", "clip", "--teacher", "tiny", "--student", "tiny", "--out", "x.pth"]) == 2
    assert last_line(capsys) == f"csd adapt: error: {LINE}"
    assert main(["export", "tiny", "x.onnx"]) == 2
    assert last_line(capsys) == f"csd export: error: {LINE}"
    with pytest.raises(SystemExit) as ended, extras.or_exit("csd_plugin.train"):
        pytest.fail("nothing is imported")
    assert ended.value.code == 2 and last_line(capsys) == f"error: {LINE}"
    assert [path.name for path in work.iterdir()] == ["clip"]


def test_jobs_that_need_none_work(work, capsys):
    assert main(["derain", "clip", "clean", "--model", "tiny"]) == 0
    assert len(list((work / "clean").iterdir())) == 12


def test_matplotlib_without_a_folder_for_its_files_is_one_line(work, capsys, monkeypatch):
    @contextmanager
    def needed_by(_):
        raise OSError("Matplotlib requires access to a writable cache directory, but ..")
        yield

    monkeypatch.setattr(sheet, "needed_by", needed_by)
    assert main(["figure", "crops", "--clip", "clip", "--models", "tiny", "--out", "x.png"]) == 2
    assert "set MPLCONFIGDIR, or TMPDIR, to one that can be written to" in last_line(capsys)


@pytest.mark.parametrize("writable", [False, True])
def test_an_output_that_cannot_be_locked_says_what_is_in_the_way(work, monkeypatch, writable):
    """A read-only folder; or one that can be written to, in a read-only one, such as a container's volume."""

    def read_only(file):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))

    monkeypatch.setattr(locks, "_opened", read_only)
    monkeypatch.setattr(os, "access", lambda *_: writable)
    with pytest.raises((CSDError, OSError)) as caught, locks.alone(work / "clip"):
        pytest.fail("it is not locked")
    if writable:
        assert "No usable temporary directory" in str(caught.value)  # `users_line` knows it
    else:
        assert str(caught.value).startswith(f"{work / 'clip'}: cannot be written (Read-only file system)")

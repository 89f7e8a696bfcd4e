"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from csd_plugin import atomic
from csd_plugin.atomic import draft_folder, replacing, write_text


def test_a_file_is_replaced_at_the_end(tmp_path):
    path = tmp_path / "table.md"
    path.write_text("old")
    with replacing(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old" and draft.suffix == ".md" and draft.name.startswith(".")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_was_there_stays_after_an_error(tmp_path, error):
    path = tmp_path / "table.md"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as draft:
        draft.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_text_is_the_same_bytes_everywhere(tmp_path):
    write_text(tmp_path / "a.txt", "é\nb\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\nb\n"


def test_a_disk_without_room_is_told_by_the_file(tmp_path):
    resource = pytest.importorskip("resource", reason="limits of a file's size")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))  # a write that fails, as on a full disk, without a name
    try:
        with pytest.raises(OSError, match=r"page\.md") as caught:
            write_text(tmp_path / "page.md", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert caught.value.filename == str(tmp_path / "page.md")
    assert not list(tmp_path.iterdir())


def write(path):
    with replacing(path) as draft:
        draft.write_bytes(b"whole")
    return draft.name


@pytest.fixture
def left(tmp_path):
    """left(path, process) -> a draft of it, as a process of this number leaves it when it is killed."""

    def leave(path, process):
        other = tmp_path / "other"
        other.mkdir(exist_ok=True)
        name = write(other / path.name)
        draft = path.with_name(name.replace(f"-{os.getpid()}.", f"-{process}."))
        assert draft.name != name
        draft.write_bytes(b"half")
        return draft

    return leave


@pytest.fixture
def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_write_removes_what_killed_ones_have_left_of_the_same_file(tmp_path, left, gone):
    path = tmp_path / "o.png"
    dead, alive = left(path, gone), left(path, os.getppid())
    others = [left(tmp_path / name, gone) for name in ("p.png", "o.jpg", "o.1.png")]
    (tmp_path / ".o.4711.part").write_text("somebody else's")
    before = {*tmp_path.iterdir()}
    write(path)
    assert {*tmp_path.iterdir()} == before - {dead} | {path}
    for name in ("p.png", "o.jpg", "o.1.png"):
        write(tmp_path / name)
    assert not any(other.exists() for other in others) and alive.exists()


def test_what_another_machine_writes_stays_until_it_is_old(tmp_path, monkeypatch, left, gone):
    """Its processes cannot be seen from here."""
    path = tmp_path / "o.png"
    drafts = [left(path, gone), path.with_name(f".o.{gone}.part.png")]  # the latter is an earlier version's
    drafts[1].touch()
    drafts[0] = drafts[0].rename(re.sub(r"\.[0-9a-f]{6}-", ".abcdef-", str(drafts[0])))
    write(path)
    assert all(draft.exists() for draft in drafts)
    for draft in drafts:
        os.utime(draft, (0, 0))
    atomic._dead_drafts.cache_clear()  # as in another command
    write(path)
    assert [*tmp_path.glob(".*")] == []


def test_a_draft_may_be_a_folder(tmp_path, left, gone):
    path = tmp_path / "net.xml"
    dead = left(path, gone)
    dead.unlink()
    dead.mkdir()
    (dead / "net.bin").write_text("half")
    with draft_folder(path) as folder:
        (folder / "net.bin").write_text("whole")
        assert {folder} == {*tmp_path.glob(".*")}
    assert [*tmp_path.glob(".*")] == []


def test_errors_bear_the_name_of_the_file_not_of_its_draft(tmp_path, monkeypatch):
    """On a read-only disk removing the draft fails as writing it did, and hid it."""
    path = tmp_path / "o.png"

    def refuse(self, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    for name in ("write_bytes", "mkdir", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(OSError, match="Read-only") as caught:
        write(path)
    assert caught.value.filename == str(path)
    with pytest.raises(OSError, match="Read-only") as caught, draft_folder(path):
        pass
    assert caught.value.filename == str(path)

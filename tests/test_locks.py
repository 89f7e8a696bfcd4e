"""One command at a time for one output, and nothing left beside it."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import pytest

from csd_plugin.errors import CSDError
from csd_plugin.locks import alone

fcntl = pytest.importorskip("fcntl", reason="Windows locks by other means")


def is_refused(output: Path) -> bool:
    try:
        with alone(output):
            return False
    except CSDError as error:
        assert str(error).startswith(f"{output}: another command is writing there now")
        return True


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_lock_ends_with_what_holds_it(tmp_path):
    for _ in range(2):
        with alone(tmp_path / "out"):
            assert is_refused(tmp_path / "out") and not is_refused(tmp_path / "out2")
    assert list(tmp_path.iterdir()) == []


def test_commands_with_other_temporary_folders_meet(tmp_path, monkeypatch):
    """As a cluster's jobs have, each its own."""
    with alone(tmp_path / "out"):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "another"))
        assert is_refused(tmp_path / "out")
        (tmp_path / "link").symlink_to(tmp_path)
        assert is_refused(tmp_path / "link" / "out")


def test_folders_that_are_made_meanwhile_part_nobody(tmp_path):
    output = tmp_path / "experiments" / "here" / "run"
    with alone(output):
        for folder in (tmp_path / "experiments", tmp_path / "experiments" / "here", output):
            folder.mkdir()
            assert is_refused(output) and not is_refused(output.with_name("run2"))
    assert not is_refused(output) and files_below(tmp_path) == []


def test_a_folder_that_is_made_while_the_lock_is_taken_is_seen(tmp_path, monkeypatch):
    lock = fcntl.flock

    def late(*arguments):
        (tmp_path / "experiments").mkdir(exist_ok=True)
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", late)
    with alone(tmp_path / "experiments" / "run"):
        assert [path.name for path in files_below(tmp_path)] == [".run.csd_lock"]


def test_what_a_killed_process_has_left_is_no_lock(tmp_path):
    with alone(tmp_path / "not_yet" / "out"), alone(tmp_path / "out"):
        left = files_below(tmp_path)
    assert len(left) == 2
    for file in left:
        file.touch()
    (tmp_path / "not_yet").mkdir()
    assert not is_refused(tmp_path / "out") and not is_refused(tmp_path / "not_yet" / "out")
    assert files_below(tmp_path) == []


def test_somebody_elses_file_of_that_name_is_kept(tmp_path):
    (tmp_path / ".out.csd_lock").write_text("mine")
    with alone(tmp_path / "out"):
        assert is_refused(tmp_path / "out")
    assert (tmp_path / ".out.csd_lock").read_text() == "mine"


def test_who_waits_comes_next(tmp_path):
    came = threading.Event()

    def wait() -> None:
        with alone(tmp_path / "out", wait=True):
            came.set()

    waiting = threading.Thread(target=wait)
    with alone(tmp_path / "out"):
        waiting.start()
        assert not came.is_set()
    waiting.join(60)
    assert came.is_set() and files_below(tmp_path) == []


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_without_a_place_beside_the_output_temporary_files_lock_it(tmp_path, temporary):
    (tmp_path / ".out.csd_lock").mkdir()
    with alone(tmp_path / "out"):
        assert len(files_below(temporary)) == 1 and is_refused(tmp_path / "out")
    assert not is_refused(tmp_path / "out") and files_below(tmp_path) == []


def test_without_locks_beside_the_output_temporary_files_lock_it(tmp_path, temporary, monkeypatch):
    """As some network file systems are."""
    lock = fcntl.flock

    def nowhere_else(handle, how):
        if not any(os.path.samestat(os.fstat(handle), file.stat()) for file in files_below(temporary)):
            raise OSError(95, "Operation not supported")
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", nowhere_else)
    with alone(tmp_path / "out"):
        assert is_refused(tmp_path / "out") and len(files_below(tmp_path)) == 1
    assert files_below(tmp_path) == []


def test_what_has_taken_the_place_of_the_locks_is_named(tmp_path, temporary):
    """Temporary folders are everyone's, and the name of ours is known."""
    (tmp_path / ".out.csd_lock").mkdir()
    with alone(tmp_path / "out"):
        [locks] = temporary.iterdir()
    locks.rmdir()
    for occupy in (locks.touch, lambda: locks.symlink_to(tmp_path)):
        occupy()
        with pytest.raises(CSDError, match="not a folder of yours"), alone(tmp_path / "out"):
            pass
        locks.unlink()
    if hasattr(os, "getuid") and os.getuid() == 0:
        locks.mkdir()
        os.chown(locks, 12345, 12345)
        with pytest.raises(CSDError, match=f"^{locks}: not a folder of yours"), alone(tmp_path / "out"):
            pass
    assert files_below(tmp_path) == []

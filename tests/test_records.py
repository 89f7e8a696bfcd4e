"""Logs and TensorBoard's files that cannot be written: the run goes on, and one line says so."""

from __future__ import annotations

import errno
import logging
import sys
import threading
from pathlib import Path

import pytest

from csd_plugin.records import Board, Log, optional_records


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_log_without_room_is_one_line(capfd):
    log = logging.getLogger("test_records")
    log.propagate = False
    handler = logging.FileHandler("/dev/full")
    log.addHandler(handler)
    try:
        with optional_records():
            log.warning("one")
            log.warning("two")
    finally:
        log.removeHandler(handler)
        handler.stream = None  # what is buffered has nowhere to go
    assert capfd.readouterr().err == "warning: /dev/full: no space left on device; the run goes on without it\n"


def test_a_log_takes_names_that_are_no_utf8(tmp_path, capfd):
    log = logging.Logger("alone")  # pytest's reports, which get what reaches the root, take UTF-8 only
    handler = logging.FileHandler(tmp_path / "run.log", encoding="utf-8")
    log.addHandler(handler)
    try:
        with optional_records():
            log.warning("from %s", "a\udcff.png")
            log.warning("and on")
    finally:
        log.removeHandler(handler)
        handler.close()
    with Log(tmp_path / "own.log") as own:
        own.write("a\udcff.png")
    assert (tmp_path / "run.log").read_text().splitlines() == ["from a\\udcff.png", "and on"]
    assert (tmp_path / "own.log").read_text() == "a\\udcff.png"
    assert capfd.readouterr().err == ""


class Writer:
    """One that can write `room` numbers."""

    def __init__(self, room):
        self.room = room

    def add_scalar(self, name, value, step):
        self.room -= 1
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device", b"/tb/events.1")

    def close(self):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_board_without_room_is_one_line(capfd):
    writer = Writer(2)
    board = Board(lambda: writer)
    for step in range(5):
        board.add_scalar("loss", 0.5, step)
    board.close()
    assert writer.room == -1  # it was not asked again
    said = "warning: tensorboard: /tb/events.1: no space left on device; the run goes on without it\n"
    assert capfd.readouterr().err == said

    def no_folder():
        raise PermissionError(errno.EACCES, "Permission denied", "/tb")

    Board(no_folder).add_scalar("loss", 0.5, 1)
    assert "tensorboard: /tb: permission denied" in capfd.readouterr().err


def test_only_disks_are_taken_out_of_threads(capfd):
    def fail(error):
        def run():
            raise error

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    passed_on = []
    before, threading.excepthook = threading.excepthook, passed_on.append
    try:
        with optional_records():
            fail(OSError(errno.ENOSPC, "No space left on device"))
            fail(ValueError("a mistake"))
        assert [type(arguments.exc_value) for arguments in passed_on] == [ValueError]
        assert threading.excepthook == passed_on.append
    finally:
        threading.excepthook = before


def test_a_file_of_lines_without_room_is_one_line(tmp_path, capfd):
    with Log(tmp_path / "logs" / "one.log") as log:
        log.write("first\n")
    with Log(tmp_path / "logs" / "one.log") as log:
        log.write("second\n")
    assert (tmp_path / "logs" / "one.log").read_text() == "first\nsecond\n"
    (tmp_path / "file").touch()
    places = [tmp_path / "file" / "one.log", *([Path("/dev/full")] if sys.platform == "linux" else [])]
    for place in places:
        with Log(place) as log:
            log.write("first\n")
            log.write("second\n")
    said = capfd.readouterr().err.splitlines()
    assert [line.startswith("warning: ") for line in said] == [True] * len(places)
    assert said[1:] == ["warning: /dev/full: no space left on device; the run goes on without it"][: len(said) - 1]

"""Standard output that ends early or cannot be written."""

from __future__ import annotations

import io
import os
import sys

import pytest

from csd_plugin.unread import ending_quietly


class Full(io.StringIO):
    """A file on a full disk, once `full` is set."""

    full = False

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_output_that_cannot_be_written_is_a_line_and_a_status(capsys, monkeypatch):
    output = Full()
    output.full = True
    monkeypatch.setattr(sys, "stdout", output)
    assert ending_quietly(lambda: print("a result") or 0) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: standard output: no space left on device; make room there, and run again"
    ]


def test_a_command_inside_another_leaves_standard_output_as_it_was(monkeypatch):
    """As where a program calls several commands, one of them from another or from threads."""
    output = Full()
    monkeypatch.setattr(sys, "stdout", output)
    before = dict(vars(output))
    assert ending_quietly(lambda: ending_quietly(lambda: print("inner") or 0)) == 0
    assert output.getvalue() == "inner\n" and vars(output) == before
    assert ending_quietly(lambda: print("later") or 0) == 0
    assert output.getvalue() == "inner\nlater\n"


def test_a_terminal_that_is_closed_is_no_error(monkeypatch):
    pty = pytest.importorskip("pty", reason="terminals of POSIX")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, terminal)

        def work() -> int:
            print("before", flush=True)
            assert os.read(ours, 100) == b"before\r\n"
            os.close(ours)
            for stream in (sys.stdout, sys.stderr):
                print("after", file=stream, flush=True)
            return 0

        assert ending_quietly(work) == 0

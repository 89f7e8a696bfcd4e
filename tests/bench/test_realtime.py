"""`csd bench realtime`: rows are complete, shares add up, and its camera drops what is over. No time is asserted."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest

from csd_plugin.bench import realtime
from csd_plugin.bench.realtime import Paced, RealtimeRow, realtime_table
from csd_plugin.cli import main
from csd_plugin.errors import CSDError
from csd_plugin.lifeline import Terminated


def test_reports(tmp_path, capsys, forked):
    report = tmp_path / "r.json"
    options = [
        "--networks",
        "tiny",
        "--sizes",
        "32x24",
        "--frames",
        "6",
        "--rate",
        "500",
        "--precision",
        "auto",
        "fp32",
    ]
    assert main(["bench", "realtime", *options, "--json", str(report)]) == 0
    rows = [RealtimeRow(**row) for row in json.loads(report.read_text())["rows"]]
    assert [(row.network, row.width, row.height) for row in rows] == [
        (name, 32, 24) for name in ("none", "tiny", "tiny")
    ]
    assert all(len(row.delay) + row.dropped == 6 and row.fps > 0 and row.peak > 10 for row in rows)
    assert rows[0].net == 0 < rows[1].net and rows[1].precision in ("bf16", "int8", "fp32")
    assert [row.precision for row in (rows[0], rows[2])] == ["-", "fp32"]
    assert report.with_suffix(".md").read_text().strip() in capsys.readouterr().out

    for wrong, message in (
        (["--networks", "student9"], "is not a file and not one of"),
        ([str(tmp_path / "no.mp4")], "does not exist"),
    ):
        assert main(["bench", "realtime", *wrong]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "realtime", "--frames", "0"])
    assert "a whole number from 1" in capsys.readouterr().err


SMALL = ["bench", "realtime", "--networks", "tiny", "--sizes", "32x24", "48x32"]


@pytest.fixture
def stopped(monkeypatch):
    """A function: let the measurement of a row end in an error, after two rows; returns what was printed before it."""

    def stop(error: BaseException, capsys) -> list:
        rows = [RealtimeRow(name, 32, 24, "-", 50.0, 0.1, 0.0, 0.1, [0.02], 0, 50.0) for name in ("none", "tiny")]
        printed = []

        def measured(*_):
            printed.append(capsys.readouterr())
            if not rows:
                raise error
            return list(rows.pop(0))

        monkeypatch.setattr(realtime, "make_clip", lambda *_: None)
        monkeypatch.setattr(realtime, "measured_apart", measured)
        return printed

    return stop


def test_each_row_is_printed_when_it_is_measured(stopped, capsys):
    printed = stopped(KeyboardInterrupt(), capsys)
    assert main(SMALL) == 130
    start, first, second = printed
    assert start.err.startswith("4 rows, about ") and not start.out
    assert [line.split("|")[1].strip() for line in first.out.splitlines()] == ["network", "---", "none"]
    assert [line.split("|")[1].strip() for line in second.out.splitlines()] == ["tiny"]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "csd bench: interrupted\n"),
        (Terminated(signal.SIGTERM), 143, "csd bench: stopped by SIGTERM\n"),
        (CSDError("none, 48x32: it was killed"), 2, "csd bench: error: none, 48x32: it was killed\n"),
    ],
)
def test_rows_that_are_measured_are_kept_whatever_ends_the_rest(stopped, tmp_path, capsys, error, status, line):
    report = tmp_path / "r.json"
    stopped(error, capsys)
    assert main([*SMALL, "--json", str(report)]) == status
    shown = capsys.readouterr()
    content = json.loads(report.read_text())
    assert [row["network"] for row in content["rows"]] == ["none", "tiny"] and content["stopped"] is True
    assert "Stopped before everything was measured." in report.with_suffix(".md").read_text()
    assert "Stopped before everything was measured." in shown.out and shown.err.endswith(line)


def test_shares_and_the_limit_in_the_table():
    none = RealtimeRow("none", 64, 48, "-", 100.0, 0.004, 0.0, 0.006, [0.01], 0, 50.0)
    one = RealtimeRow("tiny", 64, 48, "bf16", 40.0, 0.004, 0.01, 0.006, [0.02] * 99 + [0.5], 25, 60.0)
    line = realtime_table([none, one]).splitlines()[-1]
    assert "| 40.0 | 40% | 4.0 (20%) | 10.0 (50%) | 6.0 (30%) | 20 |" in line and "| 20% | 60 |" in line


def test_the_line_in_the_plot_is_the_camera_s_rate():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figure = Figure()
    realtime.draw(50.0, figure, [RealtimeRow("none", 64, 48, "-", 100.0, 0.004, 0.0, 0.006, [0.01], 0, 50.0)])
    [line] = figure.axes[0].lines
    assert set(line.get_xdata()) == {50.0}


def test_the_camera_gives_frames_when_they_come_and_drops_those_that_are_over(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(realtime.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    camera = Paced([np.array(i) for i in range(8)], 8, clock=lambda: now[0])
    taken = []
    for frame in camera:
        taken.append((int(frame), now[0]))
        now[0] += 0.3125
    assert taken == [(0, 0.0), (2, 0.3125), (4, 0.625), (7, 0.9375)]
    assert camera.came == [0.0, 0.25, 0.5, 0.875] and camera.dropped == 4

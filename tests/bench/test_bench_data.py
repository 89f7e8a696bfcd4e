"""`csd bench data`: every kind of storage gets its row, with what the columns promise."""

from __future__ import annotations

import json

import pytest
from synthetic import TEST, TRAIN, write_ntu_rain

from csd_plugin.bench import loading
from csd_plugin.cli import main

QUICK = ["--num-frame", "3", "--gt-size", "16", "--rounds", "1", "--seconds", "0.01", "--batch-size", "2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    clips = {f"{TRAIN}/t1": ("GT", "Rain_01"), f"{TEST}/a1": ("GT", "Rain")}
    return write_ntu_rain(tmp_path_factory.mktemp("NTURain"), frames=7, suffix=".jpg", clips=clips)


def test_rows_and_columns(root, tmp_path, capsys):
    (tmp_path / "work").mkdir()
    out = tmp_path / "data.json"
    assert main(["bench", "data", str(root), *QUICK, "--json", str(out), "--work", str(tmp_path / "work")]) == 0
    content = json.loads(out.read_text())
    assert [row["frames_from"] for row in content["rows"]] == ["folder", "source", "png", "raw", "basicsr"] * 2
    assert [row["scale"] for row in content["rows"]] == ["no"] * 5 + ["0.4 - 2"] * 5
    for row in content["rows"]:
        assert row["size"] > 0 and all(rate > 0 for rate in (*row["warm"], *row["loader"], *row["start"]))
        assert row["first"] is None or row["first"] > 0
    table = out.with_suffix(".md").read_text()
    assert table.strip() in capsys.readouterr().out
    assert len(table.splitlines()) == 2 + 10 and len({line.count("|") for line in table.splitlines()}) == 1
    assert str(tmp_path) not in out.read_text() + table
    assert not list((tmp_path / "work").iterdir())


def test_ctrl_c_keeps_the_whole_rounds(root, tmp_path, capsys, monkeypatch):
    measure, calls = loading._measure_loader, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 13:  # ten make a round
            raise KeyboardInterrupt
        measure(*arguments)

    monkeypatch.setattr(loading, "_measure_loader", interrupted)
    out = tmp_path / "data.json"
    assert main(["bench", "data", str(root), *QUICK, "--rounds", "4", "--json", str(out)]) == 130
    rows = json.loads(out.read_text())["rows"]
    assert [[len(row[kind]) for kind in ("warm", "loader", "start")] for row in rows] == [[1, 1, 1]] * 10
    assert "40 passes, about " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "x.txt"], "--json x.txt: the name must end in .json"),
        (["--clips", "t9"], "no clip 't9'"),
        (["--num-frame", "9"], "fewer than num_frame 9"),
    ],
)
def test_mistakes_are_one_line(root, capsys, arguments, message):
    assert main(["bench", "data", str(root), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_help_of_every_benchmark(capsys):
    from csd_plugin.bench import BENCHMARKS

    for name in BENCHMARKS:
        with pytest.raises(SystemExit) as ended:
            main(["bench", name, "--help"])
        assert ended.value.code == 0 and f"csd bench {name}" in capsys.readouterr().out

"""Result files: what is written is what is read, nothing half written, wrong files named."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest

from csd_plugin.errors import CSDError
from csd_plugin.metrics import METRICS, results
from csd_plugin.metrics.metric import Metric
from csd_plugin.metrics.protocols import Quality
from csd_plugin.metrics.published import PUBLISHED
from csd_plugin.metrics.results import load_results
from csd_plugin.metrics.scores import Result, Scores
from csd_plugin.metrics.table import comparison_table


def scores_of(psnrs, ssim=0.9):
    """clip -> PSNRs of its frames; RGB reads 1 dB less."""
    scores = Scores()
    for clip, values in psnrs.items():
        for i, psnr in enumerate(values):
            scores.record(clip, f"{i + 1:05d}", {"nturain_y": Quality(psnr, ssim), "rgb": Quality(psnr - 1, ssim)})
    return scores


def table_cells(text, protocol=0):
    """The rows of one protocol's table as lists of cells, header first, the ruler left out."""
    lines = [line for line in text.split("\n\n")[2 * protocol + 1].splitlines() if line]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in rows}) == 1
    return [rows[0], *rows[2:]]


def test_what_is_written_is_what_is_read(tmp_path):
    scores = scores_of({"a1": [30.123456789, 31], 'b "1"': [1 / 3]}).without_ends((0, 0))
    scores.skip = (2, 1)
    meta = {"network": "student1", "dataset": "NTURain", "iteration": 20000, "options": {"preset": "student1"}}
    path = results.write(tmp_path / "new" / "folder", "scores.v2", scores, meta)
    assert path == tmp_path / "new" / "folder" / "scores.v2.json"
    assert {file.name for file in path.parent.iterdir()} == {"scores.v2.json", "scores.v2.csv", "scores.v2.md"}
    facts = {"iteration": 20000, "options": {"preset": "student1"}}
    assert load_results(path) == Result("student1", "NTURain", scores, facts)


def test_json_is_plain_and_infinite_psnr_survives_it(tmp_path):
    path = results.write(tmp_path, "x", scores_of({"a": [math.inf, 30]}), {"network": "copy", "dataset": "d"})

    def no_constants(name):
        raise AssertionError(f"{name} is not JSON")

    content = json.loads(path.read_text(), parse_constant=no_constants)
    assert content["average"]["nturain_y"] == {"psnr": "inf", "ssim": 0.9}
    assert content["clips"]["a"]["frames"]["00002"]["rgb"] == {"psnr": 29.0, "ssim": 0.9}
    assert load_results(path).scores.average()["nturain_y"].psnr == math.inf
    assert "| inf | inf |" in path.with_suffix(".md").read_text()


def test_csv_has_a_row_a_clip_and_protocol(tmp_path):
    path = results.write(tmp_path, "x", scores_of({"a,b": [30, 32], "c": [33]}), {"network": "n", "dataset": "d"})
    rows = list(csv.DictReader(io.StringIO(path.with_suffix(".csv").read_text())))
    assert [(r["clip"], r["protocol"], r["frames"], r["psnr"], r["ssim"]) for r in rows] == [
        ("a,b", "nturain_y", "2", "31.0000", "0.900000"),
        ("a,b", "rgb", "2", "30.0000", "0.900000"),
        ("c", "nturain_y", "1", "33.0000", "0.900000"),
        ("c", "rgb", "1", "32.0000", "0.900000"),
        ("average", "nturain_y", "3", "32.0000", "0.900000"),
        ("average", "rgb", "3", "31.0000", "0.900000"),
    ]


def test_names_are_no_formulas_in_a_spreadsheet(tmp_path):
    names = ["=1+1", "+x", "-2+3", "@SUM(A1)", "-", "-3", "it's =1"]
    path = results.write(tmp_path, "x", scores_of({name: [30] for name in names}), {"network": "=n", "dataset": "-d"})
    rows = list(csv.DictReader(io.StringIO(path.with_suffix(".csv").read_text())))
    assert [row["clip"] for row in rows[:-2:2]] == ["'=1+1", "'+x", "'-2+3", "'@SUM(A1)", "-", "-3", "it's =1"]
    assert {(row["network"], row["dataset"]) for row in rows} == {("'=n", "'-d")}
    result = load_results(path)
    assert (result.network, result.dataset, list(result.scores.clips)) == ("=n", "-d", names)


def test_table_has_the_shape_of_the_papers(tmp_path):
    before = results.write(tmp_path, "before", scores_of({"a1": [30], "a2": [31]}), {"network": "S", "dataset": "d"})
    scores = scores_of({"a1": [31.5], "a2": [30.5]}, ssim=0.95)
    after = results.write(tmp_path, "after", scores, {"network": "S+CSD", "dataset": "d"}, baseline=before)
    text = after.with_suffix(".md").read_text()
    assert table_cells(text) == [
        ["network", "", "a1", "a2", "average", "ΔPSNR", "ΔSSIM"],
        ["S", "PSNR", "30.00", "31.00", "30.50", "-", ""],
        ["", "SSIM", "0.9000", "0.9000", "0.9000", "", "-"],
        ["S+CSD", "PSNR", "31.50", "30.50", "31.00", "+0.50", ""],
        ["", "SSIM", "0.9500", "0.9500", "0.9500", "", "+0.0500"],
    ]
    assert table_cells(text, protocol=1)[3][:5] == ["S+CSD", "PSNR", "30.50", "29.50", "30.00"]
    assert "Δ" not in before.with_suffix(".md").read_text()


def test_averages_over_different_clips_are_not_compared():
    both = Result("both", "d", scores_of({"a": [30], "b": [20]}))
    only_a = Result("only a", "d", scores_of({"a": [29]}))
    rows = table_cells(comparison_table([both, only_a], baseline=both))
    assert rows == table_cells(comparison_table([only_a], baseline=both))
    assert rows[0][2:4] == ["a", "average"]
    assert rows[1][:5] == ["both", "PSNR", "30.00", "30.00", "-"]
    assert rows[3][:5] == ["only a", "PSNR", "29.00", "29.00", "-1.00"]
    rows = table_cells(comparison_table([both, only_a]))
    assert rows[3] == ["only a", "PSNR", "29.00", "-", "-"]


def test_gains_over_other_frames_are_not_shown_but_said(tmp_path):
    whole = Result("base", "d", scores_of({"a": [30, 31, 32], "b": [20]}))
    part = Result("mine", "d", scores_of({"a": [40, 41], "b": [30]}))
    text = comparison_table([part], baseline=whole)
    assert table_cells(text)[3] == ["mine", "PSNR", "40.50", "30.00", "35.25", "-", ""]
    expected = "No gain of mine: clip a has 2 frames, in the baseline 3; only the baseline has 00003"
    assert text.splitlines()[-1] == expected and text.count("No gain") == 1
    assert "No gain" not in comparison_table([whole, Result("x", "d", whole.scores)], baseline=whole)
    base = results.write(tmp_path, "base", whole.scores, {"network": "base", "dataset": "d"})
    made = results.write(tmp_path, "mine", part.scores, {"network": "mine", "dataset": "d"}, baseline=base)
    assert expected in made.with_suffix(".md").read_text()  # a test's scores are kept whatever the baseline is


def test_skipped_frames_are_said():
    result = Result("n", "d", scores_of({"a": [30, 31, 32]}).without_ends((1, 0)))
    assert table_cells(comparison_table([result]))[1][0] == "n (without the first 1 and last 0 frames)"


def test_published_numbers_stand_beside_ours_in_luma_only():
    ours = Result("ours", "NTURain", scores_of({"a1": [33], "a2": [34]}))
    text = comparison_table([ours], baseline=ours, published=True)
    rows = {row[0]: row for row in table_cells(text)}
    assert rows["student1 + CSD (published)"][2:6] == ["36.81", "33.33", "35.07", "+1.57"]
    assert rows["S2VD (published)"][2:6] == ["36.39", "33.06", "34.73", "+1.23"]
    assert [row[0] for row in table_cells(text, protocol=1)] == ["network", "ours", ""]
    elsewhere = Result("ours", "mine", scores_of({"walk": [33]}))
    assert "published" not in comparison_table([elsewhere], published=True).replace("in the published NTURain", "")


def test_the_frames_beside_published_rows_are_counted():
    """Part of a clip is compared with the published whole, which nobody sees in the numbers."""
    whole, part = (Result(name, "NTURain", scores_of({"a1": [33] * count})) for name, count in (("w", 4), ("p", 2)))
    text = comparison_table([whole, part], published=True)
    assert "own clips; these are the frames of each clip here: a1 2 or 4." in text
    assert "these are the frames" not in comparison_table([whole, part])


def test_published_clips_average_to_the_published_averages():
    printed = {
        "teacher": (38.19, 0.9775),
        "student1": (35.17, 0.9686),
        "student1 + CSD": (36.70, 0.9733),
        "student2": (35.19, 0.9682),
        "student2 + CSD": (36.14, 0.9717),
        "student3": (28.45, 0.9428),
        "student3 + CSD": (31.68, 0.9501),
        "PReNet": (31.04, 0.9457),
        "SpacCNN": (31.95, 0.9389),
        "S2VD": (36.18, 0.9630),
    }
    assert printed.keys() == PUBLISHED.keys()
    for name, average in printed.items():
        psnrs, ssims = zip(*PUBLISHED[name].values(), strict=True)
        assert sum(psnrs) / len(psnrs) == pytest.approx(average[0], abs=0.0101)
        assert sum(ssims) / len(ssims) == pytest.approx(average[1], abs=0.000101)


def test_bars_in_names_do_not_break_the_table():
    result = Result("a|b", "d", scores_of({"c": [30]}))
    assert "| a\\|b | PSNR |" in comparison_table([result])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("not json {", "not a results file: it is not JSON"),
        ("[1, 2]", 'lacks "format"'),
        ('{"format": "other"}', 'lacks "format"'),
        ('{"format": "csd-results", "version": 99}', "version 99, but this csd reads version 1"),
        ('{"format": "csd-results", "version": 1, "skip": [0, 0]}', "damaged results file .KeyError: 'clips'"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_wrong_files_are_named(tmp_path, content, complaint):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(CSDError, match=complaint) as error:
        load_results(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_damaged_numbers_are_refused(tmp_path):
    path = results.write(tmp_path, "x", scores_of({"a": [30]}), {"network": "n", "dataset": "d"})
    good = path.read_text()
    assert '"psnr": 30, ' in good
    numbers = ('"NaN"', "[]", "true", '"30"', "NaN", "Infinity", "1e999", "9" * 400)
    for damage in (
        *(('"psnr": 30, ', f'"psnr": {number}, ') for number in numbers),
        ('"00001"', '"00001": 3, "2"'),
        ('"skip": [0, 0]', '"skip": [0, -1]'),
        ('"skip": [0, 0]', '"skip": ["0", 0.5]'),
        ('"skip": [0, 0]', '"skip": "00"'),
        ('"facts": {}', '"facts": [["a", 1]]'),
        ('"network": "n"', '"network": 3'),
    ):
        assert damage[0] in good
        path.write_text(good.replace(*damage))
        with pytest.raises(CSDError, match=r"damaged|not JSON"):
            load_results(path)


def test_missing_file_and_missing_baseline(tmp_path):
    with pytest.raises(CSDError, match=r"cannot read the results file .*none\.json: No such file"):
        load_results(tmp_path / "none.json")
    with pytest.raises(CSDError, match=r"none\.json"):
        results.write(tmp_path, "x", scores_of({"a": [1]}), {"network": "n", "dataset": "d"}, tmp_path / "none.json")
    assert not list(tmp_path.iterdir())


def measured(values, clips=("a",), truth=False):
    """clips of two frames with these NIQEs, and a warping error in the second."""
    scores = scores_of({clip: [30, 31] for clip in clips}) if truth else Scores()
    for clip in clips:
        for frame, niqe in zip(("00001", "00002"), values, strict=True):
            if not truth:
                scores.record(clip, frame, {})
            scores.clips[clip].metrics.setdefault("niqe", {})[frame] = niqe
        scores.clips[clip].metrics["warping"] = {"00002": 0.25}
    return scores


@pytest.mark.parametrize("truth", [True, False])
def test_further_metrics_survive_the_file(tmp_path, truth):
    scores = measured([4.0, 3.0], truth=truth)
    path = results.write(tmp_path, "x", scores, {"network": "n", "dataset": "d"})
    assert load_results(path).scores == scores
    content = json.loads(path.read_text())
    assert content["version"] == 1
    assert content["average"]["measures"] == {"niqe": 3.5, "warping": 0.25}
    assert content["clips"]["a"]["frames"]["00001"]["measures"] == {"niqe": 4.0}
    # what a reader that knows nothing of them looks for is where it was
    assert ("nturain_y" in content["clips"]["a"]["frames"]["00001"]) == truth
    rows = list(csv.DictReader(io.StringIO(path.with_suffix(".csv").read_text())))
    assert {row["protocol"]: row["value"] for row in rows if row["clip"] == "average" and row["value"]} == {
        "niqe": "3.500000",
        "warping": "0.250000",
    }
    assert len(rows) == (8 if truth else 4)


def test_files_without_further_metrics_are_as_they_were(tmp_path):
    path = results.write(tmp_path, "x", scores_of({"a": [30]}), {"network": "n", "dataset": "d"})
    assert "measures" not in path.read_text()
    assert path.with_suffix(".csv").read_text().splitlines()[0] == "network,dataset,clip,protocol,frames,psnr,ssim"
    assert "Further" not in path.with_suffix(".md").read_text()


def test_table_of_further_metrics():
    rain = Result("rain", "d", measured([5.0, 5.0], ("a", "b")))
    ours = Result("ours", "d", measured([4.0, 3.0], ("a", "b")))
    ours.scores.clips["a"].metrics["mine"] = {"00001": 0.123456}
    text = comparison_table([rain, ours], baseline=rain)
    assert "PSNR" not in text
    assert table_cells(text) == [
        ["network", "metric", "a", "b", "average", "Δ"],
        ["rain", "NIQE ↓", "5.000", "5.000", "5.000", "-"],
        ["", "warping error ↓", "0.250", "0.250", "0.250", "-"],
        ["", "mine", "-", "-", "-", "-"],
        ["ours", "NIQE ↓", "3.500", "3.500", "3.500", "-1.500"],
        ["", "warping error ↓", "0.250", "0.250", "0.250", "+0.000"],
        ["", "mine", "0.1235", "-", "-", "-"],
    ]
    both = comparison_table([Result("n", "d", measured([4.0, 3.0], truth=True))])
    assert table_cells(both, protocol=2)[1] == ["n", "NIQE ↓", "3.500", "3.500"]


def test_an_arrow_says_which_way_a_metric_is_better(monkeypatch):
    class Sharpness(Metric):
        title, decimals, higher_is_better = "sharpness", 1, True

    monkeypatch.setitem(METRICS._rows, "sharpness", Sharpness)
    scores = measured([4.0, 3.0])
    scores.clips["a"].metrics["sharpness"] = {"00001": 7.0}
    text = comparison_table([Result("n", "d", scores)])
    assert "(↑ higher is better, ↓ lower is better)" in text
    assert [row[1] for row in table_cells(text)[1:]] == ["NIQE ↓", "warping error ↓", "sharpness ↑"]
    assert "(↓ lower is better)" in comparison_table([Result("n", "d", measured([4.0, 3.0]))])


@pytest.mark.parametrize("alone", ["first", "last"])
def test_of_how_many_clips_scores_are(tmp_path, alone):
    true = measured([4.0, 3.0], ("a", "b"), truth=True)
    for clip in true.clips.values():
        clip.metrics["lpips"] = {"00001": 0.1, "00002": 0.3}
    real = measured([5.0, 6.0], ("ra1",))
    scores = Scores(real.clips | true.clips if alone == "first" else true.clips | real.clips)
    path = results.write(tmp_path, "x", scores, {"network": "n", "dataset": "d"})
    text = path.with_suffix(".md").read_text()
    titles = text.split("\n\n")[::2]
    assert [title.split("** ")[1] for title in titles[:2]] == ["of 2 of 3 clips; without truth: ra1"] * 2
    assert table_cells(text)[:2] == [["network", "", "a", "b", "average"], ["n", "PSNR", "30.50", "30.50", "30.50"]]
    clips = ["ra1", "a", "b"] if alone == "first" else ["a", "b", "ra1"]
    rows = table_cells(text, protocol=2)
    assert rows[0] == ["network", "metric", *clips, "average"]
    values = {"ra1": "5.500", "a": "3.500", "b": "3.500"}
    assert rows[1] == ["n", "NIQE ↓", *(values[clip] for clip in clips), "4.167"]
    values = {"ra1": "-", "a": "0.2000", "b": "0.2000"}
    assert rows[2] == ["", "LPIPS ↓ of 2 of 3 clips", *(values[clip] for clip in clips), "0.2000"]

    rows = list(csv.DictReader(io.StringIO(path.with_suffix(".csv").read_text())))
    frames = {row["protocol"]: row["frames"] for row in rows if row["clip"] == "average"}
    assert frames == {"nturain_y": "4", "rgb": "4", "niqe": "6", "warping": "3", "lpips": "4"}
    assert load_results(path).scores == scores
    assert load_results(path).scores.average()["nturain_y"].psnr == 30.5

    others = comparison_table([Result("n", "d", real)], baseline=load_results(path))
    assert "PSNR" not in others  # what was scored has no truth, whatever the baseline has


def test_clips_that_could_not_be_scored_are_counted():
    result = Result("n", "d", scores_of({"a": [30]}), {"without_truth": ["ra1", "ra2"]})
    assert "** of 1 of 3 clips; without truth: ra1, ra2\n" in comparison_table([result])


def test_nothing_half_written(tmp_path, monkeypatch):
    meta = {"network": "n", "dataset": "d"}
    path = results.write(tmp_path, "x", scores_of({"a": [30]}), meta)
    old = path.read_text()

    def full_disk(self, text, **kwargs):
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(CSDError, match=r"x\.json: cannot be written .No space left on device.; make room"):
        results.write(tmp_path, "x", scores_of({"a": [31]}), meta)
    assert path.read_text() == old
    assert {file.name for file in tmp_path.iterdir()} == {"x.json", "x.csv", "x.md"}


def test_nothing_scored_writes_nothing(tmp_path):
    with pytest.raises(CSDError, match="no frame was scored"):
        results.write(tmp_path, "x", Scores(), {"network": "n", "dataset": "d"})
    assert not list(tmp_path.iterdir())

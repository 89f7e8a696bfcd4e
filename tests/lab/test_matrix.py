"""Matrix files: what rows come to, what is trained, resumed, kept, and the tables that come out."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from toolbox import SHALLOW_STUDENT, distill_options, scored_set, train_options

from csd_plugin.archs.interface import Interface
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.cli import main
from csd_plugin.digests import file_digest, text_digest
from csd_plugin.errors import CSDError
from csd_plugin.lab import runner
from csd_plugin.lab.job import Table, make_tables
from csd_plugin.lab.matrix import read_matrix, runs_of
from csd_plugin.lab.plan import Plan, plan_for, stretched
from csd_plugin.lab.table import COUNTED_SIZE, _build, _cost, build
from csd_plugin.locks import alone
from csd_plugin.metrics.protocols import PROTOCOLS, Quality
from csd_plugin.metrics.results import write as write_results
from csd_plugin.metrics.scores import Scores

STUDENT = {"type": "SLDNet", "preset": "student2", **SHALLOW_STUDENT}
OTHER = {**STUDENT, "num_feat": 5}


def write(path: Path, content: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path, tiny_rain, monkeypatch) -> Path:
    """Option files of both stages and a matrix over them, in a folder of their own; the current folder is another."""
    options = tmp_path / "options"
    write(options / "teacher.yml", train_options(tiny_rain, network_g=OTHER))
    write(options / "student.yml", distill_options(tiny_rain, Path("somewhere.pth"), network_g=STUDENT))
    test = {
        "name": "row",
        "model_type": "VideoDerainModel",
        "scale": 1,
        "num_gpu": 0,
        "manual_seed": 0,
        "datasets": {"test_1": scored_set(tiny_rain, name="rain")},
        "network_g": dict(STUDENT),
        "path": {"pretrain_network_g": None},
        "val": {"save_img": False, "suffix": None},
    }
    write(options / "test.yml", test)
    write(
        options / "matrix.yml",
        {
            "name": "table",
            "title": "A & B",
            "runs": "tiny",
            "base": "student.yml",
            "test": "test.yml",
            "baseline": "alone",
            "set": {"network_t": OTHER},
            "complexity": True,
            "rows": {
                "input": {"label": "rainy input", "input": True},
                "teacher": {"base": "teacher.yml", "set": {"train.total_iter": 1}, "shown": False},
                "alone": {
                    "start": {"network_t": "teacher"},
                    "set": {"train.distill_opt.weights": {"spatial": 0, "temporal": 0}},
                    "seeds": [0, 1],
                    "published": {"psnr": 35.0},
                },
                "csd": {"label": "CSD", "start": {"network_t": "teacher"}, "published": "student1 + CSD"},
            },
        },
    )
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return options


def matrix_of(files: Path, **changes) -> Path:
    content = yaml.safe_load((files / "matrix.yml").read_text())
    rows = content["rows"] | changes.pop("rows", {})
    return write(files / "other.yml", content | changes | {"rows": {k: v for k, v in rows.items() if v is not None}})


def scored(run: str, *psnrs: float, clip: str = "clip") -> None:
    """Results of a run on the set `rain`: one clip, with these frames."""
    scores = Scores()
    for number, psnr in enumerate(psnrs):
        scores.record(clip, str(number), dict.fromkeys(PROTOCOLS, Quality(psnr, 1.0)))
    write_results(Path("results", run), "rain", scores, {"network": run, "dataset": "rain"})


def table_of(path: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """label -> heading -> cell, and the notes, of the results that are there."""
    matrix = read_matrix(path)
    grid = build(matrix, runs_of(matrix, path), {})
    return {row[0]: dict(zip(grid.head, row, strict=True)) for row in grid.rows}, list(grid.notes)


def test_rows_are_differences_and_start_from_others(files):
    path = files / "matrix.yml"
    runs = runs_of(read_matrix(path), path)
    assert list(runs) == ["tiny_input", "tiny_teacher", "tiny_alone", "tiny_alone_seed1", "tiny_csd"]
    csd = runs["tiny_csd"].options
    assert csd["name"] == "tiny_csd"
    assert csd["path"]["pretrain_network_t"] == "experiments/tiny_teacher/models/net_g_latest.pth"
    assert csd["train"]["distill_opt"]["weights"] == {"spatial": 0.1, "temporal": 0.1}
    alone = runs["tiny_alone_seed1"].options
    assert alone["manual_seed"] == 1
    assert alone["train"]["distill_opt"]["weights"] == {"spatial": 0, "temporal": 0}
    assert runs["tiny_csd"].test["path"]["pretrain_network_g"] == "experiments/tiny_csd/models/net_g_latest.pth"
    assert list(runs_of(read_matrix(path), path, ["csd"])) == ["tiny_teacher", "tiny_csd"]


def test_what_a_row_says_goes_before_what_all_rows_do(files):
    csd = {"set": {"train.total_iter": 7, "path.param_key_t": "params"}, "start": {"network_t": "teacher"}}
    path = matrix_of(files, set={"train.total_iter": 5, "network_t": STUDENT}, rows={"csd": csd})
    runs = runs_of(read_matrix(path), path)
    assert [runs[name].options["train"]["total_iter"] for name in ("tiny_alone", "tiny_csd")] == [5, 7]
    assert [runs[name].options["path"]["param_key_t"] for name in ("tiny_alone", "tiny_csd")] == [
        "params_ema",
        "params",
    ]


def test_a_seed_starts_from_the_same_seed_or_the_first(files):
    csd = {"seeds": [0, 1, 2], "start": {"network_g": "alone", "network_t": "teacher"}}
    path = matrix_of(files, rows={"csd": csd})
    runs = runs_of(read_matrix(path), path)
    names = ("tiny_csd", "tiny_csd_seed1", "tiny_csd_seed2")
    assert [Path(runs[name].options["path"]["pretrain_network_g"]).parts[1] for name in names] == [
        *("tiny_alone", "tiny_alone_seed1", "tiny_alone"),
    ]


def test_an_included_matrix_is_added_to(files):
    write(files / "more.yml", {"name": "more", "include": ["matrix.yml"], "rows": {"csd": {"label": "ours"}, "x": {}}})
    matrix = read_matrix(files / "more.yml")
    assert matrix.name == "more" and matrix.runs == "tiny"
    assert matrix.rows["csd"].label == "ours" and matrix.rows["csd"].start == {"network_t": "teacher"}
    assert list(matrix.rows) == ["input", "teacher", "alone", "csd", "x"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": {"csd": {"lable": "CSD"}}}, "lable is unknown; did you mean label?"),
        ({"titel": "x"}, "titel is unknown; did you mean title?"),
        ({"baseline": "alnoe"}, "no row 'alnoe'; did you mean alone?"),
        ({"rows": {"csd": {"start": {"network_t": "techer"}}}}, "no row 'techer'; did you mean teacher?"),
        ({"rows": {"csd": {"start": {"network_x": "teacher"}}}}, "only network_g and network_t"),
        ({"rows": {"csd": {"start": {"network_t": "csd"}}}}, "csd -> csd start from each other"),
        ({"rows": {"csd": {"start": {"network_t": "input"}}}}, "the row input is not trained"),
        ({"rows": {"csd": {"input": True, "frames": "x"}}}, "only one of"),
        ({"rows": {"csd": {"wieghts": "student2"}}}, "wieghts is unknown; did you mean weights?"),
        ({"rows": {"csd": {"weights": 2}}}, "rows.csd.weights: input should be a valid string"),
        ({"rows": {"csd": {"input": "rain"}}}, "rows.csd.input: input should be true"),
        ({"rows": {"csd": {"source": "student2"}}}, "rows.csd: source is unknown; give one of weights"),
        ({"rows": {"csd": {"seeds": []}}}, "rows.csd.seeds"),
        ({"base": None}, "has no option file"),
        ({"base": "nowhere.yml"}, "nowhere.yml: cannot be read"),
        ({"base": "a\0.yml"}, ": base: a NUL character"),
        ({"include": ["matrix.yml", "a\0"]}, "include: a NUL character"),
        ({"rows": {"csd": {"frames": "a\0"}}}, "rows.csd.frames: a NUL character"),
        ({"rows": {"csd\0": {}}}, "rows: a NUL character"),
        ({"include": ["other.yml"]}, "includes itself"),
        ({"rows": {"alone_seed1": {}}}, "rows.alone_seed1 and rows.alone would both be experiments/tiny_alone_seed1"),
        ({"rows": {"../../k": {}}}, "rows.../../k: a row's key"),
        ({"rows": {"csd": {"published": "student9"}}}, "rows.csd.published: 'student9' is unknown"),
        ({"rows": {"csd": {"set": {"manual_seed": 7}}}}, "set.manual_seed: give `seeds`"),
        ({"rows": {"w": {"weights": "realtime", "seeds": [1]}}}, "rows.w.seeds: without effect"),
        ({"rows": {"w": {"weights": "nothere.pth"}}}, "rows.w: there is no checkpoint nothere.pth"),
        ({"rows": {"csd": {"set": {"train": None}}}}, "rows.csd: "),
        ({"rows": {"csd": {"set": {"logger": None}}}}, "has no section logger"),
        ({"rows": {"csd": {"set": {"datasets": None}}}}, "has no section datasets"),
        ({"base": "test.yml"}, "has no section logger"),
        ({"rows": {"csd": "student1.yml"}}, "other.yml: rows.csd: give keys and their values"),
        ({"rows": {"csd": 0}}, "other.yml: rows.csd: give keys and their values"),
        ({"rows": {"csd": {"set": [1]}}}, "other.yml: rows.csd.set: give keys and their values"),
        (
            {"rows": {"csd": {"start": "teacher"}}},
            "rows.csd.start: give keys and their values, such as {network_t: teacher}",
        ),
        ({"set": ["train.total_iter"]}, "other.yml: set: give keys and their values"),
        ({"include": 5}, "other.yml: include: give a list of files, such as [networks.yml], instead of 5"),
        ({"include": [3]}, "other.yml: include: give a list of files, such as [networks.yml], instead of [3]"),
        ({"include": "matrix.yml"}, "include: give a list of files, such as [networks.yml], instead of 'matrix.yml'"),
        ({"seeds": 5}, "other.yml: seeds: input should be a valid list"),
        ({"base": 5}, "other.yml: base: input should be a valid string"),
        ({"test": "matrix.yml", "rows": {"t": {"test_only": "test.yml"}}}, "matrix.yml has no section datasets"),
        (
            {"rows": {"teacher": {"base": "test.yml", "weights": "tiny", "shown": True}}},
            "test.yml has no section train",
        ),
        (
            {"rows": {"csd": {"start": {"network_t": "teacher"}, "set": {"train.ema_decay": "x"}}}},
            "csd: train.ema_decay",
        ),
    ],
)
def test_mistakes_are_one_line(files, changes, message, capsys):
    assert main(["table", str(matrix_of(files, **changes)), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not any(Path().iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rows": ["csd"]}, "rows: give keys and their values, such as {csd: {label: CSD}}, instead of ['csd']"),
        ({"rows": {"csd": {"set": "train"}}}, "rows.csd.set: give keys and their values"),
        ({"set": [1]}, "set: give keys and their values"),
        ([1], "is not a mapping"),
    ],
)
def test_mistakes_of_an_included_file_have_its_name(files, content, message, capsys):
    """Also those that what includes it would cover."""
    write(files / "more.yml", content)
    assert main(["table", str(matrix_of(files, include=["more.yml"])), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert f"{files / 'more.yml'}: {message}" in error and len(error.splitlines()) == 1


def test_an_option_file_is_not_taken_for_a_matrix(files, capsys):
    assert main(["table", str(files / "student.yml"), "--dry-run"]) == 2
    assert "student.yml: an option file, not a matrix; csd inspect" in capsys.readouterr().err


def test_mistakes_in_the_options_of_all_rows_are_found_before_the_first_is_trained(files, capsys):
    wrong = {"train.optim_g.lrr": 0.5, "train.totl_iter": 3, "train.pixel_opt.type": "NoLoss", "num_gpu": None}
    rows = {"csd": {"set": wrong}, "alone": {"set": {"network_g.preset": "student9"}}}
    path = matrix_of(files, rows=rows | {"odd": {"set": {"datasets": {5: {}}}}})
    for more in ([], ["--dry-run"], ["--minutes", "5", "--dry-run"]):
        assert main(["table", str(path), *more]) == 2
        error = capsys.readouterr().err
        for words in (
            "the row csd: train.optim_g.lrr",
            "csd: train.totl_iter",
            "csd: num_gpu",
            "alone: network_g",
            "odd: datasets.5",
        ):
            assert words in error
        assert not Path("experiments").exists()


def test_results_are_made_again_when_what_they_are_of_has_changed(files, tiny_rain, launcher, monkeypatch):
    """Weights and frames that are given, and test sets."""
    Calls(launcher, monkeypatch)
    weights, frames = files / "net.pth", files / "frames"
    clip = next(path for path in (tiny_rain / "Dataset_Testing_Synthetic").iterdir() if path.name.endswith("_Rain"))

    def save(seed: int) -> None:
        state = SLDNet(**{k: v for k, v in STUDENT.items() if k != "type"}).state_dict()
        torch.save({"params": {name: value + 0.01 * seed for name, value in state.items()}}, weights)

    def of_clip(kind: str) -> None:
        (frames / clip.name.removesuffix("_Rain")).mkdir(parents=True, exist_ok=True)
        for file in clip.with_name(clip.name.replace("_Rain", kind)).iterdir():
            (frames / clip.name.removesuffix("_Rain") / file.name).write_bytes(file.read_bytes())

    save(0)
    of_clip("_Rain")
    rows = {"w": {"weights": str(weights)}, "f": {"frames": str(frames)}}
    only = {"alone": None, "csd": None, "input": None, "teacher": None} | rows
    tests = yaml.safe_load((files / "test.yml").read_text())
    tests["datasets"]["test_1"]["clips"] = [clip.name.removesuffix("_Rain")]
    write(files / "test.yml", tests)
    path = matrix_of(files, baseline=None, rows=only)
    scores = []
    for change in (None, None, lambda: save(1), lambda: of_clip("_GT")):
        if change is not None:
            change()
        todo = make_tables([Table.read(path)], dry_run=True)
        make_tables([Table.read(path)])
        scores.append([json.loads(Path(f"results/tiny_{row}/rain.json").read_text())["average"] for row in rows])
        assert ("to do: test" in todo) == (change is not None or len(scores) == 1)
    assert scores[0] == scores[1]
    assert scores[2][0] != scores[1][0] and scores[2][1] == scores[1][1]
    assert scores[3][0] == scores[2][0] and scores[3][1] != scores[2][1]
    tests["datasets"]["test_1"]["frame_range"] = [1, 2]
    write(files / "test.yml", tests)
    make_tables([Table.read(path)])
    assert json.loads(Path("results/tiny_w/rain.json").read_text())["average"] != scores[3][0]
    assert "to do: test" not in make_tables([Table.read(path)], dry_run=True)
    os.utime(next(path for path in frames.rglob("*.*")), (0, 0))  # other pixels may have as many bytes
    assert make_tables([Table.read(path)], dry_run=True).count("to do: test") == 1


def test_results_are_made_again_when_weights_are_loaded_otherwise(files, launcher, monkeypatch):
    """Those of the entry `params_ema`, the usual one, have the digest of earlier versions."""
    Calls(launcher, monkeypatch)
    weights = files / "net.pth"
    state = SLDNet(**{k: v for k, v in STUDENT.items() if k != "type"}).state_dict()
    torch.save({"params": state, "params_ema": {name: value + 0.01 for name, value in state.items()}}, weights)
    tests = yaml.safe_load((files / "test.yml").read_text())
    rows = {"alone": None, "csd": None, "input": None, "teacher": None, "w": {"test_only": str(files / "mine.yml")}}
    path = matrix_of(files, baseline=None, rows=rows)
    averages, digests = [], []
    for entry in ("params_ema", "params"):
        write(files / "mine.yml", tests | {"path": {"pretrain_network_g": str(weights), "param_key_g": entry}})
        assert "to do: test" in make_tables([Table.read(path)], dry_run=True)
        make_tables([Table.read(path)])
        averages.append(json.loads(Path("results/tiny_w/rain.json").read_text())["average"])
        digests.append(json.loads(Path("results/tiny_w/tested.json").read_text())["rain"])
    assert averages[0] != averages[1]
    parts = [{"network_g": tests["network_g"], "interface_g": None, "val": tests["val"]}, file_digest(weights)]
    before = json.dumps([*parts, tests["datasets"]["test_1"]], sort_keys=True)
    assert digests[0] == text_digest(before) != digests[1]

    def todo(**loaded) -> bool:
        write(files / "mine.yml", tests | {"path": {"pretrain_network_g": str(weights), **loaded}})
        return "to do: test" in make_tables([Table.read(path)], dry_run=True)

    assert not todo()  # the toolbox then takes `params`
    assert todo(strict_load_g=False) and todo(param_key_g="params_ema") and not todo(strict_load_g=True)


def test_costs_of_given_weights_need_no_test_set(files):
    others = dict.fromkeys(("input", "teacher", "alone", "csd"))
    path = matrix_of(files, base=None, test=None, baseline=None, rows=others | {"b": {"weights": "tiny"}})
    [_, _, shown] = [line for line in make_tables([Table.read(path)]).splitlines() if line.startswith("|")]
    assert shown.startswith("| b | 73,820 | ")
    plain = matrix_of(
        files, base=None, test=None, baseline=None, complexity=False, rows=others | {"b": {"weights": "tiny"}}
    )
    assert runs_of(read_matrix(plain), plain)["tiny_b"].test is None


def test_given_weights_need_no_option_file(files, launcher, monkeypatch):
    """The first in a process of its own, as users test it."""
    others = dict.fromkeys(("input", "teacher", "alone", "csd"))
    rows = others | {"b": {"label": "tiny", "weights": "tiny"}}
    path = matrix_of(files, base=None, baseline=None, rows=rows)
    test = runs_of(read_matrix(path), path)["tiny_b"].test
    assert (test["network_g"]["type"], test["network_g"]["num_feat"]) == ("HalfNet", 16)
    make_tables([Table.read(path)])
    Calls(launcher, monkeypatch)
    with_base = matrix_of(files, name="with_base", runs="other", baseline=None, rows=rows)
    make_tables([Table.read(with_base)])
    scores = [json.loads(Path(f"results/{runs}_b/rain.json").read_text())["average"] for runs in ("tiny", "other")]
    assert scores[0] == scores[1]

    torch.save({"params": {"some.weight": torch.zeros(3)}}, files / "unknown.pth")
    path = matrix_of(files, base=None, baseline=None, rows=others | {"b": {"weights": str(files / "unknown.pth")}})
    with pytest.raises(CSDError, match=r"rows\.b: .*unknown\.pth does not show which network .*give the row a base"):
        runs_of(read_matrix(path), path)


def test_a_row_has_one_source(files):
    rows = {"frames": {"frames": "x"}, "weights": {"weights": "realtime", "input": False, "frames": None}}
    path = matrix_of(files, rows=rows)
    matrix = read_matrix(path)
    kinds = [row.source.kind for row in matrix.rows.values()]
    assert kinds == ["input", "training", "training", "training", "frames", "weights"]
    assert matrix.rows["frames"].source.frames == str(files / "x")
    shipped = runs_of(matrix, path, ["weights"])["tiny_weights"]
    assert shipped.checkpoint.name == "realtime.pth"
    network = shipped.test["network_g"]  # what the weights are of, not what the matrix trains
    assert (network["type"], network["num_feat"], network["num_frame"]) == ("HalfNet", 32, 3)


def test_a_schedule_is_stretched_as_a_whole(tiny_rain):
    options = train_options(tiny_rain, **{"train.total_iter": 1000, "train.warmup_iter": 100})
    options["train"]["scheduler"] = {"type": "CosineAnnealingRestartLR", "periods": [999], "restart_weights": [1]}
    options["val"] = {"val_freq": 500}
    options["logger"]["save_checkpoint_freq"] = 100
    weights = {"a": 0.1, "b": {"schedule": "stop_at", "start": 0.1, "iters": 500}, "c": {"balance": 0.3, "until": 800}}
    options["train"]["distill_opt"] = {"weights": weights}
    options["train"]["layers"] = {"a": {"frozen": 400}, "b": {"frozen": True}, "c": {"frozen": False, "lr_mul": 0.1}}
    half = stretched(options, 0.5)
    assert half["train"]["total_iter"] == 500 and half["train"]["warmup_iter"] == 50
    assert half["train"]["scheduler"]["periods"] == [500]
    assert half["val"]["val_freq"] == 250 and half["logger"]["save_checkpoint_freq"] == 50
    assert half["train"]["distill_opt"]["weights"]["b"] == {"schedule": "stop_at", "start": 0.1, "iters": 250}
    assert half["train"]["distill_opt"]["weights"]["c"] == {"balance": 0.3, "until": 400}
    frozen = {name: layer["frozen"] for name, layer in half["train"]["layers"].items()}
    assert frozen == {"a": 200, "b": True, "c": False}
    assert options["train"]["total_iter"] == 1000 and weights["c"]["until"] == 800
    options["train"] |= {"max_seconds": 60, "scheduler": {"type": "MultiStepRestartLR", "restarts": [0, 600]}}
    half = stretched(options, 0.5)["train"]
    assert half["max_seconds"] == 30 and half["scheduler"]["restarts"] == [0, 300]
    assert stretched(options, 0.5)["logger"]["print_freq"] == options["logger"]["print_freq"]


class Calls:
    """In place of processes: every launch in turn, which leaves behind what a training or test does."""

    def __init__(self, launcher, monkeypatch) -> None:
        self.jobs: list[str] = []
        self.launcher = launcher
        monkeypatch.setattr(runner, "_launch", self._launch)
        self.fail_at = ""

    def _launch(self, job, run, options, space, bar, processes=1) -> None:
        self.jobs.append(f"{job} {run.name}")
        file = space.options(run, job)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(options), encoding="utf-8")
        if self.jobs[-1] == self.fail_at:
            raise CSDError("stopped")
        flags = ("--auto_resume",) if job == "train" else ()
        assert self.launcher._launch(job, json.loads(json.dumps(options)), *flags) == 0


def test_a_matrix_is_trained_taken_up_again_and_written(files, launcher, monkeypatch, capsys):
    monkeypatch.chdir(launcher.folder)
    calls = Calls(launcher, monkeypatch)
    calls.fail_at = "train tiny_csd"
    assert main(["table", str(files / "matrix.yml")]) == 2
    assert calls.jobs[:3] == ["train tiny_teacher", "train tiny_alone", "test tiny_alone"]  # the teacher is not shown
    assert Path("results/tiny_input/rain.json").is_file()

    calls.jobs.clear()
    calls.fail_at = ""
    assert main(["table", str(files / "matrix.yml")]) == 0
    assert calls.jobs == ["train tiny_csd", "test tiny_csd"]

    calls.jobs.clear()
    capsys.readouterr()
    assert main(["table", str(files / "matrix.yml")]) == 0
    assert calls.jobs == []
    text = capsys.readouterr().out
    assert "| CSD | " in text and "rainy input" in text and "alone (2 seeds)" in text
    assert "±" in text and "| 37.00 |" in text and "published for CSD: of a1, b1" in text

    with Path("results/table/table.csv").open(encoding="utf-8") as file:
        head, *rows = list(csv.reader(file))
    by_name = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    expected = json.loads(Path("results/tiny_csd/rain.json").read_text())["average"]["nturain_y"]["psnr"]
    assert by_name["CSD"]["rain Y PSNR"] == f"{expected:.2f}"
    parameters = sum(p.numel() for p in SLDNet(**SHALLOW_STUDENT).parameters())
    assert by_name["CSD"]["parameters"] == f"{parameters:,}"
    assert by_name["rainy input"]["parameters"] == "-"
    assert r"\caption{A \& B}" in Path("results/table/table.tex").read_text(encoding="utf-8")
    assert "<td>37.00</td>" in Path("results/table/table.html").read_text(encoding="utf-8")

    # Other options for a row that is trained: said, not mixed; --retrain puts the old run aside.
    other = matrix_of(files, set={"network_t": OTHER, "train.grad_clip": 1.0})
    assert main(["table", str(other), "--only", "csd"]) == 2
    assert "train.grad_clip = None instead of 1.0; --retrain" in capsys.readouterr().err
    assert main(["table", str(other), "--only", "teacher", "--retrain", "teacher"]) == 0
    assert Path("experiments/tiny_teacher_before1").is_dir()


def test_what_starts_from_a_row_goes_with_it(files, launcher, monkeypatch, capsys):
    monkeypatch.chdir(launcher.folder)
    calls = Calls(launcher, monkeypatch)
    matrix = str(files / "matrix.yml")
    assert main(["table", matrix]) == 0
    calls.jobs.clear()
    capsys.readouterr()
    assert main(["table", matrix, "--only", "csd", "--retrain", "teacher", "--dry-run"]) == 0
    states = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines()[:2])
    assert states == {"tiny_teacher": "missing", "tiny_csd": "missing"}
    with FileLock("results/tiny_runs/locks/tiny_csd.lock"):  # another command is working on it
        assert main(["table", matrix, "--only", "csd", "--retrain", "teacher"]) == 2
    assert "tiny_csd cannot be done again: another command is working on it" in capsys.readouterr().err
    assert not list(Path("experiments").glob("*_before1"))
    assert main(["table", matrix, "--only", "csd", "--retrain", "teacher"]) == 0
    assert calls.jobs == ["train tiny_teacher", "train tiny_csd", "test tiny_csd"]
    assert Path("experiments/tiny_csd_before1").is_dir() and not Path("experiments/tiny_alone_before1").exists()

    # The rows that --only left out began with the teacher of before.
    teacher = Path("experiments/tiny_teacher/models/net_g_latest.pth")
    content = torch.load(teacher, weights_only=True)
    torch.save({key: {k: v * 1.01 for k, v in state.items()} for key, state in content.items()}, teacher)
    for flags in ([], ["--dry-run"]):
        capsys.readouterr()
        assert main(["table", matrix, *flags]) == 2
        assert "began with experiments/tiny_teacher" in capsys.readouterr().err
    calls.jobs.clear()
    assert main(["table", matrix, "--retrain", "alone", "csd"]) == 0
    assert [job for job in calls.jobs if job.startswith("train")] == [
        "train tiny_alone",
        "train tiny_alone_seed1",
        "train tiny_csd",
    ]


def test_rows_to_retrain_are_there(files, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["table", str(files / "matrix.yml"), "--retrain", "techer"]) == 2
    assert "did you mean teacher?" in capsys.readouterr().err
    assert main(["table", str(files / "matrix.yml"), "--only", "input", "--retrain", "csd"]) == 2
    assert "--only leaves this row out" in capsys.readouterr().err


def test_a_table_of_nothing_says_nothing_of_steps(files, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["table", str(files / "matrix.yml"), "--no-train"]) == 0
    assert "steps:" not in capsys.readouterr().out


def test_processes_that_share_runs_do_not_meet_in_one(files, monkeypatch, tmp_path):
    """Two at once, as threads: each run is worked on by one at a time, and all are done."""
    monkeypatch.chdir(tmp_path)
    runs = runs_of(read_matrix(files / "matrix.yml"), files / "matrix.yml")
    space, at_work, worked = runner.Workspace("tiny"), set(), []
    someone_waits = threading.Event()

    class Lock(runner.FileLock):
        def acquire(self, *args, blocking=True, **kwargs):
            if blocking:
                someone_waits.set()
            return super().acquire(*args, blocking=blocking, **kwargs)

    def complete(run, *_) -> None:
        assert run.name not in at_work
        at_work.add(run.name)
        worked.append(run.name)
        assert someone_waits.wait(60), "the other has not come to the run that this one is at"
        at_work.remove(run.name)

    monkeypatch.setattr(runner, "FileLock", Lock)
    monkeypatch.setattr(runner, "_complete", complete)
    monkeypatch.setattr(runner, "state", lambda run: "missing")
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(runner.perform, runs, space) for _ in range(2)]:
            done.result()
    assert sorted(worked) == sorted([*runs, *runs])


# Trains until it is ended; the sleep has an end so that a test that fails has one.
FOREVER = """
import os, signal, sys, time
from pathlib import Path

def end(*_):
    print("stopping when this step is done and saved; once more to leave at once", file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("a second signal, before anything was saved"))
    time.sleep(0.5)
    Path("saved").write_text(str(os.getpgrp()))
    sys.exit(1)

signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as processes in the background have it
print("iter: 1, eta: 1:00:00", file=sys.stderr, flush=True)
time.sleep(100)
"""


@pytest.fixture
def interruptible():
    """Ctrl-C is heard, which processes that were started in the background do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_table_that_is_ended_lets_its_training_save(files, interruptible, number, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "elsewhere" / "csd_plugin"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "train.py").write_text(FOREVER)
    monkeypatch.setattr(runner, "environment", lambda processes: os.environ | {"PYTHONPATH": str(package.parent)})

    class Bar(runner.tqdm):
        def set_postfix_str(self, text, *args, **kwargs) -> None:
            if "iteration 1" in text:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(runner, "tqdm", Bar)
    runs = runs_of(read_matrix(files / "matrix.yml"), files / "matrix.yml", ["teacher"])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        runner.perform(runs, runner.Workspace("tiny"))
    assert capsys.readouterr().err.count("stopping when this step is done and saved") == 1
    group = (tmp_path / "saved").read_text()
    assert group != str(os.getpgrp()), "a terminal's Ctrl-C would be its second signal"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_dry_run_tells_what_is_given_from_what_was_trained(files, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["table", str(files / "matrix.yml"), "--dry-run"]) == 0
    states = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines()[:3])
    assert states == {"tiny_input": "given", "tiny_teacher": "missing", "tiny_alone": "missing"}


def test_one_command_at_a_time_decides_on_the_plan(files, launcher, monkeypatch):
    """It is kept before another one looks for it."""
    monkeypatch.chdir(launcher.folder)
    Calls(launcher, monkeypatch)
    held = []

    def seen(name, function):
        def call(*given, **more):
            with pytest.raises(CSDError, match="another command"), alone(runner.Workspace("tiny").plan):
                pass
            held.append(name)
            return function(*given, **more)

        return call

    monkeypatch.setattr("csd_plugin.lab.job.plan_for", seen("found", plan_for))
    monkeypatch.setattr(Plan, "keep", seen("kept", Plan.keep))
    assert main(["table", str(files / "matrix.yml"), "--only", "teacher"]) == 0
    assert held == ["found", "kept"]


@pytest.fixture
def ten_seconds_a_step(monkeypatch):
    monkeypatch.setattr("csd_plugin.lab.plan.MIN_STEPS", 1)
    monkeypatch.setattr("csd_plugin.lab.plan.step_seconds", lambda options: 10.0)


def steps(runs) -> list[int]:
    return [run.options["train"]["total_iter"] for run in runs.values() if run.options]


THREEFOLD = 70 * 3 / 60 / 0.8  # teacher 1 step, two students of 2 and CSD of 2: 7 steps of 10 seconds at full length


def begin(space: runner.Workspace, name: str) -> Path:
    """What is left of a training that was stopped after its first saved state."""
    (space.folder / "options").mkdir(parents=True, exist_ok=True)
    (space.folder / "options" / f"{name}.yml").touch()
    state = Path("experiments", name, "training_states", "1.state")
    state.parent.mkdir(parents=True)
    state.touch()
    return state


def test_a_budget_sets_all_schedules_once(files, ten_seconds_a_step, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    runs, space = runs_of(read_matrix(files / "matrix.yml"), files / "matrix.yml"), runner.Workspace("tiny")
    plan, note = plan_for(runs.values(), space, THREEFOLD)
    assert steps(plan.fit(runs)) == [3, 6, 6, 6] and not note
    plan.keep(space)
    begin(space, "tiny_teacher")
    again, note = plan_for(runs.values(), space, 1)
    assert again == plan and "--minutes 1 is not followed: tiny_teacher has begun" in note
    assert plan_for(runs.values(), space, None) == plan_for(runs.values(), space, THREEFOLD) == (plan, "")
    # All that has begun is done anew: the new budget holds.
    other, note = plan_for(runs.values(), space, THREEFOLD / 3, {"tiny_teacher"})
    assert steps(other.fit(runs)) == steps(runs) and not note


def test_a_budget_counts_rows_by_the_clock_as_that_says(files, ten_seconds_a_step, monkeypatch, tmp_path, capsys):
    """Not as the iterations of their schedule, which are meant to be more than fit."""
    monkeypatch.chdir(tmp_path)
    clock = {"train.total_iter": 1000, "train.max_seconds": 20}
    teacher = {"start": {"network_t": "teacher"}}
    path = matrix_of(files, rows={"csd": {**teacher, "set": clock}})
    runs = runs_of(read_matrix(path), path)
    plan, _ = plan_for(runs.values(), runner.Workspace("tiny"), THREEFOLD)
    assert plan.factor == pytest.approx(3) and steps(plan.fit(runs)) == [3, 6, 6, 3000]
    assert plan.fit(runs)["tiny_csd"].options["train"]["max_seconds"] == pytest.approx(60)
    runs["tiny_csd"].options["train"]["max_seconds"] = 1e9  # its iterations are over before
    assert plan_for(runs.values(), runner.Workspace("tiny"), 5 * 60)[0].factor == pytest.approx(4 * 3600 / 10050)
    assert main(["table", str(path), "--dry-run"]) == 0
    assert "train, test     at most 1,000 steps in 20 s" in capsys.readouterr().out


def test_a_budget_that_comes_after_the_first_steps_changes_nothing(files, ten_seconds_a_step, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    runs, space = runs_of(read_matrix(files / "matrix.yml"), files / "matrix.yml"), runner.Workspace("tiny")
    state = begin(space, "tiny_teacher")
    plan, note = plan_for(runs.values(), space, THREEFOLD)
    assert steps(plan.fit(runs)) == steps(runs) and "schedules as the option files have them" in note
    plan.keep(space)
    assert not space.plan.exists()
    state.unlink()  # stopped before it had saved anything: the budget is free again
    plan, note = plan_for(runs.values(), space, THREEFOLD)
    assert steps(plan.fit(runs)) == [3, 6, 6, 6] and not note


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        '{"minutes": 3}',
        *(f'{{"minutes": 3, "factor": {factor}}}' for factor in ('"x"', "-1", "0", "true", "NaN", "Infinity", "1e999")),
        '{"minutes": 3, "factor": %s}' % ("9" * 400),
        '{"minutes": 3, "factor": 1e300}',
        *(f'{{"minutes": {minutes}, "factor": 2}}' for minutes in ("null", "-3", '"3"', "Infinity", "1e300")),
    ],
)
def test_a_damaged_plan_is_one_line(files, content, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    plan = runner.Workspace("tiny").plan
    plan.parent.mkdir(parents=True)
    plan.write_text(content, encoding="utf-8")
    assert main(["table", str(files / "matrix.yml"), "--dry-run"]) == 2
    assert "plan.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--minutes", "1"], ["--minutes", "1", "--dry-run"]])
def test_a_gpu_that_is_not_there_is_said_before_anything_is_done(files, flags, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    matrix = matrix_of(files, set={"network_t": OTHER, "num_gpu": 1})
    assert main(["table", str(matrix), *flags]) == 2
    assert "num_gpu is 1, but 0 were found" in capsys.readouterr().err
    assert not Path("results").exists() and not Path("experiments").exists()


@pytest.mark.parametrize("minutes", ["0", "-3", "nan", "inf"])
def test_a_budget_is_a_time(files, minutes, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["table", str(files / "matrix.yml"), f"--minutes={minutes}"])
    assert ended.value.code == 2
    assert f"argument --minutes: '{minutes}' is not a number from 0.01" in capsys.readouterr().err
    with pytest.raises(CSDError, match="give a time above 0"):
        make_tables([Table.read(files / "matrix.yml")], minutes=float(minutes))


def test_steps_are_timed_without_checkpoints_or_data(files):
    from csd_plugin import registration
    from csd_plugin.lab.plan import step_seconds

    registration.install()
    path = files / "matrix.yml"
    state = torch.get_rng_state()
    assert step_seconds(runs_of(read_matrix(path), path)["tiny_csd"].options) > 0
    assert torch.equal(state, torch.get_rng_state())


def test_what_is_not_here_is_left_out_and_said(files, launcher, monkeypatch, capsys):
    monkeypatch.chdir(launcher.folder)
    Calls(launcher, monkeypatch)
    rows = {"alone": None, "csd": None, "teacher": None, "spac": {"label": "SpacCNN", "frames": "no/frames"}}
    assert main(["table", str(matrix_of(files, baseline=None, rows=rows))]) == 0
    text = capsys.readouterr().out
    assert "spac: left out" in text and "| SpacCNN | - |" in text


def test_frames_that_are_their_truth_do_not_keep_a_table_from_being_written(files):
    """Their PSNR is infinite: it has no deviation over seeds, and no difference from another such one."""

    path = matrix_of(files, rows={"csd": {"label": "CSD", "published": {"psnr": 36.0}}})
    scored("tiny_input", 30.0)
    scored("tiny_csd", 31.0, math.inf)
    for seeds in ((33.0, math.inf), (math.inf, math.inf)):
        for run, psnr in zip(("tiny_alone", "tiny_alone_seed1"), seeds, strict=True):
            scored(run, psnr)
        rows, notes = table_of(path)
        assert rows["alone (2 seeds)"]["rain Y PSNR"] == "inf" and rows["alone (2 seeds)"]["rain Y ΔPSNR"] == "-"
        assert rows["alone (2 seeds)"]["rain Y SSIM"] == "1.0000 ± 0.0000"
        assert rows["CSD"]["rain Y ΔPSNR"] == ("+inf" if seeds[0] == 33 else "-")
        assert rows["rainy input"]["rain Y ΔPSNR"] == "-inf"
        assert not any("nan" in text for text in [*notes, *(cell for row in rows.values() for cell in row.values())])
        assert any("here on rain: - dB" in note for note in notes)


def test_a_gain_is_over_the_seeds_that_both_rows_have(files):
    """A seed of one row and the mean of other seeds differ by more than the rows do."""
    rows = {
        "csd": {"label": "CSD", "start": {"network_t": "teacher"}},
        "all": {"start": {"network_t": "teacher"}, "seeds": [0, 1, 2]},
        "other": {"start": {"network_t": "teacher"}, "seeds": [7]},
    }
    path = matrix_of(files, rows=rows)
    scored("tiny_input", 30.0)
    scored("tiny_csd", 35.1)
    for number, (base, every) in enumerate(((35.0, 35.2), (34.0, 34.4))):
        scored("tiny_alone" + "_seed1" * number, base)
        scored("tiny_all" + "_seed1" * number, every)
    scored("tiny_all_seed2", 40.0)
    scored("tiny_other", 36.0)
    rows, notes = table_of(path)
    gains = {label: row["rain Y ΔPSNR"] for label, row in rows.items()}
    assert gains == {
        "rainy input": "-4.50 ± 0.71",  # the same for all seeds
        "alone (2 seeds)": "-",
        "CSD": "+0.10",
        "all (3 seeds)": "+0.30 ± 0.14",
        "other": "-",
    }
    assert notes[:3] == [
        "rain Y ΔPSNR of CSD: over seed 0 of alone (2 seeds)",
        "rain Y ΔPSNR of all (3 seeds): over seeds 0, 1 of alone (2 seeds)",
        "rain Y ΔPSNR of other: none, as alone (2 seeds) has no seed in common",
    ]
    Path("results/tiny_alone_seed1/rain.json").unlink()
    rows, notes = table_of(path)
    assert rows["CSD"]["rain Y ΔPSNR"] == "+0.10" and not any("of CSD" in note for note in notes)


def test_a_gain_over_a_row_that_is_not_trained_is_that_of_each_seed(files):
    scored("tiny_input", 30.0)
    for run, psnr in (("tiny_alone", 35.0), ("tiny_alone_seed1", 34.0)):
        scored(run, psnr)
    rows, notes = table_of(matrix_of(files, baseline="input"))
    assert rows["alone (2 seeds)"]["rain Y ΔPSNR"] == "+4.50 ± 0.71" and not any("ΔPSNR" in note for note in notes)


def test_the_best_of_a_column_is_marked_unless_it_is_alone(files):
    for run, psnr in (("tiny_input", 30.0), ("tiny_alone", 35.0), ("tiny_csd", 34.0)):
        scored(run, psnr)
    tie = {"tiny_alone": 34.004}  # shown as 34.00, as is that of CSD
    for rows, changed, marked in (
        ({}, {}, ["35.00"]),
        ({"input": None, "alone": None}, {}, []),
        ({}, tie, ["34.00"] * 2),
    ):
        for run, psnr in changed.items():
            scored(run, psnr)
        path = matrix_of(files, baseline=None, rows=rows)
        matrix = read_matrix(path)
        grid = build(matrix, runs_of(matrix, path), {})
        column = grid.head.index("rain Y PSNR")
        assert [grid.rows[row][column] for row, place in grid.best if place == column] == marked


def test_columns_of_clips_are_averages_over_seeds_by_the_published_protocol(files):
    path = matrix_of(files, baseline=None, clips=True, rows={"input": None, "csd": None})
    for run, psnr in (("tiny_alone", 35.0), ("tiny_alone_seed1", 34.0)):
        scores = Scores()
        for clip, more in (("a1", 0), ("a2", 2)):
            qualities = {"nturain_y": Quality(psnr + more, 1.0), "rgb": Quality(psnr - 9, 1.0)}
            scores.record(clip, "1", qualities)
        write_results(Path("results", run), "rain", scores, {"network": run, "dataset": "rain"})
    rows, _ = table_of(path)
    row = rows["alone (2 seeds)"]
    assert [row[title] for title in ("a1", "a2", "rain Y PSNR", "rain RGB PSNR")] == [
        *("34.50", "36.50"),
        *("35.50 ± 0.71", "25.50 ± 0.71"),
    ]


def test_published_numbers_of_some_clips_say_nothing_of_the_order_on_more(files):
    rows = {"alone": None, "input": None, "csd": {"published": "student1 + CSD"}, "before": {"published": "student1"}}
    for run, psnr in (("tiny_csd", 33.0), ("tiny_before", 34.0)):
        scores = Scores()
        for clip in ("a1", "mine"):
            scores.record(clip, "1", dict.fromkeys(PROTOCOLS, Quality(psnr, 1.0)))
        write_results(Path("results", run), "rain", scores, {"network": run, "dataset": "rain"})
    assert table_of(matrix_of(files, baseline=None, rows=rows))[1] == []


def test_neighbours_that_are_equal_or_within_the_seeds_are_said(files):
    rows = {"csd": {"label": "CSD", "seeds": [0], "published": {"psnr": 36.0}}, "input": None}
    path = matrix_of(files, baseline=None, published_of="one clip", rows=rows)
    for run, psnr in (("tiny_alone", 35.0), ("tiny_alone_seed1", 34.0)):
        scored(run, psnr)
    for psnr, difference in ((34.5, "+0.00"), (34.0, "-0.50")):
        scored("tiny_csd", psnr)
        notes = table_of(path)[1]
        assert notes[0] == "0 of 1 neighbours in the published order stand in that order on rain"
        assert notes[1].endswith(f"here on rain: {difference} dB, within the seeds' deviation of 0.71")
    scored("tiny_csd", 33.0)
    assert table_of(path)[1][1].endswith("here on rain: -1.50 dB")


def test_published_numbers_are_of_the_clips_that_were_scored(files):
    rows = {"alone": None, "input": None, "csd": {"published": "student1 + CSD"}, "before": {"published": "student1"}}
    path = matrix_of(files, baseline=None, rows=rows)
    figures, notes = table_of(path)  # nothing was scored: all eight
    title = "published PSNR (a1, a2, a3, a4, b1, b2, b3, b4)"
    assert [row[title] for row in figures.values()] == ["36.70", "35.17"] and not notes

    scored("tiny_csd", 34.0, clip="a1")
    figures, notes = table_of(path)  # of a row that has no result yet too
    assert [row["published PSNR (a1)"] for row in figures.values()] == ["36.81", "35.49"] and not notes
    assert [row["published SSIM (a1)"] for row in figures.values()] == ["0.9757", "0.9723"]
    scored("tiny_before", 33.0, clip="a1")
    assert table_of(path)[1] == ["1 of 1 neighbours in the published order stand in that order on rain"]

    scored("tiny_before", 33.0, clip="a3")
    figures, notes = table_of(path)
    assert [row["published PSNR"] for row in figures.values()] == ["36.81", "34.49"]
    assert notes == ["published for csd: of a1", "published for before: of a3"]
    scored("tiny_before", 33.0, clip="mine")
    figures, notes = table_of(path)
    assert [row["published PSNR (a1)"] for row in figures.values()] == ["36.81", "-"]
    assert notes == ["published for before: nothing of the clips here"]


def test_published_ties_have_no_order(files):
    published = {"alone": 35.0, "csd": 35.5, "tied": 35.5, "best": 36.0}
    rows = {key: {"seeds": [0], "published": {"psnr": psnr}} for key, psnr in published.items()}
    path = matrix_of(files, baseline=None, published_of="five clips", rows=rows | {"input": None})
    for key, psnr in {"alone": 30.0, "csd": 31.0, "tied": 32.0, "best": 29.0}.items():
        scored(f"tiny_{key}", psnr)
    figures, notes = table_of(path)
    assert figures["alone"]["published PSNR (five clips)"] == "35.00"
    assert notes[0] == "1 of 2 neighbours in the published order stand in that order on rain"
    path = matrix_of(
        files, baseline=None, rows={key: rows[key] for key in ("csd", "tied")} | dict.fromkeys(("alone", "input"))
    )
    assert table_of(path)[1] == []


def test_table_2_counts_its_networks(tmp_path, monkeypatch, capsys):
    """Seconds per frame have three digits that count: fast networks differ."""
    seconds = {"teacher": 1.5, "student1": 0.0078, "student2": 0.013, "student3": 12.0}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("csd_plugin.lab.table._seconds", lambda networks: {name: seconds[name] for name in networks})
    assert main(["table", str(OPTIONS / "matrix" / "table2.yml")]) == 0
    text = capsys.readouterr().out.replace("**", "")
    assert "| student1 | 136,563 | 5.76 | 0.00780 |" in text
    assert [f"| {cell} |" in text for cell in ("1.50", "0.0130", "12.0")] == [True] * 3


def test_the_time_that_timing_takes_is_said_before(monkeypatch, capsys):
    """Half a second on 128x128 is 9.4 on 640x480: twice that, four times."""
    from csd_plugin.lab import table

    passes = []

    def in_turns(contenders, rounds, title):
        assert capsys.readouterr().err == "timing 2 networks on frames of 640x480, 4 times each: about 75 s\n"
        return {name: [1.0, 2.0, 3.0] for name in contenders}

    monkeypatch.setattr(table, "seconds", lambda once: passes.append(once().shape) or 0.5)
    monkeypatch.setattr(table, "in_turns", in_turns)
    networks = {name: _build({"network_g": {"type": "SLDNet", "preset": name}}) for name in ("student1", "student3")}
    assert table._seconds(networks) == {"student1": 2.0, "student3": 2.0}
    assert passes == [(1, 3, 128, 128)] * 2
    monkeypatch.setattr(table, "in_turns", lambda *_: {})
    assert table._seconds({}) == {} and not capsys.readouterr().err


def test_operations_of_a_sequence_are_those_of_one_frame():
    class Clips(torch.nn.Conv2d):
        def forward(self, clips):
            return super().forward(clips.flatten(0, 1)).view(clips.shape)

    network = Clips(3, 3, 1, bias=False)
    costs = [_cost(network, Interface(length, "sequence"), None, counted=True) for length in (3, 5)]
    assert [(cost.parameters, cost.operations) for cost in costs] == [(9, 9 * COUNTED_SIZE**2)] * 2


def test_the_operations_of_a_network_that_torch_cannot_trace_are_left_out(capsys):
    class Untraced(torch.nn.Conv2d):
        def forward(self, x):
            if torch.jit.is_tracing():
                raise RuntimeError("no tracing")
            return super().forward(x)

    cost = _cost(Untraced(3, 3, 1), Interface(1, "image"), 0.5, counted=True)
    assert (cost.parameters, cost.operations, cost.seconds) == (12, None, 0.5)
    assert (
        "torch cannot trace Untraced to count its multiply-adds (no tracing); the table leaves"
        in capsys.readouterr().err
    )


def test_without_validation_in_training_its_data_need_not_be_there(files):
    with_val = yaml.safe_load((files / "student.yml").read_text())
    with_val["datasets"]["val"] = {"name": "gone", "type": "PairedVideoTestDataset", "dataroot": "gone", "num_frame": 3}
    write(files / "student.yml", with_val)
    path = matrix_of(files, set={"network_t": OTHER, "val": None})
    assert "val" not in runs_of(read_matrix(path), path)["tiny_csd"].options["datasets"]


OPTIONS = Path(__file__).resolve().parents[2] / "options"


@pytest.mark.parametrize("path", sorted((OPTIONS / "matrix").glob("*.yml")), ids=lambda path: path.stem)
def test_every_row_of_our_matrix_files_passes_the_checks_of_a_run(path, tmp_path, monkeypatch):
    from csd_plugin.archs.s2vd import S2VD
    from csd_plugin.options.checks import check_options

    monkeypatch.chdir(tmp_path)  # where users put S2VD's weights
    torch.save(S2VD(num_feat=2, num_block=1).state_dict(), "s2vd_derainer_rho05.pt")
    runs = runs_of(read_matrix(path), path)
    assert runs or path.stem == "cpu"  # what others include
    for run in runs.values():
        if run.options is not None:
            check_options({**run.options, "is_train": True}, run.name)
        if run.test is not None and run.test["datasets"]:
            check_options({**run.test, "is_train": False}, run.name)

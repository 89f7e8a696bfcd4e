"""Rows of a matrix that are trained in several processes: their share of a batch, and what a signal leaves."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
import torch
import yaml
from test_matrix import OTHER, files, interruptible, matrix_of
from toolbox import changed, train_options

from csd_plugin.cli import main
from csd_plugin.errors import CSDError
from csd_plugin.lab import runner
from csd_plugin.lab.job import Table, make_tables
from csd_plugin.lab.matrix import read_matrix, runs_of
from csd_plugin.lab.processes import share_of, training

__all__ = ["files", "interruptible"]  # fixtures


def options_with(batch: int, parts: int | None = None) -> dict:
    options = train_options(Path("data"), **{"datasets.train.batch_size_per_gpu": batch})
    return options if parts is None else changed(options, {"train.accumulate": parts})


def test_a_batch_is_shared_out_and_so_are_its_parts():
    assert share_of(options_with(6), 1) == {}
    assert share_of(options_with(6), 3) == {"datasets.train.batch_size_per_gpu": 2}
    whole = share_of(options_with(8, 4), 2)
    assert whole == {"datasets.train.batch_size_per_gpu": 4, "train.accumulate": 2}
    assert share_of(options_with(4, 3), 4)["train.accumulate"] == 1
    with pytest.raises(CSDError, match=r"is 6, the whole batch, and cannot be shared by 4 .* 1, 2, 3 or 6"):
        share_of(options_with(6), 4)


def test_the_command_is_torchrun_s():
    alone = training(Path("x.yml"), options_with(6), 1)
    assert alone[1:] == ["-m", "csd_plugin.train", "-opt", "x.yml", "--auto_resume"]
    command = " ".join(training(Path("x.yml"), options_with(6), 2)[1:])
    assert command == (
        "-m torch.distributed.run --standalone --nproc_per_node 2 -m csd_plugin.train --launcher pytorch -opt x.yml "
        "--auto_resume --force_yml datasets:train:batch_size_per_gpu=3"
    )


@pytest.mark.parametrize("flags", [[], ["--dry-run"], ["--minutes", "5"]])
def test_a_batch_that_cannot_be_shared_is_one_line(files, flags, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["table", str(files / "matrix.yml"), "--nproc-per-node", "3", *flags]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "give --nproc-per-node 1 or 2" in error
    assert "the row teacher: datasets.train.batch_size_per_gpu is 2, the whole batch" in error
    assert not Path("results").exists()


def test_gpus_for_all_and_no_clock(files, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    teacher = {"network_t": OTHER}
    matrix = matrix_of(files, set=teacher | {"num_gpu": 1})
    assert main(["table", str(matrix), "--nproc-per-node", "2"]) == 2
    assert "1 GPUs were found for 2 processes" in capsys.readouterr().err
    matrix = matrix_of(files, set=teacher | {"train.max_seconds": 60})
    assert main(["table", str(matrix), "--nproc-per-node", "2"]) == 2
    assert "train.max_seconds is for one process" in capsys.readouterr().err
    assert main(["reproduce", str(matrix), "--nproc-per-node", "3"]) == 2
    assert "the whole batch" in capsys.readouterr().err


def test_a_budget_is_fitted_to_the_share_of_one(files, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    timed = []

    def step_seconds(options):
        timed.append((options["datasets"]["train"]["batch_size_per_gpu"], torch.get_num_threads()))
        return 1.0

    monkeypatch.setattr("csd_plugin.lab.plan.step_seconds", step_seconds)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    threads = torch.get_num_threads()
    make_tables([Table.read(files / "matrix.yml")], minutes=60, processes=2, dry_run=True)
    assert set(timed) == {(1, 3)} and torch.get_num_threads() == threads


# What a training leaves behind that a signal has stopped, by itself or under torchrun, and one that has failed.
ENDED = """
import signal, sys
from pathlib import Path

name = Path(sys.argv[sys.argv.index("-opt") + 1]).stem
states = Path("experiments", name, "training_states")
states.mkdir(parents=True)
(states / "3.state").touch()
print({said!r}, file=sys.stderr)
sys.exit({status})
"""
STOPPED = "2026-01-01 WARNING: SIGTERM: stopped after iteration 3; --auto_resume resumes from 3.state"


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        ("", 143, "csd table: interrupted in train of tiny_teacher; the same command resumes"),
        ("", 129, "csd table: interrupted in train of tiny_teacher; the same command resumes"),
        (STOPPED, 1, "csd table: interrupted in train of tiny_teacher; the same command resumes"),
        ("error: rank 1 (host a, process 7): SIGTERM", 1, "csd table: interrupted in train of tiny_teacher"),
        ("Sending process 12 closing signal SIGTERM", 1, "train of tiny_teacher failed: status 1"),
        ("error: rank 1 (host a, process 7): no", 1, "tiny_teacher failed: rank 1 (host a, process 7): no"),
    ],
)
def test_what_a_signal_has_stopped_is_interrupted(files, said, status, words, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "elsewhere" / "csd_plugin"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "train.py").write_text(ENDED.format(said=said, status=status))
    monkeypatch.setattr(runner, "environment", lambda processes: os.environ | {"PYTHONPATH": str(package.parent)})
    assert main(["table", str(files / "matrix.yml"), "--only", "teacher"]) == (130 if "interrupted" in words else 2)
    assert words in capsys.readouterr().err
    assert main(["table", str(files / "matrix.yml"), "--only", "teacher", "--dry-run"]) == 0
    assert re.search(r"tiny_teacher +interrupted +to do: resume", capsys.readouterr().out)


def test_a_row_is_stopped_in_two_processes_and_finished_in_one(files, interruptible, monkeypatch, launcher):
    """The student is that of a run in one process that nobody has stopped."""
    path = files / "teacher.yml"
    options = yaml.safe_load(path.read_text())
    options["train"] |= {"total_iter": 8, "optim_g": {"type": "SGD", "lr": 0.003}}
    options["datasets"]["train"]["dataset_enlarge_ratio"] = 10
    path.write_text(yaml.safe_dump(options))
    monkeypatch.chdir(launcher.folder)
    matrix = matrix_of(files, rows={"teacher": {"base": "teacher.yml", "shown": False}})
    runs = runs_of(read_matrix(matrix), matrix, ["teacher"])
    [run] = runs.values()
    assert launcher.train(changed(run.options, {"name": "whole"})) == 0

    class Bar(runner.tqdm):
        def set_postfix_str(self, text, *args, **kwargs) -> None:
            if "iteration 3" in text:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runner, "tqdm", Bar)
    with pytest.raises(KeyboardInterrupt):
        runner.perform(runs, runner.Workspace("tiny"), processes=2)
    log = runner.Workspace("tiny").log(run).read_text()
    assert re.search(r"SIGTERM: stopped after iteration [3-7];", log) and runner.state(run) == "interrupted"
    monkeypatch.undo()
    monkeypatch.chdir(launcher.folder)
    runner.perform(runs, runner.Workspace("tiny"))
    assert runner.state(run) == "done"
    whole, finished = (
        torch.load(Path("experiments", name, "models", "net_g_latest.pth")) for name in ("whole", run.name)
    )
    for key in ("params", "params_ema"):
        for name, weight in whole[key].items():
            torch.testing.assert_close(finished[key][name], weight, rtol=1e-4, atol=1e-6)

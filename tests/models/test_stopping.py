"""A training that is stopped from outside, whose files are damaged, or whose losses are not finite."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from test_exact_resume import assert_same, left_behind
from toolbox import changed, distill_options, equal, scored_set, train_options

from csd_plugin.losses.ssim import PyramidSSIMLoss
from csd_plugin.models.distill_model import DistillModel
from csd_plugin.models.validation import ValidationMixin
from csd_plugin.models.video_derain_model import VideoDerainModel
from csd_plugin.stopping import Stopped, StopRequest

ROOT = Path(__file__).resolve().parents[2]


# ---------------------------------------------------------------------- signals
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_and_saves_all(launcher, tiny_rain, tiny_teacher, monkeypatch, capfd, number, status):
    options = distill_options(tiny_rain, tiny_teacher, **{"train.total_iter": 5, "logger.save_checkpoint_freq": 100})
    assert launcher.train(changed(options, {"name": "whole"})) == 0
    before = signal.getsignal(number)
    compute = DistillModel.compute_losses

    def signalled(self, current_iter):
        if current_iter == 3:
            os.kill(os.getpid(), number)
        return compute(self, current_iter)

    capfd.readouterr()
    monkeypatch.setattr(DistillModel, "compute_losses", signalled)
    assert launcher.train(options) == status
    monkeypatch.setattr(DistillModel, "compute_losses", compute)
    assert signal.getsignal(number) is before
    said = capfd.readouterr().err
    name = signal.Signals(number).name
    [line] = [line for line in said.splitlines() if "--auto_resume" in line]
    assert f"{name}: stopped after iteration 3; --auto_resume resumes from " in line
    promised = Path(line.rpartition(" ")[2])
    assert promised.is_file() and promised.name == "3.state"

    assert launcher.train(options, "--auto_resume") == 0
    assert "warning" not in capfd.readouterr().err
    whole, resumed = launcher.weights("net_g_latest", "whole"), launcher.weights("net_g_latest")
    assert equal(whole, resumed)
    assert equal(*(launcher.weights("objective_latest", name) for name in ("whole", "run")))


@pytest.fixture
def request_of_a_step():
    """One that is listening during a step."""
    stop = StopRequest()
    with stop.listening():
        stop.begin_step()
        yield stop


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_hangup_is_never_the_second_signal(request_of_a_step, first):
    """A closed terminal sends it more than once, service managers after SIGTERM."""
    signal.raise_signal(first)
    signal.raise_signal(signal.SIGHUP)
    assert request_of_a_step.signal == first
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGTERM)


def test_a_training_under_nohup_goes_on():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest().listening():
            signal.raise_signal(signal.SIGHUP)  # before the first step, where others end at once
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_of_a_program_around_python_are_no_error_at_the_end(monkeypatch):
    """Of a handler that Python has not installed, it only says None."""
    ours = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with monkeypatch.context() as patch:
            patch.setattr(signal, "getsignal", lambda number: None)
            with StopRequest().listening():
                pass
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


def test_a_second_signal_leaves_at_once(launcher, tiny_rain, monkeypatch, capfd):
    def twice(self, current_iter):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(VideoDerainModel, "compute_losses", twice)
    assert launcher.train(train_options(tiny_rain)) == 143
    assert "ended at once; everything after the last saved state is lost" in capfd.readouterr().err
    assert not list((launcher.folder / "experiments/run/training_states").iterdir())


def test_before_the_first_step_a_signal_leaves_at_once(launcher, tiny_rain, monkeypatch, capfd):
    monkeypatch.setattr(VideoDerainModel, "init_training_settings", lambda self: os.kill(os.getpid(), signal.SIGINT))
    assert launcher.train(train_options(tiny_rain)) == 130
    assert "lost" not in capfd.readouterr().err


def test_a_validation_is_left_when_a_signal_comes(launcher, tiny_rain, monkeypatch, capfd):
    options = train_options(tiny_rain, **{"datasets.val": scored_set(tiny_rain), "logger.save_checkpoint_freq": 9})
    options |= {"val": {"val_freq": 1, "save_img": False}}
    predict = ValidationMixin._predict

    def signalled(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return predict(self, *arguments)

    monkeypatch.setattr(ValidationMixin, "_predict", signalled)
    assert launcher.train(options) == 143
    assert "stopped after iteration 1" in capfd.readouterr().err
    experiment = launcher.folder / "experiments/run"
    assert (experiment / "training_states/1.state").is_file() and not (experiment / "metrics").exists()
    monkeypatch.setattr(ValidationMixin, "_predict", predict)
    assert launcher.train(options, "--auto_resume") == 0


OWN = "import csd_plugin; csd_plugin.activate(); from basicsr.train import train_pipeline; train_pipeline('.')"


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (["-m", "csd_plugin.train"], signal.SIGINT),
        (["-m", "csd_plugin.train"], signal.SIGHUP),
        (["-c", OWN], signal.SIGTERM),
    ],
    ids=["ours, SIGINT", "ours, SIGHUP", "the toolbox's, SIGTERM"],
)
def test_a_process_with_workers_is_stopped(tmp_path, tiny_rain, command, number):
    """As terminals (Ctrl-C) and schedulers do it: the signal reaches the loader's workers, too."""
    options = train_options(tiny_rain, **{"train.total_iter": 100000, "logger.print_freq": 1})
    options["datasets"]["train"] |= {"num_worker_per_gpu": 2, "dataset_enlarge_ratio": 1000}
    options["logger"]["save_checkpoint_freq"] = 10**6
    (tmp_path / "options.yml").write_text(yaml.safe_dump(options, sort_keys=False))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *command, "-opt", "options.yml"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    said = ""
    for line in process.stderr:
        said += line
        if re.search(r"iter: +3,", line):
            os.killpg(process.pid, number)
            break
    said += process.stderr.read()
    assert process.wait(60) == 128 + number, said[-3000:]
    assert "Traceback" not in said
    stopped = re.search(r"stopped after iteration (\d+); --auto_resume resumes from (.*)", said)
    state = torch.load(tmp_path / stopped[2], weights_only=True)
    assert state["iter"] == int(stopped[1]) >= 3


# ---------------------------------------------------------------------- what is kept, and what is damaged
def files(launcher, folder):
    return {path.name for path in (launcher.folder / "experiments/run" / folder).iterdir()}


def test_the_newest_and_the_best_are_kept(launcher, tiny_rain, tiny_teacher, monkeypatch):
    options = distill_options(tiny_rain, tiny_teacher, **{"datasets.val": scored_set(tiny_rain)})
    options |= {"val": {"val_freq": 1, "save_img": False}}
    options["train"]["total_iter"] = 4
    options["logger"] |= {"save_checkpoint_freq": 1, "keep_checkpoints": 2, "keep_best": "rgb/psnr"}
    values = iter([20.0, 26.0, 25.0, 30.0, 30.0, 29.0, 28.0])  # the last iteration is validated twice
    summary = {"rgb/psnr": 0.0}
    monkeypatch.setattr("csd_plugin.metrics.scores.Scores.summary", lambda self: summary | {"rgb/psnr": next(values)})
    assert launcher.train(options) == 0
    assert files(launcher, "training_states") == {"3.state", "4.state"}
    assert files(launcher, "models") == {
        *("net_g_3.pth", "net_g_4.pth", "net_g_latest.pth", "net_g_best.pth"),
        *("objective_3.pth", "objective_4.pth", "objective_latest.pth"),
    }
    best = launcher.weights("net_g_best", key="params_ema")
    # the best of a validation after the latest state is known to the resumed run, too
    assert launcher.train(changed(options, {"train.total_iter": 5}), "--auto_resume") == 0
    assert equal(best, launcher.weights("net_g_best", key="params_ema"))
    assert launcher.models[-1].best_metric_results["rain"]["rgb/psnr"] == (30.0, 4)


def test_the_best_is_the_latest_of_equals_on_the_first_set(launcher, tiny_rain, monkeypatch):
    sets = {"datasets.val": scored_set(tiny_rain), "datasets.val_2": scored_set(tiny_rain, name="other", clips=["b1"])}
    options = train_options(tiny_rain, **sets, val={"val_freq": 1, "save_img": False})
    options["train"]["total_iter"] = 3
    options["logger"] |= {"save_checkpoint_freq": 1, "keep_best": "rgb/psnr"}
    values = iter([30.0, 20.0, 30.0, 20.0, 20.0, 30.0, 20.0, 30.0])  # of both sets in turns
    monkeypatch.setattr("csd_plugin.metrics.scores.Scores.summary", lambda self: {"rgb/psnr": next(values)})
    assert launcher.train(options) == 0
    assert launcher.models[-1].best_metric_results == {
        "rain": {"rgb/psnr": (30.0, 2)},
        "other": {"rgb/psnr": (30.0, 3)},
    }
    assert equal(*(launcher.weights(name, key="params_ema") for name in ("net_g_best", "net_g_2")))


@pytest.mark.parametrize(
    ("what", "damage"),
    [
        ("models/net_g_4.pth", "flipped"),
        ("models/net_g_4.pth", "gone"),
        ("models/objective_4.pth", "cut"),
        ("training_states/4.state", "empty"),
    ],
)
def test_a_damaged_newest_state_gives_way_to_the_one_before(launcher, tiny_rain, tiny_teacher, capfd, what, damage):
    options = distill_options(tiny_rain, tiny_teacher, **{"train.total_iter": 4})
    assert launcher.train(changed(options, {"name": "whole", "train.total_iter": 5})) == 0
    assert launcher.train(options) == 0
    path = launcher.folder / "experiments/run" / what
    hurt(path, damage)
    capfd.readouterr()
    assert launcher.train(changed(options, {"train.total_iter": 5}), "--auto_resume") == 0
    [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert path.name in line and line.endswith("resuming from " + str(path.parents[1] / "training_states/2.state"))
    assert_same(*(left_behind(launcher, name) for name in ("whole", "run")))


def hurt(path, damage):
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "flipped":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()


def test_no_whole_state_is_an_error_not_a_new_start(launcher, tiny_rain, capfd):
    options = train_options(tiny_rain)
    assert launcher.train(options) == 0
    hurt(launcher.folder / "experiments/run/training_states/2.state", "flipped")
    capfd.readouterr()
    assert launcher.train(options, "--auto_resume") == 2
    assert "2.state is damaged" in capfd.readouterr().err


def test_what_killed_writers_left_is_removed(launcher, tiny_rain):
    options = train_options(tiny_rain)
    assert launcher.train(options) == 0
    left = launcher.folder / "experiments/run/models/.net_g_3.4321.part.pth"
    left.write_bytes(b"half")
    assert launcher.train(changed(options, {"train.total_iter": 3}), "--auto_resume") == 0
    assert not left.exists()


# ---------------------------------------------------------------------- losses that are not finite
@pytest.fixture
def sometimes(monkeypatch):
    """sometimes(2, 5): in training, the second loss and the fifth are not finite. Trials before it have other sizes."""
    original = PyramidSSIMLoss.forward

    def set_up(*bad):
        calls = itertools.count(1)

        def forward(self, output, gt):
            loss = original(self, output, gt)
            return loss * float("nan") if output.shape[-1] == 24 and next(calls) in bad else loss

        monkeypatch.setattr(PyramidSSIMLoss, "forward", forward)

    return set_up


def test_a_batch_whose_loss_is_not_finite_is_left_out(launcher, tiny_rain, sometimes, capfd):
    options = train_options(tiny_rain, **{"train.total_iter": 4, "logger.save_checkpoint_freq": 1})
    sometimes(2)
    assert launcher.train(options) == 0
    for key in ("params", "params_ema"):
        before, after, later = (launcher.weights(f"net_g_{iteration}", key=key) for iteration in (1, 2, 3))
        assert equal(before, after) and not equal(after, later)
    said = capfd.readouterr().err
    [line] = [line for line in said.splitlines() if "WARNING" in line and "not finite" in line]
    assert "iteration 2: l_recon not finite on t" in line and "(1 so far, at most 10)" in line
    assert "skipped: 1.0000e+00" in said
    [kept] = (launcher.folder / "experiments/run/skipped.txt").read_text().splitlines()
    assert kept.startswith("iteration 2: l_recon not finite on t")
    assert all(weight.isfinite().all() for weight in launcher.weights("net_g_latest", key="params_ema").values())
    state = torch.load(launcher.folder / "experiments/run/training_states/4.state", weights_only=True)
    assert state["skipped"] == 1
    assert {int(entry["step"]) for entry in state["optimizers"][0]["state"].values()} == {3}
    assert launcher.train(changed(options, {"train.total_iter": 5}), "--auto_resume") == 0
    assert launcher.models[-1].skipped == 1


def test_too_many_of_them_end_the_run(launcher, tiny_rain, sometimes, capfd):
    options = train_options(tiny_rain, **{"train.total_iter": 4, "train.skip_limit": 1})
    sometimes(2, 4)
    assert launcher.train(options) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: iteration 4: l_recon not finite on t") and "2 batches" in error
    assert len((launcher.folder / "experiments/run/skipped.txt").read_text().splitlines()) == 2

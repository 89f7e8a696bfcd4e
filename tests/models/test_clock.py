"""Runs of a length in time, on a clock that tests move."""

from __future__ import annotations

import math
import re
import time
from functools import partial

import pytest
import torch
from toolbox import changed, distill_options, train_options

from csd_plugin import train
from csd_plugin.models import clock
from csd_plugin.models.clock import Clock
from csd_plugin.models.video_derain_model import VideoDerainModel

SCHEDULE = {"type": "CosineAnnealingRestartLR", "periods": [100], "restart_weights": [1], "eta_min": 1e-7}
BY_THE_CLOCK = {"train.total_iter": 100, "train.scheduler": SCHEDULE, "datasets.train.dataset_enlarge_ratio": 100}


@pytest.fixture
def now(monkeypatch):
    """The time, in a list; tests move it."""
    now = [0.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def steps_of_ten_seconds(now, monkeypatch):
    """Every optimizer step takes ten seconds, and nothing else takes any. Gives the rates of the steps."""
    rates = []
    step = VideoDerainModel._backward

    def timed(self, current_iter):
        rates.append(self.get_current_learning_rate()[0])
        now[0] += 10
        return step(self, current_iter)

    monkeypatch.setattr(VideoDerainModel, "_backward", timed)
    return rates


def rate_at(share):
    """Of a cosine from 0.001."""
    return 0.0005 * (1 + math.cos(math.pi * share))


def test_a_clock():
    running = Clock(60)
    assert not running.is_over() and running.iteration(1000) == 0
    running.resume(30)
    assert 500 <= running.iteration(1000) < 600
    running.resume(40)
    assert running.is_over() and running.iteration(1000) == 1000


def test_a_validation_between_two_steps_is_not_taken_for_the_length_of_a_step(now):
    running = Clock(100)
    for now[0] in (10, 20, 80):  # the last after a validation of fifty seconds
        assert not running.is_over()
    now[0] = 95
    assert running.is_over()


def test_the_slowest_of_the_saves_is_reckoned_with(now):
    running = Clock(100)
    for seconds in (10, 1):
        with running.saves():
            now[0] += seconds
    for now[0], over in ((75, False), (78, True)):  # a step of three seconds, and ten for each of two files
        assert running.is_over() == over


def test_what_is_written_at_the_end_is_in_the_time(launcher, tiny_rain, now, steps_of_ten_seconds, monkeypatch):
    """Saving takes ten seconds, too, and is done after each step; two more at the end."""
    save = VideoDerainModel.save_network

    def slow(self, *args, **kwargs):
        now[0] += 10
        save(self, *args, **kwargs)

    monkeypatch.setattr(VideoDerainModel, "save_network", slow)
    options = train_options(tiny_rain, **BY_THE_CLOCK, **{"train.max_seconds": 100})
    options["logger"]["save_checkpoint_freq"] = 1
    assert launcher.train(options) == 0
    assert len(steps_of_ten_seconds) == 4 and now[0] == 90


def test_the_start_of_the_process_is_in_the_time(launcher, tiny_rain, steps_of_ten_seconds, monkeypatch):
    monkeypatch.setattr(train, "main", partial(train.main, began=-30.0))
    assert launcher.train(train_options(tiny_rain, **BY_THE_CLOCK, **{"train.max_seconds": 50})) == 0
    assert len(steps_of_ten_seconds) == 2


def test_a_run_ends_in_time_with_its_schedule_at_the_end(launcher, tiny_rain, steps_of_ten_seconds):
    assert launcher.train(train_options(tiny_rain, **BY_THE_CLOCK, **{"train.max_seconds": 50})) == 0
    rates = steps_of_ten_seconds
    assert len(rates) == 5 and rates == sorted(rates, reverse=True)
    assert rates == pytest.approx([rate_at(share) for share in (0, 0.2, 0.4, 0.6, 0.8)], rel=1e-3)
    assert torch.equal(launcher.weights("net_g_5")["conv1.weight"], launcher.weights("net_g_latest")["conv1.weight"])


def test_a_resumed_run_has_what_is_left_of_its_time(launcher, tiny_rain, tiny_teacher, steps_of_ten_seconds):
    options = distill_options(tiny_rain, tiny_teacher, **BY_THE_CLOCK, **{"train.max_seconds": 30})
    assert launcher.train(options) == 0
    options["train"]["max_seconds"] = 50
    assert launcher.train(options, "--auto_resume") == 0
    rates = steps_of_ten_seconds
    assert rates == pytest.approx([rate_at(share) for share in (0, 0.33, 0.66, 0.6, 0.8)], rel=1e-3)
    launcher.weights("net_g_5"), launcher.weights("objective_latest")


def left(log):
    """The times left in a log, in seconds."""
    times = re.findall(r"eta: (\d+):(\d+):(\d+)", log)
    return [3600 * int(hours) + 60 * int(minutes) + int(seconds) for hours, minutes, seconds in times]


def test_the_time_left_is_that_of_the_clock(launcher, tiny_rain, now, steps_of_ten_seconds, capfd, monkeypatch):
    """Not that of all steps of total_iter, also in a resumed run; without a clock, it is that of the steps again."""
    monkeypatch.setattr(time, "time", lambda: now[0])
    options = train_options(tiny_rain, **BY_THE_CLOCK, **{"train.max_seconds": 30})
    assert launcher.train(options) == 0
    assert left(capfd.readouterr().err) == [20, 10]  # the last step ends the run
    options["train"]["max_seconds"] = 50
    assert launcher.train(options, "--auto_resume") == 0
    assert left(capfd.readouterr().err) == [10]
    options = changed(options, {"train.total_iter": 4, "train.scheduler.periods": [4], "train.max_seconds": 100})
    assert launcher.train(changed(options, {"name": "few"})) == 0
    assert left(capfd.readouterr().err) == [90, 80, 70, 0]
    assert launcher.train(changed(options, {"name": "steps", "train.max_seconds": ...})) == 0
    assert left(capfd.readouterr().err) == [0, 6, 5, 0]  # by the toolbox, from the end of the first step on


def test_a_much_longer_time_goes_back_to_where_the_schedule_is_then(launcher, tiny_rain, steps_of_ten_seconds, capfd):
    """Its own part of the time counts, not how far it had come, and another rate as if it had been there before."""
    options = train_options(tiny_rain, **BY_THE_CLOCK, **{"train.max_seconds": 30})
    assert launcher.train(options) == 0
    options["train"]["max_seconds"] = 300
    options["train"]["optim_g"]["lr"] = 2e-3
    assert launcher.train(options, "--auto_resume") == 0
    assert "options have changed since: lr 0.001 -> 0.002, train.max_seconds" in capfd.readouterr().err
    rates = steps_of_ten_seconds
    assert rates[3:] == pytest.approx(
        [2 * rate_at(int(100 * part / 30) / 100) for part in range(3, 30)], rel=1e-3, abs=2e-7
    )


def test_steps_that_outnumber_total_iter_follow_the_clock_still(launcher, tiny_rain, steps_of_ten_seconds, capfd):
    options = train_options(tiny_rain, **BY_THE_CLOCK, **{"train.max_seconds": 300})
    options["train"]["scheduler"]["periods"] = [20]
    options["train"]["total_iter"] = 20
    assert launcher.train(options) == 0
    assert steps_of_ten_seconds == pytest.approx([rate_at(int(2 * step / 3) / 20) for step in range(20)], rel=1e-3)
    assert "all 20 iterations were done in 65% of the time" in capfd.readouterr().err


def test_without_a_clock_a_resumed_run_goes_by_its_iterations(launcher, tiny_rain, steps_of_ten_seconds):
    options = train_options(tiny_rain, **BY_THE_CLOCK, **{"train.max_seconds": 30})
    options["train"]["scheduler"]["periods"] = [9]
    options["train"]["total_iter"] = 9
    assert launcher.train(options) == 0
    del options["train"]["max_seconds"]
    assert launcher.train(options, "--auto_resume") == 0
    assert steps_of_ten_seconds[3:] == pytest.approx([rate_at(step / 9) for step in range(3, 9)], abs=2e-7)


def test_milestones_that_are_passed_are_not_lost_with_the_warm_up(launcher, tiny_rain, steps_of_ten_seconds):
    steps = {"type": "MultiStepRestartLR", "milestones": [60], "gamma": 0.1}
    options = train_options(tiny_rain, **BY_THE_CLOCK | {"train.scheduler": steps}, **{"train.max_seconds": 80})
    options["train"]["warmup_iter"] = 3
    assert launcher.train(options) == 0
    before = list(steps_of_ten_seconds)
    options["train"]["max_seconds"] = 120
    assert launcher.train(options, "--auto_resume") == 0
    rates = steps_of_ten_seconds[len(before) :]
    assert before[3:5] == pytest.approx([0.001] * 2) and rates == pytest.approx([0.0001] * len(rates))


def test_several_processes_have_several_clocks():
    from csd_plugin.errors import CSDError
    from csd_plugin.models.preflight import check_clock

    opt = {"is_train": True, "dist": True, "train": {"max_seconds": 5}}
    with pytest.raises(CSDError, match="one process"):
        check_clock(opt)
    check_clock(opt | {"dist": False})


def test_a_schedule_by_the_clock_is_one_that_can_be_stepped_through():
    from csd_plugin.errors import CSDError
    from csd_plugin.models.preflight import check_clock

    opt = {"is_train": True, "dist": False, "train": {"max_seconds": 5, "total_iter": 10**9}}
    with pytest.raises(CSDError, match="set total_iter"):
        check_clock(opt)
    check_clock(opt | {"train": {"max_seconds": 5, "total_iter": 200_000}})
    check_clock(opt | {"train": {"total_iter": 10**9}})

"""Every number that a command or an option file takes: a slice of the wrong values, and that the tool sees faults."""

from __future__ import annotations

import argparse
import sys

import fuzz_numbers
import pytest

from csd_plugin.cli import JOBS

NONSENSE = ("", "abc", "nan", "inf", "-inf", "1e30", "1e999999999", "9" * 5000)


@pytest.mark.parametrize("job", JOBS)
def test_every_number_of_every_command_is_bounded(job):
    """Whatever is not a number, or not finite, ends at the parser; what passes it is tried by tools/fuzz_numbers.py."""
    for name, action in fuzz_numbers.numeric_flags():
        if name.split()[0] == job and not fuzz_numbers.takes_sizes(action):
            for text in NONSENSE:
                with pytest.raises((argparse.ArgumentTypeError, ValueError)) as error:
                    action.type(text)
                assert "\n" not in str(error.value), f"csd {name} {action.option_strings}"


def test_numbers_are_found_where_they_are():
    flags = {(job, action.option_strings[-1]) for job, action in fuzz_numbers.numeric_flags()}
    some = {("prepare", "--jobs"), ("inspect", "--size"), ("bench infer", "--sizes"), ("figure crops", "--frame")}
    assert some <= flags and {job for job, _ in flags} <= fuzz_numbers.COMMANDS.keys()
    keys = {path for _, _, options in fuzz_numbers.bases() for path in fuzz_numbers.numbers_of(options)}
    assert {
        "manual_seed",
        "datasets.train.scale_range",
        "train.optim_g.betas.0",
        "train.scheduler.eta_min",
        "train.distill_opt.num_scale",
        "train.distill_opt.weights.spatial.iters",
        "val.batch_size",
        "network_g.num_stage",
    } <= keys


def test_no_number_ends_in_a_traceback(capsys):
    """A slice; `python tools/fuzz_numbers.py` does all."""
    assert fuzz_numbers.main(["--count", "40", "--seed", "4", "--only", " = "]) == 0
    done, refused, failed = (int(part.split()[0]) for part in capsys.readouterr().out.splitlines()[-1].split(", "))
    assert done + refused == 40 and failed == 0 and min(done, refused) > 0


def test_faults_are_seen(monkeypatch):
    def outcome(run):
        return fuzz_numbers.judge(fuzz_numbers.Case("case", run))[0]

    def say(text, status):
        print(text, file=sys.stderr)
        return status

    assert outcome(lambda: 1 / 0) == fuzz_numbers.FAILED
    assert outcome(lambda: say("Traceback (most recent call last):", 2)) == fuzz_numbers.FAILED
    assert outcome(lambda: say("no line of error", 2)) == fuzz_numbers.FAILED
    assert outcome(lambda: say("csd x: error: one\nerror: two", 2)) == fuzz_numbers.FAILED
    assert outcome(lambda: say("csd x: error: one", 2)) == fuzz_numbers.REFUSED
    assert outcome(lambda: 0) == fuzz_numbers.DONE
    assert fuzz_numbers.judge(fuzz_numbers.Case("a: unchanged", lambda: say("error: x", 2)))[0] == fuzz_numbers.FAILED

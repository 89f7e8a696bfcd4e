from __future__ import annotations

import pytest

from csd_plugin.models.short_runs import short_run_warnings

LONG = {"total_iter": 1000, "ema_decay": 0}


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({}, []),
        ({"warmup_iter": -1}, []),
        ({"warmup_iter": 999}, []),
        ({"warmup_iter": 1000}, ["train.warmup_iter 1,000 is not over after total_iter 1,000 steps"]),
        ({"warmup_iter": 1e6}, ["train.warmup_iter 1e+06 is not over"]),
        ({"warmup_iter": 5000, "max_seconds": 60}, []),  # how many steps there will be is not known
        ({"warmup_iter": 5000, "ema_decay": 0.9999}, ["train.ema_decay 0.9999 is long", "train.warmup_iter 5,000"]),
    ],
)
def test_what_is_said(train, said):
    found = short_run_warnings(LONG | train)
    assert len(found) == len(said) and all(line.startswith(start) for line, start in zip(found, said, strict=True))

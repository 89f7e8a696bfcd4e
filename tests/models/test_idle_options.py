from __future__ import annotations

import pytest
from torch import nn

from csd_plugin.models.idle_options import idle_options, part_warnings

LONG = {"total_iter": 1000, "ema_decay": 0}


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({}, []),
        ({"warmup_iter": -1}, []),
        ({"warmup_iter": 999}, []),
        ({"warmup_iter": 1000}, ["train.warmup_iter 1,000 does not end before total_iter 1,000:"]),
        ({"warmup_iter": 1234567.0}, ["train.warmup_iter 1,234,567 does not end"]),
        ({"warmup_iter": 5000, "max_seconds": 60}, []),  # how many steps there will be is not known
        ({"layers": {"a": {"frozen": 999}, "b": {"frozen": True}, "c": {"lr_mul": 2.0}}}, []),
        ({"layers": {"a": {"frozen": 1e3}}}, ["train.layers.a.frozen 1,000 does not end before total_iter 1,000:"]),
        ({"layers": {"a": {"frozen": 5000}}, "max_seconds": 60}, []),
        ({"cuda_graph": True}, ["train.cuda_graph has no effect without a GPU"]),
        (
            {"warmup_iter": 5000, "ema_decay": 0.9999, "ema_warmup": False},
            ["train.ema_decay 0.9999 without ema_warmup", "train.warmup_iter 5,000"],
        ),
    ],
)
def test_what_is_said(train, said):
    found = idle_options({"is_train": True, "num_gpu": 0, "train": LONG | train, "logger": {"print_freq": 1}})
    assert len(found) == len(said) and all(line.startswith(start) for line, start in zip(found, said, strict=True))


def test_a_distillation_whose_steps_are_all_logged_records_none():
    train = LONG | {"cuda_graph": True, "distill_opt": {"weights": {"spatial": 0.1}}}
    run = {"is_train": True, "model_type": "DistillModel", "num_gpu": 1, "train": train}
    assert "logger.print_freq 1" in idle_options(run | {"logger": {"print_freq": 1}})[0]
    assert idle_options(run | {"logger": {"print_freq": 2}}) == []
    assert idle_options(run | {"model_type": "VideoDerainModel", "logger": {"print_freq": 1}}) == []


@pytest.mark.parametrize(
    ("temporal", "said"),
    [
        ({"schedule": "linear", "start": 1, "iters": 9}, True),
        ({"schedule": "cosine", "start": 1, "iters": 9}, True),
        ({"schedule": "stop_at", "start": 1, "iters": 9}, False),
        ({"schedule": "constant", "start": 1}, False),
        ({"balance": 0.3}, False),
    ],
)
def test_weights_that_move_record_nothing(temporal, said):
    train = LONG | {"cuda_graph": True, "distill_opt": {"weights": {"spatial": 0.1, "temporal": temporal}}}
    run = {"is_train": True, "model_type": "DistillModel", "num_gpu": 1, "train": train, "logger": {"print_freq": 9}}
    assert [("weights change (temporal)" in line) for line in idle_options(run)] == [True] * said


def test_keys_that_nobody_reads_are_named():
    run = {
        "is_train": True,
        "rank": 0,
        "model_type": "DistillModel",
        "num_gpu": 0,
        "seed": 3,
        "x-paths": {"data": "/data"},  # for anchors
        "network_t2": {"type": "SLDNet"},
        "train": LONG | {"kd_opt": {"type": "CSD"}},
        "val": {"save_img": False, "use_image": True},
        "logger": {"print_freq": 1},
    }
    [line] = idle_options(run)
    assert line.startswith("seed, train.kd_opt, val.use_image have no effect: DistillModel reads no such key")
    assert idle_options(run | {"model_type": "MyModel"}) == []


def test_batch_normalisation_of_parts_is_named():
    normalises = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.InstanceNorm2d(4))
    [line] = part_warnings({"train": {"accumulate": 2}}, normalises)
    assert line.startswith("train.accumulate 2: 1 of network_g normalises by the clips that it sees")
    assert part_warnings({"train": {"accumulate": 1}}, normalises) == []
    assert part_warnings({"train": {"accumulate": 2}}, normalises[0]) == []

"""The presets of the paper and the released code: what they fill in, what wins, what is told."""

from __future__ import annotations

import copy

import pytest
from toolbox import changed, distill_options

from csd_plugin.distill.fidelity import FIDELITIES, POINTS, filled, mismatches, report
from csd_plugin.distill.objective import build_objective
from csd_plugin.distill.settings import read_distillation
from csd_plugin.options.checks import check_options

ALL = {
    "paper": {
        "aggregation": "mean_squared",
        "scale_source": "feature",
        "order": "spatial_first",
        "detach_teacher_state": True,
        "cells": "joint",
    },
    "released": {
        "aggregation": "sum_squared",
        "scale_source": "frames",
        "order": "temporal_first",
        "detach_teacher_state": False,
        "cells": "joint",
    },
}
TARGETS = {"paper": 5, "released": 4}


def options(fidelity, **changes):
    given = {"train.distill_opt.fidelity": fidelity, "datasets.train.num_target": TARGETS[fidelity]}
    return changed(distill_options("data", "teacher.pth"), given | changes)


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_what_is_left_out_is_filled_in(fidelity):
    opt = options(fidelity)
    before = copy.deepcopy(opt)
    train = filled(opt)["train"]
    assert opt == before
    assert ALL[fidelity].items() <= train["distill_opt"].items()
    assert train["pixel_opt"]["scale_weights"] == ([0.6, 0.2, 0.2] if fidelity == "paper" else [1.0, 0.5, 0.5])
    assert filled(filled(opt)) == filled(opt)
    assert mismatches(opt) == []
    objective = read_distillation(opt).objective
    assert objective == {"type": "CSD", "hidden": 4} | ALL[fidelity]
    build_objective(objective)
    lines = report(opt)
    assert lines[0] == f"fidelity: {fidelity}"
    assert all(any(f"{path}: {by_preset[fidelity]}" in line for line in lines) for path, by_preset in POINTS.items())


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_one_of_several_objectives_has_a_fidelity(fidelity):
    parts = [
        {"type": "OutputDistillation"},
        {"type": "CSD", "hidden": 4, "fidelity": fidelity, "order": "spatial_first"},
    ]
    opt = options(fidelity)
    weights = opt["train"]["distill_opt"]["weights"] | {"output": 0.5}
    opt["train"]["distill_opt"] = {"type": "Combined", "objectives": parts, "weights": weights}
    check_options(opt | {"is_train": True}, "a file")
    train = filled(opt)["train"]
    assert train["distill_opt"]["objectives"] == [parts[0], ALL[fidelity] | parts[1]]
    assert train["distill_opt"].keys() == {"type", "objectives", "weights"}
    assert train["pixel_opt"]["scale_weights"] == ([0.6, 0.2, 0.2] if fidelity == "paper" else [1.0, 0.5, 0.5])
    build_objective(read_distillation(opt).objective)
    lines, key = report(opt), "train.distill_opt.objectives.1"
    assert any(f"{key}.aggregation: {ALL[fidelity]['aggregation']}" in line for line in lines)
    released = f"{key}.order is spatial_first, but fidelity: released has temporal_first; the file's value is used"
    assert mismatches(opt) == ([released] if fidelity == "released" else [])


def test_what_the_file_gives_wins_and_is_told():
    changes = {"train.distill_opt.aggregation": "mean_squared", "train.pixel_opt.scale_weights": [0.6, 0.2, 0.2]}
    opt = options("released", **changes, **{"datasets.train.num_target": 2})
    result = filled(opt)
    assert result["train"]["distill_opt"]["aggregation"] == "mean_squared"
    assert result["train"]["pixel_opt"]["scale_weights"] == [0.6, 0.2, 0.2]
    assert result["datasets"] == opt["datasets"]
    assert mismatches(opt) == [
        "train.distill_opt.aggregation is mean_squared, but fidelity: released has sum_squared; the file's "
        "value is used",
        "train.pixel_opt.scale_weights is [0.6, 0.2, 0.2], but fidelity: released has [1.0, 0.5, 0.5]; the file's "
        "value is used",
        "datasets.train.num_target is 2, but fidelity: released has 4; the file's value is used",
    ]


def test_another_loss_gets_no_keys_that_it_does_not_take():
    opt = options("paper", **{"train.pixel_opt": {"type": "L1Loss"}})
    assert filled(opt)["train"]["pixel_opt"] == {"type": "L1Loss"}
    assert mismatches(opt)[0].startswith("train.pixel_opt.type is L1Loss, but fidelity: paper has PyramidSSIMLoss")


def test_the_released_codes_rest_is_listed():
    text = "\n".join(report(options("released")))
    assert all(words in text for words in ("six optimizer steps", "optical flow", "top-left corner", "same gradient"))
    assert "(paper: mean_squared)" in text


def test_without_a_fidelity_nothing_changes():
    opt = distill_options("data", "teacher.pth")
    assert filled(opt) == opt
    assert report(opt) == mismatches(opt) == []

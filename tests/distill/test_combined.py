"""Several objectives at once are the sum of what each is alone."""

from __future__ import annotations

import pytest
import torch
from test_methods import clean, view
from toolbox import distill_options

from csd_plugin.distill.combined import Combined
from csd_plugin.distill.objective import build_objective
from csd_plugin.errors import CSDError
from csd_plugin.types import ClipView

PARTS = [{"type": "STD", "hidden": 4}, {"type": "FAKD", "pool": 2}]
POOLED = {"hidden": 4, "scale_source": "frames", "num_scale": 2}
"""Options of CSD, which also looks at the features of pooled frames."""


def test_its_terms_are_those_of_its_parts():
    torch.manual_seed(0)
    combined = build_objective({"type": "Combined", "objectives": PARTS})
    torch.manual_seed(0)
    alone = [build_objective(options) for options in PARTS]
    pair = view(1, dtype=torch.float32), view(2, dtype=torch.float32)
    expected = [part(*pair, clean().float()) for part in alone]
    found = combined(*pair, clean().float())
    assert combined.terms == ("space", "time", "affinity", "truth", "teacher") == tuple(found.losses)
    for terms in expected:
        assert all(torch.equal(found.losses[name], loss) for name, loss in terms.losses.items())
        assert terms.diagnostics.keys() <= found.diagnostics.keys()


def test_it_asks_for_what_its_parts_need():
    outputs = [{"type": "OutputDistillation"}, {"type": "TeacherTruthBlend"}]
    assert not Combined(objectives=outputs).needs_features
    frames = Combined(objectives=[*outputs, {"type": "CSD", "scale_source": "frames"}])
    assert frames.needs_features and frames.input_scales == (1, 2, 4)
    few = Combined(objectives=[{"type": "CSD", "adaptor": False, "independent": False, "collaborative": False}])
    assert [len(objective.weights_without_use()) for objective in (few, *few.parts)] == [
        len(few.parts[0].weights_without_use())
    ] * 2


def test_its_parts_follow_each_step():
    combined = Combined(objectives=[{"type": "CSD", "cells": "averaged", "hidden": 4}, {"type": "SRKD"}])
    cells = combined.parts[0]
    with torch.no_grad():
        for parameter in (p for p in combined.parameters() if p.requires_grad):
            parameter += 1
    now = {name: value.clone() for name, value in cells.state_dict().items()}
    combined.after_step()
    after = cells.state_dict()
    assert any(not torch.equal(after[name], now[name]) for name in now)


def tapped(seed, count):
    views = [view(seed + 10 * tap, dtype=torch.float32) for tap in range(count)]
    features = tuple(one.features[1][0] for one in views)
    pooled = tuple(feature[..., : feature.shape[3] // 2, : feature.shape[4] // 2] for feature in features)
    return ClipView(views[0].output, {1: features, 2: pooled})


def test_a_part_compares_its_taps():
    torch.manual_seed(0)
    combined = build_objective(
        {
            "type": "Combined",
            "objectives": [
                {"type": "SRKD", "taps": [2, 0]},
                {"type": "STD", "hidden": 4, "taps": [1]},
                {"type": "CSD", **POOLED, "taps": [1]},
            ],
        }
    )
    torch.manual_seed(0)
    alone = {"type": "SRKD"}, {"type": "STD", "hidden": 4}, {"type": "CSD", **POOLED}
    srkd, std, csd = map(build_objective, alone)
    pair = tapped(1, 3), tapped(2, 3)
    combined.check(*pair)
    found = combined(*pair, clean().float()).losses
    for part, taps in ((srkd, (2, 0)), (std, (1,)), (csd, (1,))):
        seen = [
            ClipView(one.output, {scale: tuple(of[tap] for tap in taps) for scale, of in one.features.items()})
            for one in pair
        ]
        assert all(torch.equal(found[name], loss) for name, loss in part(*seen, clean().float()).losses.items())


@pytest.mark.parametrize(
    ("taps", "counts", "words"),
    [
        (([0], [3]), (3, 3), "objectives.1.taps has 3, but the tapped layers are 0 to 2; correct it, or tap more"),
        (([0], [1]), (1, 1), "objectives.1.taps has 1, but the tapped layers are 0; correct it"),
        (([0], [2]), (2, 2), "objectives.1.taps has 2, but the tapped layers are 0 to 1; correct it"),
        (([0], [1]), (3, 3), "no objective compares tap 2 of 0 to 2; add it to the `taps` of one"),
        (([0], [2]), (3, 3), "no objective compares tap 1 of 0 to 2; add it to the `taps` of one"),
        (([0], [1]), (2, 3), "2 layers of the student are tapped, but 3 of the teacher; tap as many"),
        (([0], [1]), (3, 2), "3 layers of the student are tapped, but 2 of the teacher; tap as many"),
        ((None, None), (2, 2), "STD: needs 1 feature.* got 2; tap that many layers, or, as one of Combined's"),
    ],
)
def test_taps_of_parts_are_those_that_are_tapped(taps, counts, words):
    parts = [{"type": name, "taps": numbers} for name, numbers in zip(("SRKD", "STD"), taps, strict=True)]
    combined = Combined(objectives=parts)
    pair = tapped(1, counts[0]), tapped(2, counts[1])
    for call in (lambda: combined.check(*pair), lambda: combined(*pair, clean().float())):
        with pytest.raises(CSDError, match=words):
            call()


def test_without_a_part_that_compares_features_taps_need_not_pair():
    combined = Combined(objectives=[{"type": "OutputDistillation"}])
    pair = tapped(1, 1), tapped(2, 2)
    combined.check(*pair)
    assert combined(*pair, clean().float()).losses["output"] > 0


def test_a_part_warns_of_its_own_taps():
    small, large = (2, 1, 4, 8, 8), (2, 1, 4, 256, 256)
    combined = Combined(objectives=[{"type": "FAKD", "pool": 1, "taps": [0]}, {"type": "SRKD", "taps": [1]}])
    assert combined.warnings([small, large]) == []
    [line] = combined.warnings([large, small])
    assert "FAKD" in line


@pytest.mark.parametrize(
    ("objectives", "words"),
    [
        ([], "objectives is empty"),
        ([{"type": "SRKD"}, {"type": "SRKD"}], "two of SRKD, SRKD have a term maps"),
        ([{"type": "SRKT"}], "type 'SRKT' is unknown; did you mean SRKD"),
        ([{"type": "SRKD", "taps": [-1]}], r"objectives.0.taps is \[-1\]: give the numbers of its taps, from 0"),
        ([{"type": "SRKD", "taps": []}], r"objectives.0.taps is \[\]: give the numbers"),
        ([{"type": "SRKD", "taps": [1, 1]}], "each once"),
        ([{"type": "SRKD", "taps": ["tail"]}], r"objectives.0.taps is \['tail'\]: give the numbers"),
        ([{"type": "SRKD", "taps": 0}], "objectives.0.taps is 0: give the numbers"),
        ([{"type": "SRKD"}, {"type": "OutputDistillation", "taps": [0]}], "objectives.1.taps: .* compares no features"),
    ],
)
def test_what_does_not_combine_is_told(objectives, words):
    with pytest.raises(CSDError, match=words):
        Combined(objectives=objectives)


def test_options_of_its_parts_are_checked(launcher, tiny_rain, tiny_teacher, capfd):
    distill = {
        "type": "Combined",
        "objectives": [{"type": "CSD", "hiden": 4}],
        "weights": {"spatial": 1, "temporal": 1},
    }
    assert launcher.train(distill_options(tiny_rain, tiny_teacher, **{"train.distill_opt": distill})) == 2
    assert "train.distill_opt.objectives.0.hiden is unknown; did you mean hidden" in capfd.readouterr().err
    distill["objectives"] = ["CSD"]
    assert launcher.train(distill_options(tiny_rain, tiny_teacher, **{"train.distill_opt": distill})) == 2
    assert "train.distill_opt.objectives.0" in capfd.readouterr().err
    assert launcher.written() == []


def test_taps_of_its_parts_are_checked_before_a_run(launcher, tiny_rain, tiny_teacher, capfd):
    parts = [{"type": "CSD", "hidden": 4, "taps": ["conv1"]}, {"type": "OutputDistillation"}]
    distill = {"type": "Combined", "objectives": parts, "weights": {"spatial": 1, "temporal": 1, "output": 0}}
    options = distill_options(tiny_rain, tiny_teacher, **{"train.distill_opt": distill})
    assert launcher.train(options) == 2
    assert "train.distill_opt.objectives.0.taps.0 is 'conv1': input should be a valid integer" in capfd.readouterr().err
    parts[0]["taps"] = [1]
    assert launcher.train(options) == 2
    assert "train.distill_opt: Combined: objectives.0.taps has 1" in capfd.readouterr().err
    assert launcher.written() == []


def test_it_trains_and_resumes(launcher, tiny_rain, tiny_teacher):
    parts = [{"type": "CSD", "hidden": 4}, {"type": "OutputDistillation"}]
    weights = {"spatial": 0.1, "temporal": 0.1, "output": 0.5}
    distill = {"type": "Combined", "objectives": parts, "weights": weights}
    options = distill_options(tiny_rain, tiny_teacher, **{"train.distill_opt": distill})
    assert launcher.train(options) == 0
    log = launcher.models[-1].log_dict
    assert all(log[f"l_{term}"] > 0 and log[f"health/grad_{term}"] > 0 for term in weights)
    assert log["l_distill"] == pytest.approx(sum(weight * log[f"l_{term}"] for term, weight in weights.items()))
    assert any(name.startswith("parts.0.") for name in launcher.weights("objective_2"))
    options["train"]["total_iter"] = 3
    assert launcher.train(options, "--auto_resume") == 0

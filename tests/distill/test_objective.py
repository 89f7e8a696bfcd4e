"""Building objectives from options, and the one place of weighting."""

from __future__ import annotations

import pytest
import torch

from csd_plugin.distill.csd import CSD
from csd_plugin.distill.objective import build_objective, weighted_sum
from csd_plugin.errors import CSDError


def test_options_reach_the_constructor_and_stay_as_they_are():
    opt = {"type": "CSD", "num_scale": 2, "cells": "frozen"}
    objective = build_objective(opt)
    assert isinstance(objective, CSD)
    assert objective.num_scale == 2
    assert opt == {"type": "CSD", "num_scale": 2, "cells": "frozen"}


@pytest.mark.parametrize(
    ("opt", "message"),
    [
        ({"type": "CSB"}, "'CSB' is unknown; did you mean CSD"),
        ({}, "type None is unknown; known: CSD, SRKD"),
        ({"type": "CSD", "cell": "joint"}, "option 'cell' is unknown; did you mean cells"),
        ({"type": "CSD", "cells": "joined"}, "did you mean joint"),
    ],
)
def test_mistakes_in_options(opt, message):
    with pytest.raises(CSDError, match=message):
        build_objective(opt)


def test_weighted_sum_weighs_each_loss_by_its_name():
    losses = {name: torch.tensor(value, requires_grad=True) for name, value in (("recon", 2.0), ("spatial", 3.0))}
    total = weighted_sum(losses, {"spatial": 0.5, "recon": 1.0})
    total.backward()
    assert total == 3.5
    assert (losses["recon"].grad, losses["spatial"].grad) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        (["spatial"], {"spatial": 1, "spatail": 1}, "'spatail' is unknown; did you mean spatial"),
        (["spatial", "temporal"], {"spatial": 1}, "'temporal' has no weight"),
        ([], {}, "no loss"),
    ],
)
def test_weights_must_match_the_losses(names, weights, message):
    with pytest.raises(CSDError, match=message):
        weighted_sum({name: torch.tensor(1.0) for name in names}, weights)

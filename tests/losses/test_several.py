"""Several losses between frames and truth, and what losses may return."""

from __future__ import annotations

import pytest
import torch

from csd_plugin.errors import CSDError
from csd_plugin.losses.several import SeveralLosses, one_number, total_of


def test_named_losses_are_added():
    losses = SeveralLosses({"a": torch.nn.L1Loss(), "b": torch.nn.MSELoss()})
    frames, truth = torch.full((2, 3, 4, 4), 0.75, requires_grad=True), torch.full((2, 3, 4, 4), 0.25)
    total, parts = total_of(losses(frames, truth))
    assert total.item() == 0.75 and {name: part.item() for name, part in parts.items()} == {"a": 0.5, "b": 0.25}
    assert total.requires_grad and not any(part.requires_grad for part in parts.values())


def test_parts_of_a_tuple_are_added_and_others_left_out():
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    assert one_number((one, two)) == 3 and one_number((None, two)) == 2
    assert total_of((one, None)) == (one, {}) and total_of(two) == (two, {})
    for other in ((), (None, None), (torch.zeros(2), None), one):
        assert one_number(other) is other


def test_names_may_be_any_text_and_no_losses_are_one_line():
    losses = SeveralLosses({"keys": torch.nn.L1Loss(), "a.b": torch.nn.L1Loss()})
    assert list(losses(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4))) == ["keys", "a.b"]
    with pytest.raises(CSDError, match="has no losses; give at least one"):
        SeveralLosses({})


def test_losses_with_weights_move_along():
    losses = SeveralLosses({"learned": torch.nn.Conv2d(3, 1, 1)}).to("meta")
    assert {weight.device.type for weight in losses.parameters()} == {"meta"}

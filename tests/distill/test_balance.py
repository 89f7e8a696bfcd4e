"""Weights that follow gradients: the ratio that they keep, when they are measured, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from csd_plugin.distill.balance import EVERY, Balance
from csd_plugin.distill.health import gradient_norms
from csd_plugin.distill.processes import mean_over_processes
from csd_plugin.distill.schedule import check_weight, is_ever_on, weight_at
from csd_plugin.errors import CSDError

WEIGHTS = {"spatial": {"balance": 0.3}, "temporal": {"balance": 0.1, "until": 25}, "plain": 2.0}


def losses_of(feature, sizes):
    """A reconstruction loss, and terms whose gradients at the feature are `sizes` times as large as that of `sum`."""
    return (feature**2).sum(), {term: size * feature.sum() for term, size in sizes.items()}


def test_the_gradient_is_the_share_that_was_asked_for():
    feature = torch.rand(2, 3, 4, 5, requires_grad=True)
    balance = Balance(WEIGHTS)
    recon, losses = losses_of(feature, {"spatial": 1e-5, "temporal": 40.0})
    balance.measure(recon, losses, [feature])
    weighted = {term: balance.measured[term] * loss for term, loss in losses.items()}
    norms = gradient_norms({"recon": recon, **weighted}, [feature])
    assert norms["spatial"] / norms["recon"] == pytest.approx(0.3, rel=1e-5)
    assert norms["temporal"] / norms["recon"] == pytest.approx(0.1, rel=1e-5)
    assert balance.at({"spatial": 0.3, "temporal": 0.0, "plain": 2.0}) == {
        "spatial": balance.measured["spatial"], "temporal": 0.0, "plain": 2.0,
    }  # fmt: skip


def test_it_follows_a_gradient_that_grows_without_jumping():
    feature = torch.rand(2, 3, 4, 5, requires_grad=True)
    balance = Balance({"spatial": {"balance": 0.3}})
    seen = []
    for size in (1.0, 100.0, *([100.0] * 30)):
        balance.measure(*losses_of(feature, {"spatial": size}), [feature])
        seen.append(balance.measured["spatial"])
    assert seen[0] > seen[1] > seen[0] / 10  # one batch is not believed at once
    assert seen[-1] == pytest.approx(seen[0] / 100, rel=1e-3)


def test_a_measurement_leaves_nothing_behind():
    body, tail = nn.Linear(3, 4), nn.Linear(4, 2)
    feature = body(torch.rand(5, 3))
    parameters = [*body.parameters(), *tail.parameters()]
    recon, spatial = tail(feature).square().sum(), feature.sum()
    balance = Balance({"spatial": {"balance": 0.5}})
    balance.measure(recon, {"spatial": spatial}, parameters)
    assert balance.measured["spatial"] > 0
    assert all(parameter.grad is None for parameter in parameters)
    (recon + spatial).backward()  # the graph is there still


def test_when_it_is_measured_and_when_it_is_off():
    balance = Balance(WEIGHTS)
    now = {term: weight_at(weight, 1) for term, weight in WEIGHTS.items()}
    assert now == {"spatial": 0.3, "temporal": 0.1, "plain": 2.0}
    assert balance.due(1, now) == ["spatial", "temporal"]
    assert balance.due(1, now) == []  # the next part of the same batch
    balance.measured = {"spatial": 1.0, "temporal": 2.0}
    assert not balance.due(EVERY + 1, now)
    assert balance.due(2 * EVERY, now) == ["spatial", "temporal"]
    later = {term: weight_at(weight, 30) for term, weight in WEIGHTS.items()}
    assert later["temporal"] == 0 and balance.due(3 * EVERY, later) == ["spatial"]
    assert weight_at(WEIGHTS["temporal"], 25) == 0.1 and weight_at({"balance": 0.1, "until": None}, 10**6) == 0.1
    assert all(is_ever_on(weight) for weight in WEIGHTS.values())
    check_weight(WEIGHTS["temporal"])


def test_a_term_without_a_gradient_keeps_its_weight():
    feature = torch.rand(2, 3, requires_grad=True)
    balance = Balance({"spatial": {"balance": 0.3}})
    balance.measure(feature.sum(), {"spatial": torch.ones(())}, [feature])
    assert balance.measured == {} and balance.at({"spatial": 0.3}) == {"spatial": 0.3}
    balance.measured = {"spatial": 7.0}
    balance.measure(feature.sum(), {"spatial": 0 * feature.sum()}, [feature])
    assert balance.measured == {"spatial": 7.0}


def test_all_processes_take_the_mean(monkeypatch):
    """With another process whose gradients are three times as large."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, op: tensor.add_(9 * tensor.clone()))
    feature = torch.rand(2, 3, requires_grad=True)
    balance = Balance({"spatial": {"balance": 0.3}})
    balance.measure(feature.sum(), {"spatial": 2 * feature.sum()}, [feature])
    assert balance.measured["spatial"] == pytest.approx(0.15)  # of both, the ratio is the same
    torch.testing.assert_close(mean_over_processes(torch.ones(3)), torch.full((3,), 5.0))


def test_a_batch_that_is_not_finite_changes_nothing():
    feature = torch.rand(2, 3, requires_grad=True)
    balance = Balance({"spatial": {"balance": 0.3}})
    balance.measured = {"spatial": 7.0}
    balance.measure(float("nan") * feature.sum(), {"spatial": feature.sum()}, [feature])
    assert balance.measured == {"spatial": 7.0}


def test_without_a_reconstruction_there_is_nothing_to_follow():
    feature = torch.rand(2, 3, requires_grad=True)
    with pytest.raises(CSDError, match="no gradient"):
        Balance({"spatial": {"balance": 0.3}}).measure(torch.ones(()), {"spatial": feature.sum()}, [feature])

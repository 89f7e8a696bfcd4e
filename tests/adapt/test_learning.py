"""The student's steps against a plain loop, what is kept of them, and what a resumed run continues with."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from toolbox import equal
from torch import nn

from csd_plugin.adapt import learning
from csd_plugin.adapt.batches import Batch
from csd_plugin.adapt.learning import Learner, rate_at
from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.errors import CSDError
from csd_plugin.losses.ssim import PyramidSSIMLoss

RATE = 0.01


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    """The clock goes on by a second whenever it is looked at; frames are float32 on every machine."""
    ticks = itertools.count()
    monkeypatch.setattr(learning, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(learning, "computes_bf16", lambda device: False)


def student() -> HalfNet:
    torch.manual_seed(0)
    return HalfNet(preset="tiny", num_feat=4)


def learner(network: nn.Module | None = None) -> Learner:
    return Learner(network or student(), rate=RATE, device=torch.device("cpu"))


class Made:
    """Batches by their number."""

    def batch(self, number: int) -> Batch:
        generator = torch.Generator().manual_seed(number)
        rainy = torch.rand(2, 5, 3, 24, 24, generator=generator)
        return Batch(rainy, 0.2 * rainy[:, 1:4])

    def since(self, number: int):
        return (self.batch(n) for n in itertools.count(number))


def steps(one: Learner, count: int) -> Learner:
    """This many more, at shares of the time that go by the step."""
    for step in range(one.progress.step, one.progress.step + count):
        one._step(Made().batch(step), step / 10)
    return one


def test_a_state_with_the_graph_of_the_batch_before_is_one_line():
    class Carries(HalfNet):
        before = 0

        def forward(self, window):
            self.before = torch.tanh(super().forward(window) + self.before)
            return self.before

    network = learner(Carries(preset="tiny", num_feat=4))
    with pytest.raises(CSDError, match="the student keeps something of one batch, such as a hidden state"):
        steps(network, 2)


def test_steps_are_those_of_a_plain_loop():
    network = student()
    average, loss = copy.deepcopy(network), PyramidSSIMLoss(l1_weight=0.5)
    adam = torch.optim.Adam(network.parameters(), betas=(0.9, 0.99))
    for step in range(4):
        rainy, clean = Made().batch(step)
        adam.param_groups[0]["lr"] = RATE * rate_at(step / 10, step)
        adam.zero_grad()
        outputs = [network(rainy[:, t : t + 3]) for t in range(3)]
        loss(torch.stack(outputs, dim=1), clean).backward()
        norm = torch.stack([weight.grad.norm() for weight in network.parameters()]).norm()
        for weight in network.parameters():
            weight.grad.mul_(min(1.0, 1.0 / float(norm)))
        adam.step()
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
                decay = (2 + step) / (11 + step)
                mean.copy_(decay * mean + (1 - decay) * weight)
    ours = steps(learner(), 4)
    for found, expected in ((ours.network, network), (ours.average, average)):
        for name, weight in expected.named_parameters():
            torch.testing.assert_close(found.get_parameter(name), weight, rtol=1e-3, atol=1e-5, msg=name)
    assert not equal(ours.average.state_dict(), ours.network.state_dict())


def test_gradients_are_clipped():
    """A loss a thousand times as large has the same steps, as its gradient is clipped to the same length."""
    once, more = learner(), learner()
    for one, factor in ((once, 100.0), (more, 10_000.0)):
        one.loss.loss_weight = factor
        one.optimizer = torch.optim.SGD(one.network.parameters(), RATE)
        steps(one, 3)
    for name, weight in once.network.named_parameters():
        torch.testing.assert_close(more.network.get_parameter(name), weight, rtol=1e-3, atol=1e-5)
    moved = [a - b for a, b in zip(once.network.parameters(), student().parameters(), strict=True)]
    most = sum(RATE * rate_at(step / 10, step) for step in range(3))
    assert 0 < torch.stack([part.norm() for part in moved]).norm() <= 1.001 * most


@pytest.mark.parametrize("broken", ["rainy", "clean"])
def test_a_batch_that_is_not_finite_changes_nothing(broken):
    one = steps(learner(), 1)
    before = copy.deepcopy(one.state())
    batch = Made().batch(1)
    getattr(batch, broken)[0, 2, 0, 5, 5] = math.nan
    with pytest.raises(CSDError, match="step 1: loss or gradient is not finite: lower --rate"):
        one._step(batch, 0.0)
    for part in ("network", "average", "best"):
        assert equal(one.state()[part], before[part])
    assert one.progress.step == 1


def test_a_resumed_run_has_the_steps_that_it_would_have_had(tmp_path):
    through, first = steps(learner(), 5), steps(learner(), 2)
    torch.save(first.state(), tmp_path / "state")
    resumed = learner(HalfNet(preset="tiny", num_feat=4))
    resumed.load(torch.load(tmp_path / "state"))
    steps(resumed, 3)
    for part in ("network", "average"):
        assert equal(resumed.state()[part], through.state()[part])
    assert resumed.progress.step == 5


def test_the_best_average_is_kept_and_earlier_time_counts():
    scores, averages, saved = iter([3.0, 5.0, 4.0, *[1.0] * 100]), [], []

    def look(average):
        averages.append(copy.deepcopy(average.state_dict()))
        return next(scores)

    one = learner()
    one.learn(Made(), 60.0, look, lambda: saved.append(one.progress.seconds))
    assert equal(one.best, averages[1]) and not equal(one.best, averages[2])
    assert one.progress.best == 5.0 and [score for _, score in one.progress.looked[:3]] == [3.0, 5.0, 4.0]
    assert saved == sorted(saved) and len(saved) == len(averages) > 3
    taken = one.progress.seconds
    assert taken >= 60
    one.learn(Made(), 60.0, look, lambda: pytest.fail("the time was over"))
    assert taken <= one.progress.seconds < taken + 5


def test_the_rate_rises_at_first_and_follows_the_clock():
    assert rate_at(0.0, 0) < 0.05
    assert rate_at(0.0, 100) == 1.0
    rates = [rate_at(share / 10, 1000) for share in range(11)]
    assert rates == sorted(rates, reverse=True) and 0 < rates[-1] < 0.02 and rate_at(1.5, 1000) == rates[-1]

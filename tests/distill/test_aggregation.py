"""Maps without scale: what they do not see, and that their gradient stays bounded."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from csd_plugin.distill.aggregation import AGGREGATIONS

normalized = AGGREGATIONS["sum_squared_normalized"]


def draw(channels, seed):
    return torch.rand(1, 2, channels, 12, 10, generator=torch.Generator().manual_seed(seed))


def difference(student, teacher):
    return F.mse_loss(*normalized(student, teacher))


def gradient(scale):
    student, teacher = (scale * draw(4, 0)).requires_grad_(), draw(6, 1)
    return torch.autograd.grad(difference(student, teacher), student)[0]


@given(st.floats(-4, 4), st.floats(-4, 4))
def test_scale_is_not_seen(ours, theirs):
    student, teacher = draw(4, 0), draw(6, 1)
    maps = normalized(10**ours * student, 10**theirs * teacher)
    for one, plain in zip(maps, normalized(student, teacher), strict=True):
        torch.testing.assert_close(one, plain, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(one.mean(dim=(3, 4)), torch.zeros(1, 2, 1), rtol=0, atol=1e-4)
        torch.testing.assert_close(one.std(dim=(3, 4), correction=0), torch.ones(1, 2, 1), rtol=1e-3, atol=1e-3)


def test_the_gradient_of_a_small_feature_is_that_of_one_as_large_as_the_teachers():
    student, teacher = draw(4, 0), draw(6, 1)
    spread = [feature.sum(dim=2).square().std(correction=0, dim=(2, 3)).sqrt() for feature in (student, teacher)]
    as_large = (spread[1] / spread[0]).min().item()  # in the frame where it takes least
    largest = gradient(as_large).abs().max()
    for scale in (1e-4, 1e-3, 1 / 200, 0.1, as_large):
        assert 0.5 * largest < gradient(scale).abs().max() < 1.5 * largest
    torch.testing.assert_close(gradient(200.0), gradient(100.0) / 2, rtol=1e-3, atol=1e-9)  # larger ones: as it comes


def test_a_feature_that_is_200_times_too_small_is_not_blown_up():
    """As the half-resolution students' is beside S2VD's; without the bound it grows almost a thousandfold."""
    teacher = draw(6, 1)
    start = draw(4, 0) / 200

    def learned(compare):
        student = start.clone().requires_grad_()
        optimizer = torch.optim.SGD([student], lr=1.0)
        largest = 0.0
        for _ in range(300):
            optimizer.zero_grad()
            compare(student).backward()
            optimizer.step()
            largest = max(largest, student.detach().square().mean().sqrt().item())
        return largest / start.square().mean().sqrt().item(), difference(student, teacher).item()

    def unbounded(student):
        ours, theirs = (feature.sum(dim=2, keepdim=True).square() for feature in (student, teacher))
        return F.mse_loss(
            *((one - one.mean((3, 4), True)) / one.std((3, 4), correction=0, keepdim=True) for one in (ours, theirs))
        )

    blown_up, _ = learned(unbounded)
    grown, left = learned(lambda student: difference(student, teacher))
    assert blown_up > 500
    assert grown < 200  # never above the teacher's scale
    assert left < 0.5 * difference(start, teacher).item()


@pytest.mark.parametrize("flat", ["student", "teacher", "both"])
def test_constant_maps_are_finite(flat):
    student, teacher = draw(4, 0), draw(6, 1)
    student = torch.full_like(student, 0.3) if flat != "teacher" else student
    teacher = torch.zeros_like(teacher) if flat != "student" else teacher
    student.requires_grad_()
    loss = difference(student, teacher)
    assert loss.isfinite() and torch.autograd.grad(loss, student)[0].isfinite().all()

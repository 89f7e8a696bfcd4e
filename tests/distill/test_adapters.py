"""Adapters: what the objective behind them sees, and what learns."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from csd_plugin.distill.adapters import AdaptedObjective
from csd_plugin.distill.interface import Objective, feature_pairs
from csd_plugin.errors import CSDError
from csd_plugin.types import ClipView, Terms

OURS, THEIRS = (2, 3, 4, 6, 8), (2, 3, 5, 9, 4)


class Direct(Objective):
    """The mean squared difference of the features themselves: they must have one width and size."""

    stepped = False

    @property
    def terms(self):
        return ("direct",)

    def forward(self, student, teacher, target):
        self.seen, goal = feature_pairs("Direct", student, teacher, count=1)[0]
        return Terms({"direct": F.mse_loss(self.seen, goal)}, {})

    def after_step(self):
        self.stepped = True


def view(shape):
    torch.manual_seed(sum(shape))
    return ClipView(torch.zeros(2, 3, 3, 6, 8), {1: (torch.rand(shape, requires_grad=True),)})


def test_width_and_size_are_brought_to_the_teachers():
    objective = AdaptedObjective(Direct(), adapters=["resize", "conv1x1"], student=[OURS], teacher=[THEIRS])
    student, teacher = view(OURS), view(THEIRS)
    loss = objective(student, teacher, student.output).losses["direct"]
    loss.backward()

    conv = objective.convs[0]
    inner = objective.objective
    for clip, seen in zip(student.features[1][0], inner.seen, strict=True):
        for frame, result in zip(clip, seen, strict=True):
            scaled = objective.gain * frame
            wide = torch.einsum("oc,chw->ohw", conv.weight[:, :, 0, 0], scaled) + conv.bias[:, None, None]
            expected = F.interpolate(wide[None], (9, 4), mode="bilinear", antialias=True)[0]
            torch.testing.assert_close(result, expected)
    assert student.features[1][0].grad.any() and conv.weight.grad.any()
    assert teacher.features[1][0].grad is None
    objective.after_step()
    assert inner.stepped
    assert objective.terms == ("direct",)


def test_only_what_is_declared_is_adapted():
    student, teacher = view(OURS), view((*OURS[:3], 9, 4))
    objective = AdaptedObjective(Direct(), adapters=["resize"], student=[OURS], teacher=[THEIRS])
    assert not list(objective.parameters())
    objective(student, teacher, student.output)
    with pytest.raises(CSDError, match="height and width must agree"):
        AdaptedObjective(Direct(), adapters=["conv1x1"], student=[OURS], teacher=[OURS])(student, teacher, None)


def test_mistakes():
    with pytest.raises(CSDError, match="'resiz' is unknown; did you mean resize"):
        AdaptedObjective(Direct(), adapters=["resiz"], student=[OURS], teacher=[THEIRS])
    with pytest.raises(CSDError, match="2 taps of the student and 1"):
        AdaptedObjective(Direct(), adapters=["resize"], student=[OURS, OURS], teacher=[THEIRS])


@pytest.mark.parametrize("small", [1 / 200, 1.0, 50.0])
def test_a_convolution_starts_at_the_teachers_scale_and_keeps_the_gain(small):
    student, teacher = view(OURS), view(THEIRS)
    student = ClipView(student.output, {1: (small * student.features[1][0],)})
    objective = AdaptedObjective(Direct(), adapters=["conv1x1", "resize"], student=[OURS], teacher=[THEIRS])

    def size(feature):
        return feature.detach().square().mean().sqrt()

    objective(student, teacher, student.output)
    # the adapted feature is resized after it was brought to scale, which averages a little away
    assert 0.6 < size(objective.objective.seen) / size(teacher.features[1][0]) < 1.05
    gain = objective.gain.clone()
    objective(ClipView(student.output, {1: (3 * student.features[1][0],)}), teacher, student.output)
    assert torch.equal(objective.gain, gain)  # the student's own growth stays visible

    resumed = AdaptedObjective(Direct(), adapters=["conv1x1", "resize"], student=[OURS], teacher=[THEIRS])
    resumed.load_state_dict(objective.state_dict())
    resumed(teacher_sized := view(OURS), teacher, teacher_sized.output)
    assert torch.equal(resumed.gain, gain)


def test_a_state_from_before_the_first_batch_takes_its_gain_from_the_next():
    objective = AdaptedObjective(Direct(), adapters=["conv1x1", "resize"], student=[OURS], teacher=[THEIRS])
    start = copy.deepcopy(objective.state_dict())
    student, teacher = view(OURS), view(THEIRS)
    first = objective(student, teacher, student.output).losses["direct"]
    gain = objective.gain.clone()
    objective.load_state_dict(start)
    assert objective.gain.isnan().all()
    smaller = ClipView(student.output, {1: (student.features[1][0] / 4,)})
    torch.testing.assert_close(objective(smaller, teacher, student.output).losses["direct"], first)
    torch.testing.assert_close(objective.gain, 4 * gain)


def test_features_of_zeros_leave_the_gain_at_one():
    zeros = ClipView(torch.zeros(2, 3, 3, 6, 8), {1: (torch.zeros(OURS),)})
    objective = AdaptedObjective(Direct(), adapters=["conv1x1", "resize"], student=[OURS], teacher=[THEIRS])
    assert objective(zeros, view(THEIRS), zeros.output).losses["direct"].isfinite()
    assert objective.gain.tolist() == [1.0]

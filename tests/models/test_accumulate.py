"""A batch in parts trains the student of the whole batch."""

from __future__ import annotations

import pytest
import torch
from toolbox import changed, distill_options, method, train_options

from csd_plugin.distill import OBJECTIVES
from csd_plugin.distill.objective import build_objective
from csd_plugin.types import ClipView


@pytest.mark.parametrize("parts", [2, 3])
def test_the_students_agree(launcher, tiny_rain, tiny_teacher, parts):
    """Weights, average and cells, with a clipped gradient and a schedule, also from a resumed run. 3 parts: 2, 1, 1."""
    options = distill_options(tiny_rain, tiny_teacher, **{"train.total_iter": 4, "train.grad_clip": 0.1})
    options["train"]["optim_g"] = {"type": "SGD", "lr": 0.003}  # Adam makes steps of rounding errors
    options["datasets"]["train"]["batch_size_per_gpu"] = 4
    assert launcher.train(changed(options, {"name": "whole"})) == 0
    log = launcher.models[-1].log_dict
    options["train"]["accumulate"] = parts
    assert launcher.train(changed(options, {"train.total_iter": 2})) == 0
    assert launcher.train(options, "--auto_resume") == 0
    for name, keys in {"net_g_latest": ("params", "params_ema"), "objective_latest": ("params",)}.items():
        for key in keys:
            whole, added = launcher.weights(name, "whole", key), launcher.weights(name, key=key)
            for weight in whole:
                torch.testing.assert_close(added[weight], whole[weight], rtol=1e-4, atol=1e-6)
    for name in ("l_recon", "l_distill", "grad_norm"):
        assert launcher.models[-1].log_dict[name] == pytest.approx(log[name], rel=1e-4)
    # of the first part alone, and no less for that
    assert launcher.models[-1].log_dict["health/scale_conv22"] == pytest.approx(log["health/scale_conv22"], rel=0.02)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_loss_is_a_mean_over_clips(name):
    """So that those of parts, weighted by their clips, add to the batch's."""
    torch.manual_seed(0)
    objective = build_objective(method(name))
    batch, frames = 3, 2

    def view():
        features = {1: (torch.rand(batch, frames, 5, 16, 16),)}
        return ClipView(torch.rand(batch, frames, 3, 16, 16), features)

    def part(view, clips):
        return ClipView(view.output[clips], {scale: tuple(f[clips] for f in fs) for scale, fs in view.features.items()})

    student, teacher, target = view(), view(), torch.rand(batch, frames, 3, 16, 16)
    whole = objective(student, teacher, target).losses
    parts = [(clips, (clips.stop - clips.start) / batch) for clips in (slice(0, 2), slice(2, 3))]
    for term, loss in whole.items():
        added = sum(
            share * objective(part(student, clips), part(teacher, clips), target[clips]).losses[term]
            for clips, share in parts
        )
        torch.testing.assert_close(added, loss, rtol=1e-4, atol=1e-6)


def test_more_parts_than_clips_are_refused(launcher, tiny_rain, capfd):
    assert launcher.train(train_options(tiny_rain, **{"train.accumulate": 3})) == 2
    assert "train.accumulate: 3 parts of batches of 2 clips" in capfd.readouterr().err

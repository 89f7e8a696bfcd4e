"""Steps that a real GPU replays compute what launched ones do. A pretend one cannot record."""

from __future__ import annotations

import pytest
import torch
from cases import LAUNCHES, gpu, step_options
from torch import nn

from csd_plugin.adapt.batches import Batch
from csd_plugin.adapt.learning import Learner
from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.distill.step_graph import StepGraph
from csd_plugin.models.probe import Probe

STEPS, LOGGED_EVERY = 10, 5


def trained(objective, **train):
    """The model after some steps on batches that differ, and its last losses."""
    options = step_options(objective, **train)
    options["num_gpu"], options["logger"]["print_freq"] = 1, LOGGED_EVERY  # a distillation launches these
    torch.manual_seed(8)
    probe = Probe(options)
    generator = torch.Generator().manual_seed(9)
    for number in range(1, STEPS + 1):
        lq = torch.rand(probe.batch["lq"].shape, generator=generator)
        first = (lq.shape[1] - probe.batch["gt"].shape[1]) // 2
        gt = lq[:, first : first + probe.batch["gt"].shape[1]].clone()
        probe.model.feed_data(probe.batch | {"lq": lq, "gt": gt * 0.9})
        probe.model.optimize_parameters(number)
    return probe.model


FORMS = [(objective, autocast, 1) for objective in LAUNCHES for autocast in (None, "bf16")]


@pytest.mark.parametrize(("objective", "autocast", "accumulate"), [*FORMS, ("CSD", "bf16", 2)])
def test_weights_are_those_of_launched_steps(objective, autocast, accumulate):
    settings = {"autocast": autocast, "accumulate": accumulate, "grad_clip": 1.0, "health": False}
    with gpu():
        expected = trained(objective, **settings)
        replayed = trained(objective, cuda_graph=True, **settings)
    assert replayed.step_graph._recorded is not None and not replayed.step_graph._refused
    tolerance = 1e-3 if autocast is None else 3e-2
    assert replayed.log_dict["l_recon"] == pytest.approx(expected.log_dict["l_recon"], rel=tolerance)
    for ours, theirs in zip(replayed.net_g_ema.parameters(), expected.net_g_ema.parameters(), strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm() + 1e-4


def adapted(*, launched):
    """The average of a learner after some steps, and whether they were replayed."""
    torch.manual_seed(8)
    learner = Learner(HalfNet(preset="tiny", num_feat=8), rate=1e-3, device=torch.device("cuda", 0))
    if launched:
        learner._graph = None
    generator = torch.Generator().manual_seed(9)
    for _ in range(STEPS):
        rainy = torch.rand(2, 5, 3, 32, 32, generator=generator)
        learner._step(Batch(rainy, rainy[:, 1:4] * 0.9), 0.5)
    return learner.average, learner._graph is not None and learner._graph._recorded is not None


def test_weights_of_adapt_are_those_of_launched_steps():
    with gpu():
        (expected, launched), (replayed, recorded) = adapted(launched=True), adapted(launched=False)
    assert recorded and not launched
    for ours, theirs in zip(replayed.parameters(), expected.parameters(), strict=True):
        assert (ours - theirs).norm() <= 3e-2 * theirs.norm() + 1e-4


def stepped(device, compute, warnings):
    """A graph after eight steps of loss = (weight x).sum(), all checked."""
    weight = nn.Parameter(torch.ones(2, device=device))
    graph = StepGraph([weight], warnings.append)
    for value in range(8):
        weight.grad = None
        batch = {"lq": torch.full((2,), float(value), device=device)}
        losses, finite = graph.run(lambda there: compute(weight, there), batch, "alike")
        assert losses["l"].item() == 2 * value and finite.item()
        assert weight.grad.tolist() == [value, value]
    return graph


def plain(weight, batch):
    loss = (weight * batch["lq"]).sum()
    loss.backward()
    return {"l": loss.detach().clone()}, torch.isfinite(loss.detach())


def waiting(weight, batch):
    assert (weight.detach() * batch["lq"]).sum().item() < 1e9
    return plain(weight, batch)


def test_a_step_that_waits_is_launched_and_breaks_nothing():
    with gpu():
        warnings = []
        graph = stepped("cuda", waiting, warnings)
        [line] = warnings
        assert "it waits for the GPU at " in line and not graph.records
        assert torch.cuda.get_sync_debug_mode() == 0
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
        torch.rand(3, device="cuda")
        torch.cuda.empty_cache()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_steps_are_recorded_on_the_gpu_of_their_parameters():
    with gpu():
        warnings = []
        assert stepped("cuda:1", plain, warnings).records and not warnings
        assert torch.cuda.current_device() == 0

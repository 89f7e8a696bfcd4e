"""Every objective in every number format, and compiled networks, on a GPU: a real one, or the pretend one."""

from __future__ import annotations

import pytest
import torch
from cases import LAUNCHES, gpu, step_options
from torch import nn

from csd_plugin.models.probe import Probe


def losses_of(objective, *, steps, on_gpu=True, **train):
    """Of some steps, each a dict of numbers; and the model after them."""
    torch.manual_seed(7)
    options = step_options(objective, **train)
    for network in ("network_g", "network_t"):
        options[network]["init_type"] = "kaiming"  # or outputs would be equal but for rounding
    options["num_gpu"], options["logger"]["print_freq"] = int(on_gpu), 1
    torch.manual_seed(8)
    probe = Probe(options)
    losses = []
    for _ in range(steps):
        probe.step()
        losses.append({name: value for name, value in probe.model.log_dict.items() if name.startswith("l_")})
    return losses, probe.model


@pytest.fixture(scope="module")
def exact():
    """Losses in float32 on the CPU, by objective."""
    return {objective: losses_of(objective, steps=1, on_gpu=False, autocast=None)[0] for objective in LAUNCHES}


@pytest.mark.parametrize("autocast", ["bf16", "fp16"])
@pytest.mark.parametrize("objective", LAUNCHES)
def test_losses_are_near_those_of_float32(exact, objective, autocast):
    with gpu():
        # later steps may lag behind: in fp16 the first ones look for a scale that the gradients bear
        found, model = losses_of(objective, steps=1, autocast=autocast)
    assert found[0] == pytest.approx(exact[objective][0], rel=0.05, abs=1e-4)
    assert found != exact[objective]
    assert model.scaler.is_enabled() == (autocast == "fp16")
    assert model.skipped == 0
    weights = [*model.net_g.parameters(), *model.net_g_ema.parameters()]
    assert all(weight.dtype == torch.float32 and torch.isfinite(weight).all() for weight in weights)


@pytest.mark.parametrize("objective", ["none", "CSD", "OutputDistillation"])
def test_compiled_networks_have_the_same_losses(objective, monkeypatch):
    """By the compiler's first half alone where the GPU is pretended: it has no code for it."""
    compiled = []
    plain = nn.Module.compile

    def compile_quickly(network, *args, **kwargs):
        compiled.append(network)
        plain(network, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", compile_quickly)
    with gpu():
        expected, _ = losses_of(objective, steps=2)
        assert not compiled
        found, _ = losses_of(objective, steps=2, compile=True)
    assert len(compiled) == (1 if objective == "none" else 2)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2, abs=1e-5)

"""What is computed on a GPU in fewer launches has the numbers of the plain way: a real one, or the pretend one."""

from __future__ import annotations

import copy
import sys
from collections import Counter

import pytest
import torch
from cases import gpu
from torch import nn

from csd_plugin.archs import casting, fused, interface
from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.archs.interface import Interface, interface_of, run_network
from csd_plugin.archs.prenet import PReNet
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.devices import use_channels_last
from csd_plugin.distill import cell
from csd_plugin.distill.csd import CSD
from csd_plugin.distill.std import STD
from csd_plugin.errors import CSDError
from csd_plugin.losses.ssim import PyramidSSIMLoss
from csd_plugin.types import ClipView

OBJECTIVES = {
    "all of CSD": lambda: CSD(hidden=4),
    "MS": lambda: CSD(hidden=4, cross_scale=False, independent=False, collaborative=False, adaptor=False),
    "ITA": lambda: CSD(hidden=4, multi_scale=False, cross_scale=False, collaborative=False, adaptor=False),
    "CTA": lambda: CSD(hidden=4, multi_scale=False, cross_scale=False, independent=False, adaptor=False),
    "no adaptor": lambda: CSD(hidden=4, adaptor=False),
    "temporal first": lambda: CSD(hidden=4, order="temporal_first"),
    "teacher's state not detached": lambda: CSD(hidden=4, detach_teacher_state=False),
    "averaged cells": lambda: CSD(hidden=4, cells="averaged"),
    "STD": lambda: STD(hidden=4),
}


def both(objective, device):
    """Losses and diagnostics, and the gradients of features and weights, on a device; all of it brought back."""
    drawn = torch.Generator().manual_seed(5)
    ours, theirs = (torch.rand(2, 3, channels, 21, 10, generator=drawn) for channels in (3, 5))
    ours, theirs, truth = ours.to(device).requires_grad_(), theirs.to(device), torch.zeros(2, 3, 3, 21, 10).to(device)
    terms = objective.to(device)(ClipView(truth, {1: (ours,)}), ClipView(truth, {1: (theirs,)}), truth)
    torch.stack(list(terms.losses.values())).sum().backward()
    weights = [weight.grad for weight in objective.parameters() if weight.requires_grad]
    found = [*terms.losses.values(), *terms.diagnostics.values(), ours.grad, *weights]
    return [torch.zeros(()) if value is None else value.detach().cpu().float() for value in found]


@pytest.mark.parametrize("kernel", [True, False], ids=["LSTM kernel", "no LSTM kernel"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives(name, kernel, monkeypatch):
    torch.manual_seed(3)
    objective = OBJECTIVES[name]()
    expected = both(copy.deepcopy(objective), "cpu")
    used = []
    if not kernel:
        monkeypatch.setattr(cell, "_has_fused_lstm", lambda device: False)
    fused = cell._FusedGates.forward
    monkeypatch.setattr(cell._FusedGates, "forward", lambda *args: used.append(True) or fused(*args))
    with gpu():
        found = both(objective, "cuda")
    assert bool(used) == kernel
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item() + 1e-8)


@pytest.mark.parametrize("wrong", ["fails", "is not there", "has gates in another order"])
def test_without_an_lstm_kernel_that_is_ours_cells_do_without_and_say_so(wrong, monkeypatch, caplog):
    def kernel(*gates):
        if wrong == "fails":
            raise NotImplementedError("no such kernel")
        if wrong == "is not there":
            raise AttributeError("no such operation")
        return plain(gates[0].flip(1), *gates[1:])

    plain = torch.ops.aten._thnn_fused_lstm_cell
    monkeypatch.setattr(torch.ops.aten, "_thnn_fused_lstm_cell", kernel)
    with gpu():
        assert not cell._has_fused_lstm.__wrapped__(torch.device("cuda", 0))
    assert "without torch's LSTM kernel on cuda:0" in caplog.text


class Mixed(nn.Module):
    """Layers of which some are frozen, some used twice, and a weight that no layer is given as it is."""

    num_frame = 1

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.frozen = (nn.Conv2d(n, 4, 3, padding=1) for n in (3, 4, 4))
        self.last = nn.Conv2d(4, 3, 1)
        self.norm = nn.BatchNorm2d(4)
        self.frozen.requires_grad_(False)

    def forward(self, window):
        x = self.twice(self.twice(torch.relu(self.first(window[:, 0]))))
        x = self.frozen(self.norm(x))
        return nn.functional.conv2d(x, 2 * self.last.weight, bias=self.last.bias)


NETWORKS = {
    "student1": lambda: SLDNet(preset="student1", num_feat=4, init_type="kaiming"),
    "branches": lambda: HalfNet(preset="tiny", num_feat=4, branches=True),
    "recurrent": lambda: PReNet(num_feat=4),
    "mixed": Mixed,
}


def trained(network, *, learns=True):
    """Outputs and weights of three steps in bf16."""
    network = network.to("cuda")
    use_channels_last(network)
    optimizer = torch.optim.SGD([weight for weight in network.parameters() if weight.requires_grad], lr=0.1)
    clips = torch.rand(1, 4, 3, 12, 12, generator=torch.Generator().manual_seed(1)).to("cuda")
    outputs = []
    for _ in range(3):
        with torch.set_grad_enabled(learns):
            outputs.append(run_network(network, clips, 2, interface_of(network), autocast=torch.bfloat16))
        if learns:
            optimizer.zero_grad()
            outputs[-1].square().mean().backward()
            optimizer.step()
        else:
            with torch.no_grad():
                next(network.parameters()).mul_(1.5)  # as an average that follows
    return [value.detach().cpu() for value in (*outputs, *network.state_dict().values())]


@pytest.mark.parametrize("learns", [True, False], ids=["learning", "frozen"])
@pytest.mark.parametrize("name", NETWORKS)
def test_weights_that_are_cast_at_once_are_those_that_autocast_casts(name, learns, monkeypatch):
    torch.manual_seed(0)
    network = NETWORKS[name]()
    cast = copy.deepcopy(network)
    with gpu():
        ours = trained(cast, learns=learns)
        monkeypatch.setattr(interface, "_is_compiled", lambda network: True)
        theirs = trained(network, learns=learns)
    assert casting._kept[cast].weights and network not in casting._kept
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


class InPart(nn.Module):
    """A network that computes a part in float32 under any autocast, as flows and attention often do."""

    num_frame = 1

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, window):
        x = self.first(window[:, 0])
        with torch.autocast("cuda", enabled=False):
            return self.second(x.float())


def test_a_part_without_autocast_gets_its_weights_as_they_are():
    torch.manual_seed(0)
    network = InPart()
    clips, results = torch.rand(2, 1, 3, 8, 8), []
    with gpu():
        network = network.to("cuda")
        for _ in range(3):  # the first pass shows which weights are cast
            results.append(run_network(network, clips.to("cuda"), 1, Interface(1, "window"), autocast=torch.bfloat16))
    assert all(torch.equal(result.cpu(), results[0].cpu()) for result in results)
    assert casting._kept[network].weights == [network.first.weight, network.first.bias]


def test_a_frozen_network_is_cast_once():
    network = SLDNet(preset="teacher", num_feat=4).requires_grad_(False)
    with gpu() as counting:
        network, clips = network.to("cuda"), torch.rand(1, 7, 3, 16, 12).to("cuda")
        for _ in range(3):
            if counting is not None:
                counting.forget()
            run_network(network, clips, 1, interface_of(network), autocast=torch.bfloat16)
    if counting is not None:
        assert not counting.launches["aten::_foreach_copy_"] and counting.launches["aten::_to_copy"] <= 2


def test_weights_that_were_cast_in_inference_mode_can_be_learned_through():
    kept = casting._Kept()  # on a CPU, as the pretend GPU has no inference mode
    kept.weights = [nn.Parameter(torch.rand(4, 3, 3, 3), requires_grad=False)]
    with torch.inference_mode():
        [half] = kept.halves(torch.bfloat16).values()
    frames = torch.rand(1, 3, 8, 8, dtype=torch.bfloat16, requires_grad=True)
    nn.functional.conv2d(frames, half).sum().backward()
    assert list(kept.halves(torch.bfloat16).values()) == [half]


@pytest.mark.parametrize("fuses", [True, False])
def test_cells_refuse_second_derivatives(fuses, monkeypatch):
    monkeypatch.setattr(cell, "_has_fused_lstm", lambda device: fuses)
    with gpu():
        maps = torch.rand(2, 1, 5, 6).to("cuda").requires_grad_()
        hidden, _ = cell.ConvLSTMCell(in_channels=1, hidden=4).to("cuda")(maps, None)
        with pytest.raises(CSDError, match="no second derivatives"):
            torch.autograd.grad(hidden.sum(), maps, create_graph=True)


def test_second_derivatives_of_what_takes_fewer_launches(monkeypatch):
    monkeypatch.setattr(fused, "_by_cudnn", fused._by_torch)  # on a CPU
    shapes = ((1, 2, 5, 4), (3, 2, 3, 3), (3,), (1, 3, 5, 4))
    values = [torch.rand(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    how = ((1, 1), (1, 1), (1, 1), 1)
    assert torch.autograd.gradgradcheck(lambda *values: fused._ConvReLU.apply(*values, how), values)
    weight = torch.rand(4, requires_grad=True)
    [half] = casting._Cast.apply(torch.bfloat16, weight)
    [gradient] = torch.autograd.grad(half.square().sum(), weight, create_graph=True)
    gradient.sum().backward()
    assert weight.grad.tolist() == [2.0] * 4


def test_the_loss_of_an_image():
    drawn = torch.Generator().manual_seed(2)
    output, truth = (torch.rand(2, 3, 34, 27, generator=drawn) for _ in range(2))
    gradients, losses = [], []
    for device in ("cpu", "cuda"):
        with gpu():
            ours = output.to(device).contiguous(memory_format=torch.channels_last).requires_grad_()
            loss = PyramidSSIMLoss(l1_weight=0.5)(ours, truth.to(device))
            loss.backward()
            losses.append(loss.item())
            gradients.append(ours.grad.cpu())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-9)


WATCHED = {"student1": "conv7", "tiny": "head"}
FUSING = {
    "student1": lambda: SLDNet(preset="student1", num_feat=4, init_type="kaiming"),
    "tiny": lambda: HalfNet(preset="tiny", num_feat=4),
}


def passed(network, *, autocast, device="cuda"):
    """The frames of a pass, and all gradients of what comes back through it."""
    network = network.to(device)
    clips = torch.rand(1, 4, 3, 12, 12, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
    frames = run_network(network, clips, 2, interface_of(network), autocast=autocast)
    frames.square().mean().backward()
    gradients = [weight.grad for weight in network.parameters()]
    return [value.detach().cpu().float() for value in (frames, clips.grad, *gradients)]


def _error(found, exact):
    return (torch.linalg.vector_norm(found - exact) / torch.linalg.vector_norm(exact)).item()


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("name", FUSING)
def test_a_convolution_with_its_sum_and_relu_is_as_exact_as_they_are_one_by_one(name, autocast, monkeypatch):
    torch.manual_seed(0)
    network = FUSING[name]()
    exact = passed(copy.deepcopy(network), autocast=None, device="cpu")
    used, operation, results = [], fused._by_cudnn, {}
    monkeypatch.setattr(fused, "_by_cudnn", lambda *args: used.append(True) or operation(*args))
    for suits in (True, False):
        monkeypatch.setattr(fused, "_suits_here", lambda *args, suits=suits: suits)
        with gpu():
            results[suits] = passed(copy.deepcopy(network), autocast=autocast)
        assert bool(used) == suits
        used.clear()
    errors = {suits: sum(_error(*pair) for pair in zip(results[suits], exact, strict=True)) for suits in results}
    assert errors[True] <= 1.2 * errors[False] + 1e-5 * len(exact)


def test_a_trial_without_room_is_given_up_after_a_few_times(monkeypatch):
    """The layer itself may fit, and later there may be room for the trial; but each failure costs."""
    torch.manual_seed(0)
    network = FUSING["tiny"]()
    exact = passed(copy.deepcopy(network), autocast=None, device="cpu")

    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fused, "_by_cudnn", full)
    monkeypatch.setattr(fused, "_suits", {})
    monkeypatch.setattr(fused, "_told", set())
    monkeypatch.setattr(fused, "_full", Counter())
    with gpu():
        for _ in range(4):
            found = passed(copy.deepcopy(network), autocast=None)
            assert sum(_error(*pair) for pair in zip(found, exact, strict=True)) < 1e-3 * len(exact)
    assert set(fused._full.values()) == {3} and fused._suits == dict.fromkeys(fused._full, False)
    assert fused._told == {fused._NO_ROOM}


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("suits", [False, True], ids=["by torch", "by cuDNN"])
@pytest.mark.parametrize("name", FUSING)
def test_channels_of_zeros_change_nothing(name, suits, autocast, monkeypatch):
    torch.manual_seed(0)
    network = FUSING[name]()
    exact = passed(copy.deepcopy(network), autocast=None, device="cpu")
    seen, padded, results = [], fused._padded, {}
    monkeypatch.setattr(fused, "_padded", lambda *args: seen.append(padded(*args)) or seen[-1])
    monkeypatch.setattr(fused, "_suits_here", lambda *args: suits)
    for pays in (True, False):
        monkeypatch.setattr(fused, "_padding_pays", lambda x, *_, pays=pays: pays and x.shape[1] % 8 != 0)
        with gpu():
            results[pays] = passed(copy.deepcopy(network), autocast=autocast)
        assert bool(seen) == pays
        assert all(x.shape[1] == weight.shape[1] and x.shape[1] % 8 == 0 for x, weight in seen)
        seen.clear()
    errors = {pays: sum(_error(*pair) for pair in zip(results[pays], exact, strict=True)) for pays in results}
    assert errors[True] <= 1.2 * errors[False] + 1e-5 * len(exact)


@pytest.mark.skipif("plugin" not in sys.modules, reason="a real GPU decides by its clock")
def test_channels_of_zeros_are_for_16_bits_and_where_they_are_faster(monkeypatch):
    padded = fused._padded
    for faster, autocast, expected in (
        (True, torch.bfloat16, True),
        (False, torch.bfloat16, False),
        (True, None, False),
    ):
        used = []
        monkeypatch.setattr(fused, "_padded", lambda *args, used=used: used.append(1) or padded(*args))
        fused.forget()
        with gpu():
            # the clock is asked whether what is there takes longer
            monkeypatch.setattr(fused, "is_slower", lambda *_, faster=faster: faster)
            network = FUSING["student1"]()
            passed(network, autocast=autocast)
            used.clear()
            passed(network, autocast=autocast)
        assert bool(used) == expected
    fused.forget()


@pytest.mark.parametrize("name", FUSING)
def test_a_layer_with_a_hook_is_called_as_it_is(name):
    network, seen = FUSING[name](), []
    network.get_submodule(WATCHED[name]).register_forward_hook(lambda layer, args, out: seen.append(out.min().item()))
    with gpu():
        passed(network, autocast=None)
    assert len(seen) == 1 and seen[0] < 0  # before its ReLU


REFUSALS = {
    "is not there": (AttributeError, "no such operation"),
    "refuses": (RuntimeError, "unable to find an engine"),
    "gives other numbers": (None, "it returns other values"),
    "is slower": (None, None),
}


@pytest.mark.skipif("plugin" not in sys.modules, reason="of a real GPU's operations")
@pytest.mark.parametrize("how", REFUSALS)
def test_an_operation_that(how, monkeypatch, caplog):
    """does not serve: convolutions go without it, and the log says why, once; what is slower is no fault."""
    error, line = REFUSALS[how]
    operation = fused._by_cudnn

    def by_cudnn(*args):
        if error is not None:
            raise error(line)
        return operation(*args) * (2 if how == "gives other numbers" else 1)

    torch.manual_seed(0)
    network = FUSING["student1"]()
    expected = passed(copy.deepcopy(network), autocast=None, device="cpu")
    monkeypatch.setattr(fused, "_by_cudnn", by_cudnn)
    fused.forget()
    with gpu() as counting:
        monkeypatch.setattr(fused, "is_slower", lambda *_: how == "is slower")
        passed(copy.deepcopy(network), autocast=None)
        counting.forget()
        found = passed(network, autocast=None)
    fused.forget()
    assert not [name for name in counting.launches if "cudnn" in name]
    assert caplog.text.count("without cuDNN's sum and ReLU on cuda:0") == (0 if line is None else 1)
    assert line is None or line in caplog.text
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item() + 1e-8)

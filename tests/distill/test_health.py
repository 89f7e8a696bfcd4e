"""The health monitor: what it measures, what it takes for an error, and what it warns of."""

from __future__ import annotations

import pytest
import torch
from torch import distributed, nn
from torch.utils.checkpoint import checkpoint

from csd_plugin.distill import health
from csd_plugin.distill.health import HealthMonitor, check_gradients, gradient_norms, scale_ratios
from csd_plugin.distill.objective import Comparison
from csd_plugin.errors import CSDError
from csd_plugin.types import ClipView, Terms


def test_norms_are_those_of_each_loss_by_itself_and_leave_the_step_alone():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    frozen, unused = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(2))
    output = net(torch.rand(5, 3))
    losses = {"a": output.square().mean(), "b": 0.1 * output.abs().mean(), "dead": (0 * output).sum()}
    losses["none"] = torch.tensor(3.0)
    norms = gradient_norms(losses, [*net.parameters(), frozen, unused], scale=64.0)
    assert all(p.grad is None for p in net.parameters())

    for name in ("a", "b"):
        net.zero_grad()
        losses[name].backward(retain_graph=True)
        expected = sum(p.grad.square().sum() for p in net.parameters()).sqrt()
        torch.testing.assert_close(norms[name], expected)
    assert norms["dead"] == norms["none"] == 0


def test_gradients_too_small_for_half_precision_are_measured_scaled():
    weight = nn.Parameter(torch.ones(1))
    loss = (weight.half() * 1e-3).float().sum() * 1e-6  # 1e-9 in half precision is 0
    assert gradient_norms({"x": loss}, [weight])["x"] == 0
    assert gradient_norms({"x": loss}, [weight], scale=2.0**16)["x"] == pytest.approx(1e-9, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("several", [False, True])
def test_norms_of_weights_of_other_kinds_of_numbers(dtype, several, monkeypatch):
    if several:  # as the mean over processes that all have the same
        monkeypatch.setattr("csd_plugin.distill.health.are_several", lambda: True)
        monkeypatch.setattr("csd_plugin.distill.health.mean_over_processes", lambda gradients: gradients)
    weight, other = nn.Parameter(torch.tensor([1.5, -2.0], dtype=dtype)), nn.Parameter(torch.ones(1))
    if weight.is_complex():
        weight = nn.Parameter(weight.detach() * (1 + 2j))
    loss = weight.abs().square().sum().float() / 2 + other.sum()
    norms = gradient_norms({"x": loss}, [weight, other], together=several)
    expected = (weight.detach().abs().square().sum().item() + 1) ** 0.5
    assert norms["x"].dtype == torch.float32 and norms["x"].item() == pytest.approx(expected, rel=1e-6)


def test_weights_in_shards_have_no_gradient_in_the_forward_pass_and_are_said_to_be_shards(tmp_path):
    """As `fully_shard` leaves them after the pass of a part of a model; the whole model keeps its own till the end."""
    tensor = pytest.importorskip("torch.distributed.tensor")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        shard = nn.Parameter(tensor.DTensor.from_local(torch.ones(2), mesh, [tensor.Shard(0)]))
        gathered = nn.Parameter(torch.ones(2))
        with pytest.raises(CSDError, match=r"weights are in shards .* shard the Distiller as a whole, not its student"):
            gradient_norms({"x": gathered.sum()}, [shard])
        assert gradient_norms({"x": gathered.sum()}, [gathered])["x"] == 2**0.5
    finally:
        distributed.destroy_process_group()


def test_norms_of_sparse_gradients():
    table = nn.Embedding(4, 2, sparse=True)
    assert gradient_norms({"x": table(torch.tensor([1, 1, 3])).sum()}, table.parameters())["x"] == 10**0.5


@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_that_are_computed_again_on_the_way_back(reentrant):
    torch.manual_seed(0)
    first, second, x = nn.Linear(3, 4), nn.Linear(4, 2), torch.rand(5, 3)

    def norms(output):
        return gradient_norms({"x": output.square().mean()}, [*first.parameters(), *second.parameters()])

    expected, output = norms(second(first(x))), checkpoint(second, first(x), use_reentrant=reentrant)
    if reentrant:
        with pytest.raises(
            CSDError, match=r"call it with use_reentrant=False, which.*`balance` need; or set train.health: false"
        ):
            norms(output)
    else:
        torch.testing.assert_close(norms(output), expected)


def test_losses_of_an_earlier_graph_are_one_line():
    weight = nn.Parameter(torch.ones(2))
    state = weight.square()
    state.sum().backward()
    with pytest.raises(CSDError, match=r"the student keeps something of one batch.* detach what it keeps"):
        gradient_norms({"x": state.sum()}, [weight])


def test_scale_ratios_pair_by_pair():
    def view(*factors):
        return ClipView(
            torch.zeros(1, 2, 3, 4, 4), {1: tuple(factor * torch.ones(1, 2, 5, 4, 4) for factor in factors)}
        )

    assert [float(ratio) for ratio in scale_ratios(view(3.0, -1.0), view(1.0, 2.0))] == [3.0, 0.5]
    assert scale_ratios(ClipView(torch.zeros(1), {}), view(1.0)) == []


def test_a_term_without_gradient_is_an_error_unless_nothing_is_left_to_learn():
    check_gradients({"spatial": 1e-9, "temporal": 0.0}, {"spatial": 0.3, "temporal": 0.0})
    with pytest.raises(
        CSDError, match=r"term temporal is 0.2 and has a weight, but gives the student no gradient: tap"
    ):
        check_gradients({"spatial": 1.0, "temporal": 0.0}, {"spatial": 0.3, "temporal": 0.2})


def test_a_term_that_has_taught_may_rest(monkeypatch):
    """One crop with a feature of zeros ends no run; a term that has never taught anything does, unless others learn."""
    weight = torch.ones(3, requires_grad=True)

    def examined(monitor, factor, others=0.0):
        monkeypatch.setattr(health, "mean_over_processes", lambda norms: norms + others)
        terms = Terms({"spatial": (factor * weight).square().sum() + 1}, {})
        view = ClipView(torch.zeros(1), {})
        compared = {"": Comparison(view, terms, {"spatial": 0.5}, (), learns_scale=True)}
        return monitor.examine(weight.sum(), view, compared, [weight])[1]

    with pytest.raises(CSDError, match="term spatial is 1 and has a weight, but gives the student no gradient"):
        examined(HealthMonitor(), 0.0)
    assert examined(HealthMonitor(), 0.0, others=1.0) == []
    monitor = HealthMonitor()
    assert examined(monitor, 1.0) == []
    resumed = HealthMonitor()
    resumed.start = dict(monitor.start)
    for one in (monitor, resumed):
        [message] = examined(one, 0.0)
        assert "the term spatial gives the student no gradient in this batch" in message
        assert examined(one, 0.0) == [] and examined(one, 1.0) == []
        assert len(examined(one, 0.0)) == 1


def test_collapse_is_a_spread_that_goes_with_the_loss_told_once_until_cured():
    monitor = HealthMonitor()

    def told(loss, spread):
        return monitor.warnings({"temporal": loss, "other": 1.0}, {"temporal": spread}, {}, {})

    assert told(1.0, 2.0) == []
    assert told(0.5, 0.2) == []
    [message] = told(0.1, 0.05)
    assert "the term temporal has collapsed: its spread is 0.05, at the start it was 2" in message
    assert "loss fell from 1 to 0.1" in message and "\n" not in message
    assert told(0.1, 0.04) == []
    assert told(0.1, 1.0) == []
    assert len(told(0.1, 0.05)) == 1
    assert told(0.1, 1.0) == []
    assert told(1.5, 0.05) == []  # the loss is no smaller: nobody is misled
    assert len(told(0.9, 0.05)) == 1

    resumed = HealthMonitor()
    resumed.start = dict(monitor.start)
    assert len(resumed.warnings({"temporal": 0.1}, {"temporal": 0.05}, {}, {})) == 1


@pytest.mark.parametrize(
    ("ratio", "warns"), [(0.05, True), (0.2, False), (9.0, False), (11.0, True), (float("nan"), False)]
)
def test_features_of_another_scale_are_told(ratio, warns):
    monitor = HealthMonitor()
    messages = monitor.warnings({}, {}, {"conv22": ratio}, {})
    assert len(messages) == warns
    assert all(f"at conv22 is {ratio:.3g} times as large" in message for message in messages)
    assert monitor.warnings({}, {}, {"conv22": ratio}, {}) == []


def test_a_term_that_is_not_finite_is_not_one_that_teaches_nothing():
    """The step is left out, and what went wrong is said there; what follows is measured by the next batch."""
    check_gradients({"output": 0.0}, {"output": float("nan")})
    monitor = HealthMonitor()
    assert monitor.warnings({"output": float("nan")}, {}, {}, {"output": 0.0}) == [] and not monitor.start
    assert monitor.warnings({"output": 2.0}, {}, {}, {"output": 1.0}) == []
    assert monitor.start == {"grad_output": 1.0, "loss_output": 2.0}

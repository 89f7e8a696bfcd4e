"""CSD against the slow reference, and what must hold whatever the numbers are."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from reference_csd import csd_losses, weights_of
from torch.autograd import gradcheck

from csd_plugin.distill.aggregation import AGGREGATIONS
from csd_plugin.distill.cell import ConvLSTMCell, State
from csd_plugin.distill.csd import CSD
from csd_plugin.errors import CSDError
from csd_plugin.types import ClipView

SWITCHES = {
    "MS": "multi_scale",
    "CSC": "cross_scale",
    "ITA": "independent",
    "CTA": "collaborative",
    "STA": "adaptor",
}
ROWS = {
    1: {"MS"},
    2: {"MS", "CSC"},
    3: {"ITA"},
    4: {"CTA"},
    5: {"ITA", "CTA"},
    6: {"MS", "CSC", "ITA", "CTA"},
    7: {"MS", "CSC", "ITA", "CTA", "STA"},
}
ALL = ROWS[7]


def build(switches=frozenset(ALL), **options):
    torch.manual_seed(3)
    return CSD(**{"hidden": 4, **{key: name in switches for name, key in SWITCHES.items()}, **options})


def features(batch=2, frames=3, size=(21, 10), channels=(3, 5), scales=(1,)):
    """Student's and teacher's features per input scale; the student's want gradients."""
    generator = torch.Generator().manual_seed(5)

    def draw(count, scale):
        return torch.rand(batch, frames, count, size[0] // scale, size[1] // scale, generator=generator)

    student = {scale: draw(channels[0], scale).requires_grad_() for scale in scales}
    return student, {scale: draw(channels[1], scale) for scale in scales}


def view(per_scale):
    feature = per_scale[1]
    batch, frames, _, height, width = feature.shape
    return ClipView(torch.zeros(batch, frames, 3, height, width), {scale: (f,) for scale, f in per_scale.items()})


def run(objective, student, teacher):
    return objective(view(student), view(teacher), view(student).output)


def assert_agrees(objective, student, teacher, switches, **options):
    """Every loss, and its gradient on the student's features and on every weight, equals the reference's to 1e-5."""
    fast = run(objective, student, teacher).losses
    slow = csd_losses(weights_of(objective), student, teacher, hidden=4, switches=switches, **options)
    assert tuple(fast) == objective.terms == tuple(slow)
    # weights that no pass uses take no gradient
    inputs = [*student.values(), *(weight for weight in objective.parameters() if weight.requires_grad)]
    for name in slow:
        assert slow[name] > 1e-4
        torch.testing.assert_close(fast[name], slow[name], rtol=1e-5, atol=1e-7)
        ours, theirs = (
            torch.autograd.grad(losses[name], inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
            for losses in (fast, slow)
        )
        for gradient, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item() + 1e-9)


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_switches_agrees_with_the_reference(row):
    objective = build(ROWS[row])
    assert_agrees(objective, *features(), ROWS[row], aggregation="sum_squared_standardized", num_scale=3)


@pytest.mark.parametrize("switches", [{"MS", "CSC", "ITA", "STA"}, {"MS", "CSC", "CTA", "STA"}])
def test_adaptor_with_one_temporal_stream_agrees(switches):
    assert_agrees(build(switches), *features(), switches, aggregation="sum_squared_standardized", num_scale=3)


@pytest.mark.parametrize("row", [3, 4, 6, 7])
@pytest.mark.parametrize("detached", [True, False])
@pytest.mark.parametrize("order", ["spatial_first", "temporal_first"])
def test_orders_and_what_the_collaborative_stream_takes_agree(row, detached, order):
    objective = build(ROWS[row], order=order, detach_teacher_state=detached)
    options = {"temporal_first": order == "temporal_first", "detached": detached}
    assert_agrees(objective, *features(), ROWS[row], aggregation="sum_squared_standardized", num_scale=3, **options)


@pytest.mark.parametrize("aggregation", sorted(AGGREGATIONS))
@pytest.mark.parametrize("source", ["feature", "frames"])
def test_aggregations_and_scale_sources_agree(aggregation, source):
    objective = build(aggregation=aggregation, scale_source=source)
    assert objective.input_scales == ((1,) if source == "feature" else (1, 2, 4))
    student, teacher = features(size=(11, 14), scales=objective.input_scales)
    assert_agrees(objective, student, teacher, ALL, aggregation=aggregation, num_scale=3)


def test_only_sums_agree_where_networks_of_different_widths_carry_the_same_frame():
    """As the identity start has it: the frame in three channels, nothing in the others."""
    frame = torch.rand(1, 2, 3, 6, 7)
    student, teacher = (F.pad(frame, (0, 0, 0, 0, 0, width - 3)) for width in (16, 32))
    for name, aggregate in AGGREGATIONS.items():
        ours, theirs = aggregate(student, teacher)
        assert torch.allclose(ours, theirs, atol=1e-5) == name.startswith("sum"), name


@pytest.mark.parametrize(
    ("batch", "frames", "size", "num_scale"),
    [(1, 1, (21, 10), 3), (2, 1, (8, 8), 3), (1, 5, (42, 21), 4), (2, 2, (5, 3), 1)],
)
def test_shapes_agree(batch, frames, size, num_scale):
    objective = build(num_scale=num_scale)
    student, teacher = features(batch, frames, size)
    assert_agrees(objective, student, teacher, ALL, aggregation="sum_squared_standardized", num_scale=num_scale)


@pytest.mark.parametrize("order", ["spatial_first", "temporal_first"])
@pytest.mark.parametrize("num_scale", [1, 2])
def test_the_weights_that_learn_are_those_that_get_a_gradient(num_scale, order):
    """Several processes wait for each; with two targets or more."""
    built = 0
    for count in range(1, 6):
        for switches in itertools.combinations(SWITCHES, count):
            try:
                objective = build(switches, num_scale=num_scale, order=order)
            except CSDError:  # these do not go together
                continue
            learning = {name for name, weight in objective.named_parameters() if weight.requires_grad}
            objective.requires_grad_()  # what does not learn is without use, and nothing else
            torch.stack(list(run(objective, *features(frames=2)).losses.values())).sum().backward()
            used = {name for name, weight in objective.named_parameters() if weight.grad is not None}
            assert learning == used, switches
            built += 1
    assert built > 7


def test_cell_gradients_by_finite_differences():
    torch.manual_seed(0)
    cell = ConvLSTMCell(in_channels=2, hidden=2).double()
    x, hidden, status = (torch.randn(2, 2, 4, 3, dtype=torch.double, requires_grad=True) for _ in range(3))
    weights = tuple(cell.parameters())
    assert gradcheck(lambda x, h, c, *_: tuple(cell(x, State(h, c))), (x, hidden, status, *weights))
    assert gradcheck(lambda x, *_: cell(x, None).hidden, (x, *weights))
    assert gradcheck(lambda x, h, c, *_: cell(x, State(h, c)).cell, (x, hidden, status, *weights))


def test_a_cell_starts_as_one_convolution_of_input_and_hidden_does():
    torch.manual_seed(0)
    cell, usual = ConvLSTMCell(in_channels=24, hidden=8), torch.nn.Conv2d(24 + 8, 4 * 8, 3)
    for ours in (cell.weight_input, cell.weight_hidden):
        for size in (torch.max, torch.mean):
            torch.testing.assert_close(size(ours.abs()), size(usual.weight.abs()), rtol=0.05, atol=0)


def test_gradients_run_back_through_all_frames():
    """The status of the last frame alone, compared, moves the feature of the first."""
    objective = build({"ITA"})
    student, teacher = features(frames=5)
    maps, _ = objective._maps(view(student), view(teacher))
    objective.cells(maps).temporal[-1].cell.sum().backward()
    assert (student[1].grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


def test_equal_features_have_no_loss_and_full_correlation():
    student, _ = features()
    terms = run(build(), student, {1: student[1].detach()})
    assert all(loss == 0 for loss in terms.losses.values())
    assert terms.diagnostics["correlation"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("cells", ["joint", "frozen", "averaged"])
def test_teacher_gets_no_gradient_and_student_does(cells):
    student, teacher = features()
    teacher[1].requires_grad_()
    sum(run(build(cells=cells), student, teacher).losses.values()).backward()
    assert teacher[1].grad is None
    assert student[1].grad.abs().sum() > 0


def test_modules_switched_off_do_not_exist():
    def owned(row):
        return {name.split(".")[1] for name, _ in build(ROWS[row]).named_parameters()}

    assert owned(1) == owned(2) == {"connector"}
    assert owned(3) == owned(4) == owned(5) == {"aggregator"}
    assert owned(6) == {"connector", "aggregator"}
    assert owned(7) == {"connector", "aggregator", "hint"}


def test_frozen_cells_do_not_learn():
    objective = build(cells="frozen")
    assert not [name for name, weight in objective.named_parameters() if weight.requires_grad]
    assert objective.state_dict()  # saved all the same: a resumed run must go on with the same random cells


def test_averaged_cells_follow_the_learned_ones_slowly():
    objective = build(cells="averaged", ema_decay=0.9)
    student, teacher = features()
    spread = run(objective, student, teacher).diagnostics["spread_temporal"]
    start = [weight.clone() for weight in objective.averaged_cells.parameters()]
    with torch.no_grad():
        for weight in objective.cells.parameters():
            weight.add_(1)
    assert run(objective, student, teacher).diagnostics["spread_temporal"] == spread  # the target has not moved yet
    objective.after_step()
    for average, before in zip(objective.averaged_cells.parameters(), start, strict=True):
        torch.testing.assert_close(average, before + 0.1)
        assert not average.requires_grad
    assert run(objective, student, teacher).diagnostics["spread_temporal"] != spread


@pytest.mark.parametrize("switches", [{"ITA"}, {"CTA"}])
def test_averaged_leaves_the_learning_to_the_students_streams(switches):
    objective = build(switches, cells="averaged")
    sum(run(objective, *features()).losses.values()).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in objective.cells.parameters())
    assert all(weight.grad is None for weight in objective.averaged_cells.parameters())


def test_cells_learn_until_collapsed_and_are_kept_then():
    objective = build(cells="joint_until_collapsed", collapse_fraction=0.5)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.01)
    student, teacher = features()

    def step():
        """The cells' weights after one step, and whether they were told to freeze in it."""
        optimizer.zero_grad()
        terms = run(objective, student, teacher)
        sum(terms.losses.values()).backward()
        optimizer.step()
        objective.after_step()
        return [weight.clone() for weight in objective.cells.parameters()], bool(terms.diagnostics["frozen"])

    (one, frozen), (two, _) = step(), step()
    assert not frozen and not any(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    with torch.no_grad():  # a status that ignores what goes in
        for cell in (objective.cells.connector.local_to_global, objective.cells.connector.global_to_local):
            cell.weight_input.mul_(0.01)
    (collapsed, frozen), (kept, _) = step(), step()
    assert frozen and not torch.equal(objective.freeze.start, torch.full((2,), torch.nan))
    assert all(torch.equal(a, b) for a, b in zip(collapsed, kept, strict=True))

    # a resumed run: the same weights, frozen, and momentum that would move them
    again = build(cells="joint_until_collapsed")
    again.load_state_dict(objective.state_dict())
    objective = again
    optimizer.param_groups[0]["params"] = list(again.parameters())
    assert all(torch.equal(a, b) for a, b in zip(kept, step()[0], strict=True))


@pytest.mark.parametrize("module", ["connector", "aggregator"])
def test_one_status_that_collapses_freezes_all_cells(module):
    objective = build(ROWS[6], cells="joint_until_collapsed")
    student, teacher = features()
    assert run(objective, student, teacher).diagnostics["frozen"] == 0
    with torch.no_grad():  # a status that ignores what goes in
        for name, weight in getattr(objective.cells, module).named_parameters():
            weight.mul_(0.01 if name.endswith("weight_input") else 1)
    assert run(objective, student, teacher).diagnostics["frozen"] == 1


def test_cells_are_kept_when_nothing_is_left_to_align():
    objective = build(cells="joint_until_collapsed")
    student, _ = features()
    assert run(objective, student, {1: student[1].detach()}).diagnostics["frozen"] == 1
    assert run(build(cells="joint_until_collapsed"), *features()).diagnostics["frozen"] == 0


def test_after_step_leaves_joint_cells_alone():
    objective = build()
    before = [weight.clone() for weight in objective.parameters()]
    objective.after_step()
    assert all(torch.equal(a, b) for a, b in zip(objective.parameters(), before, strict=True))


def test_diagnostics_measure_what_they_say():
    objective = build({"MS", "CSC", "ITA"})
    student, teacher = features(frames=2)
    terms = run(objective, student, teacher)
    assert not any(value.requires_grad for value in terms.diagnostics.values())
    maps_s, maps_t = objective._maps(view(student), view(teacher))
    pearson = [
        torch.corrcoef(torch.stack([maps_s[0][t, b].flatten(), maps_t[0][t, b].flatten()]))[0, 1]
        for t in range(2)
        for b in range(2)
    ]
    torch.testing.assert_close(terms.diagnostics["correlation"], torch.stack(pearson).mean())
    status = torch.stack([state.cell for state in objective.cells(maps_t).temporal])
    spread = status.std(dim=(0, 1, 3, 4), correction=0).mean()
    torch.testing.assert_close(terms.diagnostics["spread_temporal"], spread, rtol=1e-4, atol=1e-6)
    status = torch.stack([state.cell for state in objective.cells(maps_s).temporal])
    expected = status.std(dim=(0, 1, 3, 4), correction=0).mean()
    torch.testing.assert_close(terms.diagnostics["student_spread_temporal"], expected, rtol=1e-4, atol=1e-6)
    spatial_only = {"correlation", "spread_spatial", "student_spread_spatial"}
    assert set(run(build({"MS"}), student, teacher).diagnostics) == spatial_only


def test_constant_teacher_gives_finite_losses():
    student, teacher = features()
    terms = run(build(), student, {1: torch.full_like(teacher[1], 0.5)})
    sum(terms.losses.values()).backward()
    assert all(torch.isfinite(value) for value in (*terms.losses.values(), *terms.diagnostics.values()))
    assert torch.isfinite(student[1].grad).all()


def test_autocast_leaves_losses_in_float32():
    objective = build()
    student, teacher = features()
    expected = run(objective, student, teacher).losses
    (expected_gradient,) = torch.autograd.grad(sum(expected.values()), student[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = run(objective, student, teacher).losses
        (gradient,) = torch.autograd.grad(sum(losses.values()), student[1])
        half = run(objective, {1: student[1].bfloat16()}, {1: teacher[1].bfloat16()}).losses
    assert torch.equal(gradient, expected_gradient)
    for name in expected:
        assert losses[name].dtype == half[name].dtype == torch.float32
        assert torch.equal(losses[name], expected[name])
        torch.testing.assert_close(half[name], expected[name], rtol=0.1, atol=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multi_scale": False, "cross_scale": False}, "adaptor needs"),
        ({"cross_scale": False}, "adaptor needs"),
        ({"independent": False, "collaborative": False}, "adaptor needs"),
        (dict.fromkeys(SWITCHES.values(), False), "all parts are switched off"),
        ({"multi_scale": False, "adaptor": False}, "cross_scale needs multi_scale"),
        ({"aggregation": "mean_square"}, "did you mean mean_squared"),
        ({"cells": "freeze"}, "did you mean frozen"),
        ({"scale_source": "frame"}, "did you mean frames"),
        ({"order": "temporal_frist"}, "did you mean temporal_first"),
        ({"num_scale": 0}, "num_scale is 0 and hidden 16, expected at least 1"),
        ({"hidden": 0}, "num_scale is 3 and hidden 0, expected at least 1"),
        ({"cells": "averaged", "ema_decay": 1.0}, r"ema_decay is 1\.0, expected at least 0 and below 1"),
        ({"ema_decay": 0.9}, "ema_decay has no effect unless cells is averaged"),
        *(
            ({"cells": "joint_until_collapsed", "collapse_fraction": share}, f"is {share}, expected between 0 and 1")
            for share in (0.0, 1.0)
        ),
        ({"collapse_fraction": 0.3}, "collapse_fraction has no effect unless cells is joint_until_collapsed"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(CSDError, match=message) as caught:
        CSD(**options)
    assert "\n" not in str(caught.value)


def test_features_that_do_not_fit():
    objective = build()
    student, teacher = features()
    with pytest.raises(CSDError, match="2x3x3x21x10 and the teacher's 2x3x5x20x10"):
        run(objective, student, {1: teacher[1][..., :20, :]})
    with pytest.raises(CSDError, match="too small for 3 scales"):
        run(objective, {1: student[1][..., :3]}, {1: teacher[1][..., :3]})
    with pytest.raises(CSDError, match="teacher at input scale 1, got 0"):
        objective(view(student), ClipView(view(teacher).output, {1: ()}), view(student).output)
    with pytest.raises(CSDError, match="at input scale 2 the features are 11x5, not 10x5"):
        framed = build(scale_source="frames")
        run(framed, *({s: torch.rand(1, 1, 2, *hw) for s, hw in {1: (21, 10), 2: (11, 5), 4: (5, 2)}.items()},) * 2)

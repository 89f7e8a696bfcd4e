"""SRKD, STD, FAKD and the plain objectives: each formula once more, its gradient, and where it vanishes."""

from __future__ import annotations

import pytest
import torch
from reference_csd import conv_lstm
from toolbox import method
from torch import nn

from csd_plugin.distill import OBJECTIVES
from csd_plugin.distill.adapters import AdaptedObjective
from csd_plugin.distill.collapse import Freeze
from csd_plugin.distill.objective import build_objective
from csd_plugin.errors import CSDError
from csd_plugin.types import ClipView

OTHERS = sorted(set(OBJECTIVES) - {"CSD"})
BATCH, FRAMES, HEIGHT, WIDTH = 2, 3, 9, 8


def view(seed, widths=(4,), dtype=torch.float64):
    """A network's frames and one feature of each width; all want gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(channels):
        shape = (BATCH, FRAMES, channels, HEIGHT, WIDTH)
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return ClipView(draw(3), {1: tuple(draw(width) for width in widths)})


def clean():
    return view(9).output.detach()


def losses(objective, student, teacher):
    return objective.double()(student, teacher, clean()).losses


def frames(tensor):
    """Every frame of every clip."""
    return tensor.detach().flatten(0, 1)


def test_srkd():
    student, teacher = view(1, (4, 5)), view(2, (6, 2))
    expected = 0
    for ours, theirs in zip(student.features[1], teacher.features[1], strict=True):
        total = count = 0
        for a, b in zip(frames(ours), frames(theirs), strict=True):
            for y in range(HEIGHT):
                for x in range(WIDTH):
                    total += ((sum(a[:, y, x]) / len(a)) ** 2 - (sum(b[:, y, x]) / len(b)) ** 2) ** 2
                    count += 1
        expected += total / count
    # maps are float32
    torch.testing.assert_close(losses(build_objective({"type": "SRKD"}), student, teacher)["maps"].double(), expected)


def test_std():
    torch.manual_seed(0)
    objective = build_objective({"type": "STD", "hidden": 3})
    student, teacher = view(1, (4,)), view(2, (6,))
    result = objective(student, teacher, clean()).losses
    cell = torch.cat([objective.cell.weight_input, objective.cell.weight_hidden], dim=1), objective.cell.bias
    maps, cells = [], []
    for network in (student, teacher):
        feature = network.features[1][0].detach().float()
        maps.append(torch.stack([(frame**2).sum(0) for frame in feature.flatten(0, 1)]))
        for clip in feature:
            state = (torch.zeros(3, HEIGHT, WIDTH), torch.zeros(3, HEIGHT, WIDTH))
            for frame in clip:
                state = conv_lstm(cell, (frame**2).sum(0, keepdim=True), state)
            cells.append(state[1])
    torch.testing.assert_close(result["space"], (maps[0] - maps[1]).square().mean())
    ours, theirs = torch.stack(cells[:BATCH]), torch.stack(cells[BATCH:])
    torch.testing.assert_close(result["time"], (ours - theirs).square().mean())


def test_affinities_of_several_taps_are_summed():
    student, teacher = view(1, (4, 5)), view(2, (4, 5))

    def affinity(taps):
        views = (ClipView(seen.output, {1: seen.features[1][taps]}) for seen in (student, teacher))
        return losses(build_objective({"type": "FAKD"}), *views)["affinity"]

    torch.testing.assert_close(affinity(slice(2)), affinity(slice(1)) + affinity(slice(1, 2)))


@pytest.mark.parametrize("pool", [1, 2, 4])
def test_fakd(pool):
    student, teacher = view(1), view(2, (6,))
    result = losses(build_objective({"type": "FAKD", "pool": pool}), student, teacher)
    rows, columns = HEIGHT // pool, WIDTH // pool
    expected = []
    for pair in zip(frames(student.features[1][0]), frames(teacher.features[1][0]), strict=True):
        pixels = [
            [
                frame[:, pool * y : pool * (y + 1), pool * x : pool * (x + 1)].mean(dim=(1, 2))
                for y in range(rows)
                for x in range(columns)
            ]
            for frame in pair
        ]
        for i in range(rows * columns):
            for j in range(rows * columns):
                ours, theirs = (
                    torch.dot(p[i], p[j]) / (p[i].square().sum() * p[j].square().sum()).sqrt() for p in pixels
                )
                expected.append((ours - theirs).abs())
    torch.testing.assert_close(result["affinity"].double(), torch.stack(expected).mean())
    torch.testing.assert_close(result["truth"], (student.output - clean()).abs().mean())
    torch.testing.assert_close(result["teacher"], (student.output - teacher.output).abs().mean())


@pytest.mark.parametrize(("pool", "temperature"), [(1, 0.1), (2, 0.5), (4, 0.1)])
def test_crd(pool, temperature):
    student, teacher = view(1, (4, 5)), view(2, (4, 5))
    result = losses(build_objective({"type": "CRD", "pool": pool, "temperature": temperature}), student, teacher)
    rows, columns = HEIGHT // pool, WIDTH // pool
    expected = 0
    for ours, theirs in zip(student.features[1], teacher.features[1], strict=True):
        terms = []
        for pair in zip(frames(ours), frames(theirs), strict=True):
            pixels = []
            for frame in pair:
                pooled = [
                    frame[:, pool * y : pool * (y + 1), pool * x : pool * (x + 1)].mean(dim=(1, 2))
                    for y in range(rows)
                    for x in range(columns)
                ]
                mean = sum(pooled) / len(pooled)
                pixels.append([(pixel - mean) / (pixel - mean).square().sum().sqrt() for pixel in pooled])
            for i, pixel in enumerate(pixels[0]):
                likeness = torch.stack([(torch.dot(pixel, other) / temperature).exp() for other in pixels[1]])
                terms.append(-(likeness[i] / likeness.sum()).log())
        expected += torch.stack(terms).mean()
    torch.testing.assert_close(result["contrast"], expected.float())  # which it is computed in


def test_crd_of_features_that_tell_no_pixel_from_another():
    constant = torch.tensor([0.3, 0.0, 7.0, 1e-3]).view(4, 1, 1).repeat(BATCH, FRAMES, 1, HEIGHT, WIDTH)
    flat = ClipView(clean(), {1: (constant.requires_grad_(),)})
    loss = losses(build_objective({"type": "CRD", "pool": 1}), flat, view(2))["contrast"]
    torch.testing.assert_close(loss, torch.tensor(HEIGHT * WIDTH).log(), rtol=1e-2, atol=0)
    loss.backward()
    assert flat.features[1][0].grad.isfinite().all()


def test_crd_is_lower_the_better_pixels_are_told_apart():
    objective = build_objective({"type": "CRD", "pool": 1})
    same, other = losses(objective, view(1), view(1)), losses(objective, view(1), view(2))
    moved = ClipView(clean(), {1: (view(1).features[1][0].roll(1, dims=3),)})
    assert same["contrast"] < other["contrast"]
    assert same["contrast"] < losses(objective, view(1), moved)["contrast"]


def test_plain_objectives():
    student, teacher = view(1), view(2)
    output = losses(build_objective({"type": "OutputDistillation"}), student, teacher)
    torch.testing.assert_close(output["output"], (student.output - teacher.output).abs().mean())
    blend = losses(build_objective({"type": "TeacherTruthBlend", "share": 0.3}), student, teacher)
    goal = 0.3 * teacher.output + 0.7 * clean()
    torch.testing.assert_close(blend["blend"], (student.output - goal).abs().mean())


@pytest.mark.parametrize("name", OTHERS)
def test_gradients_reach_the_student_and_not_the_teacher(name):
    objective = build_objective(method(name))
    for term in objective.terms:
        student, teacher = view(1, dtype=torch.float32), view(2, dtype=torch.float32)
        raw = objective(student, teacher, clean().float()).losses
        assert tuple(raw) == objective.terms
        raw[term].backward()
        reached = [t.grad for t in (student.output, *student.features[1]) if t.grad is not None]
        assert reached and all(grad.isfinite().all() and grad.any() for grad in reached), term
        assert all(t.grad is None for t in (teacher.output, *teacher.features[1]))


@pytest.mark.parametrize("name", sorted(set(OTHERS) - {"CRD"}))
def test_terms_on_the_teacher_vanish_where_the_student_equals_it(name):
    objective = build_objective(method(name) | ({"share": 1.0} if name == "TeacherTruthBlend" else {}))
    raw = objective(view(1), view(1), clean()).losses
    assert all(loss == 0 for term, loss in raw.items() if term != "truth")
    other = objective(view(1), view(2), clean()).losses
    assert all(loss > 0 for loss in other.values())


@pytest.mark.parametrize("name", ["SRKD", "STD", "FAKD", "CRD"])
def test_autocast_changes_nothing(name):
    objective = build_objective({"type": name})
    pair = view(1, dtype=torch.float32), view(2, dtype=torch.float32)
    plain = objective(*pair, clean().float()).losses
    with torch.autocast("cpu", torch.bfloat16):
        mixed = objective(*pair, clean().float()).losses
    assert all(torch.equal(plain[term], mixed[term]) for term in plain)


def test_stds_cell_stops_learning_once_its_loss_is_small():
    torch.manual_seed(0)
    objective = build_objective({"type": "STD", "hidden": 3})
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.1)

    def step(student, teacher):
        before = [parameter.detach().clone() for parameter in objective.parameters()]
        optimizer.zero_grad()
        terms = objective(student, teacher, clean())
        terms.losses["time"].backward()
        optimizer.step()
        objective.after_step()
        return any(not torch.equal(a, b) for a, b in zip(before, objective.parameters(), strict=True))

    apart, same = (view(1), view(2)), (view(1), view(1))
    assert step(*apart)
    step(*same)
    assert objective.freeze.frozen
    assert not step(*apart)  # Adam's momentum would have moved it

    again = build_objective({"type": "STD", "hidden": 3})
    again.load_state_dict(objective.state_dict())
    assert again.freeze.frozen

    blind = build_objective({"type": "STD", "hidden": 3})
    torch.nn.init.zeros_(blind.cell.weight_input)  # no difference in time, however far apart the maps are
    assert blind(*apart, clean()).losses["space"] > 0.01 and blind.freeze.frozen


def test_what_does_not_fit_is_told():
    target = clean()
    with pytest.raises(CSDError, match=r"STD: needs 1 feature\(s\) of the student at input scale 1, got 2"):
        build_objective({"type": "STD"})(view(1, (2, 2)), view(2), target)
    with pytest.raises(CSDError, match=r"SRKD: needs 2 feature\(s\) of the teacher at input scale 1, got 1"):
        build_objective({"type": "SRKD"})(view(1, (2, 2)), view(2), target)
    with pytest.raises(CSDError, match=r"SRKD: needs 1 feature\(s\) of the student"):
        build_objective({"type": "SRKD"})(ClipView(target, {1: ()}), view(2), target)
    small = ClipView(target, {1: (torch.rand(BATCH, FRAMES, 4, 3, 9),)})
    with pytest.raises(CSDError, match="smaller than pool 4"):
        build_objective({"type": "FAKD"})(small, small, target)
    with pytest.raises(
        CSDError, match=r"CRD: the student's feature has 4 channels, the teacher's has 6; give `adapters"
    ):
        build_objective({"type": "CRD"})(view(1), view(2, (6,)), target)
    single = ClipView(target, {1: (torch.rand(BATCH, FRAMES, 4, 3, 5),)})
    with pytest.raises(CSDError, match="CRD: after pooling by 3, a feature has a single pixel; lower pool"):
        build_objective({"type": "CRD", "pool": 3})(single, single, target)
    large = ClipView(target, {1: (torch.rand(1, 1, 1, 1, 1).expand(4, 5, 2, 128, 128),)})
    with pytest.raises(CSDError, match=r"128x128, pooled by 1, take 60\.0 GiB, more than max_gib 8; raise pool"):
        build_objective({"type": "FAKD", "pool": 1})(large, large, target)
    build_objective({"type": "FAKD", "pool": 1, "max_gib": 60.0}).check(large, large)  # which is not more


@pytest.mark.parametrize(
    ("opt", "message"),
    [
        ({"type": "STD", "hidden": 0}, "hidden is 0"),
        ({"type": "FAKD", "pool": 0}, "pool is 0"),
        ({"type": "FAKD", "max_gib": 0}, "max_gib 0"),
        ({"type": "CRD", "temperature": 0}, "temperature is 0"),
        ({"type": "CRD", "temperature": float("nan")}, "temperature is nan"),
        ({"type": "CRD", "pool": 0}, "CRD: pool is 0"),
        ({"type": "TeacherTruthBlend", "share": 1.5}, r"share is 1\.5"),
        ({"type": "SRKD", "hidden": 3}, "option 'hidden' is unknown"),
    ],
)
def test_wrong_options(opt, message):
    with pytest.raises(CSDError, match=message):
        build_objective(opt)


@pytest.mark.parametrize("adapted", [False, True])
def test_an_objective_warns_of_what_its_features_cost(adapted):
    features = [(4, 5, 16, 128, 128)]
    objective = build_objective({"type": "FAKD", "pool": 1})
    if adapted:
        objective = AdaptedObjective(objective, adapters=["resize"], student=features, teacher=features)
    # three matrices of float32 for each of 20 frames: two, and the gradient of one
    assert objective.warnings(features) == [f"FAKD's affinities take {20 * 3:.1f} GiB with pool 1; raise it"]
    assert build_objective({"type": "FAKD", "pool": 4}).warnings(features) == []
    assert build_objective({"type": "SRKD"}).warnings(features) == []


def test_a_freeze_keeps_its_tensors_which_a_cuda_graph_writes_into():
    """What a replay puts there counts, also after steps that were launched."""
    freeze, weight = Freeze(), nn.Parameter(torch.ones(2))
    freeze.hold([weight])
    held, kept = freeze._kept
    freeze.hold([weight])  # a launched step
    held.fill_(True)  # as a replay does
    kept.fill_(3.0)
    with torch.no_grad():
        weight.fill_(8.0)
    freeze.restore([weight])
    assert weight.tolist() == [3.0, 3.0]
    freeze.freeze_if_gone(torch.tensor(0.0))
    freeze.hold([weight])
    with torch.no_grad():
        weight.fill_(9.0)
    freeze.restore([weight])
    assert weight.tolist() == [3.0, 3.0]

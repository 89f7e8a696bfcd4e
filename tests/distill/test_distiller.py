"""Distillation without a toolbox: what a loop of one's own gets."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from quarters import Quarters
from toolbox import SHALLOW_STUDENT, SHALLOW_TEACHER, equal, method
from torch._functorch import config as functorch_config
from torch.utils.checkpoint import checkpoint

from csd_plugin.archs.interface import Interface, interface_of
from csd_plugin.archs.prenet import PReNet
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.data.batches import FEATURE
from csd_plugin.distill import OBJECTIVES
from csd_plugin.distill.adapters import AdaptedObjective
from csd_plugin.distill.csd import CSD
from csd_plugin.distill.distiller import Compared, Distiller, Teacher, adapted
from csd_plugin.distill.dry_run import Clips, dry_run
from csd_plugin.distill.health import gradient_norms
from csd_plugin.distill.interface import Objective
from csd_plugin.distill.objective import build_objective
from csd_plugin.distill.output import OutputDistillation
from csd_plugin.distill.srkd import SRKD
from csd_plugin.distill.std import STD
from csd_plugin.errors import CSDError
from csd_plugin.losses.several import SeveralLosses
from csd_plugin.losses.ssim import PyramidSSIMLoss

WEIGHTS = {"spatial": 0.1, "temporal": 0.1}


def student(width: int = 4) -> SLDNet:
    return SLDNet(**SHALLOW_STUDENT | {"num_feat": width})


def wider_window() -> SLDNet:
    return SLDNet(**SHALLOW_TEACHER)


def teacher(**keywords) -> Teacher:
    return Teacher(wider_window(), CSD(hidden=4), **keywords)


def distiller(*teachers: Teacher, weights=WEIGHTS, **keywords) -> Distiller:
    torch.manual_seed(0)
    return Distiller(student(), teachers or [teacher()], PyramidSSIMLoss(), weights=weights, **keywords)


def batch(frames: int = 6, targets: int = 2, size: int = 12) -> dict[str, torch.Tensor]:
    lq = torch.rand(2, frames, 3, size, size, generator=torch.Generator().manual_seed(0))
    first = (frames - targets) // 2
    return {"lq": lq, "gt": lq[:, first : first + targets] * 0.9}


def test_networks_of_one_scale_are_compared():
    how = Interface(1, "image", feature="0:output", scale=2)
    student, wider = (
        torch.nn.Sequential(torch.nn.Conv2d(3, width, 1), torch.nn.Conv2d(width, 12, 1), torch.nn.PixelShuffle(2))
        for width in (4, 6)
    )
    small = batch(4, 2)
    large = {"lq": small["lq"], "gt": torch.rand(2, 2, 3, 24, 24)}
    teacher = Teacher(wider, CSD(hidden=4), interface=how)
    d = Distiller(student, [teacher], PyramidSSIMLoss(), weights=WEIGHTS, interface=how)
    losses, scalars = d(large)
    sum(losses.values()).backward()
    assert scalars["l_spatial"] > 0 and student[0].weight.grad.any()
    assert d.not_finite(large) == ""
    large["lq"][0, 1, 0, 0, 0] = torch.inf
    assert "the frames of the teacher t are not finite" in d.not_finite(large)
    with pytest.raises(CSDError, match="targets of 2 times their size: check that the scale of the data set is 2"):
        d(small)
    with pytest.raises(CSDError, match="the scale of the teacher t is 2, and the student's is 1: give both"):
        Distiller(student, [teacher], PyramidSSIMLoss(), weights=WEIGHTS, interface=replace(how, scale=1))


def test_named_parts_of_the_reconstruction_are_logged_while_nothing_is_distilled():
    losses = SeveralLosses({"flat": torch.nn.L1Loss(), "square": torch.nn.MSELoss()})
    off = Teacher(wider_window(), OutputDistillation())
    for teachers, weights in (([], {}), ([off], {"output": 0.0})):
        recon, scalars = Distiller(student(), teachers, losses, weights=weights)(batch())
        parts = [scalars["recon/flat"], scalars["recon/square"]]
        assert recon["l_recon"].item() == pytest.approx(sum(parts).item()) and min(parts) > 0


def test_the_reconstruction_loss_moves_along_in_float32_and_is_neither_learned_nor_saved():
    loss = torch.nn.Conv2d(3, 2, 1)
    d = Distiller(student(), [], loss, weights={}).double()
    assert {name.split(".")[0] for name in (*d.state_dict(), *dict(d.named_parameters()))} == {"student"}
    assert {weight.dtype for weight in loss.parameters()} == {torch.float32}
    Distiller(student(), [], loss, weights={}).to("meta")
    assert {weight.device.type for weight in loss.parameters()} == {"meta"}


def test_student_and_cells_learn_and_are_saved_and_the_teacher_moves_along():
    d = distiller()
    frozen = d.teachers[0].network
    before = copy.deepcopy(frozen.state_dict())
    learned = {id(p) for part in (d.student, d.teachers[0].objective) for p in part.parameters()}
    assert {id(p) for p in d.parameters()} == learned
    assert {name.split(".")[0] for name in d.state_dict()} == {"student", "objectives"}

    optimizer = torch.optim.Adam(d.parameters(), lr=1e-3)
    start = copy.deepcopy(d.state_dict())
    losses, scalars = d(batch(), 1)
    sum(losses.values()).backward()
    optimizer.step()
    assert losses.keys() == {"l_recon", "l_distill"}
    assert not any(value.requires_grad for value in scalars.values())
    assert {"l_spatial", "status/correlation", "health/grad_spatial"} <= scalars.keys()
    expected = 0.1 * scalars["l_spatial"] + 0.1 * scalars["l_temporal"]
    torch.testing.assert_close(losses["l_distill"].detach(), expected)
    changed = {name.split(".")[0] for name, value in d.state_dict().items() if not torch.equal(value, start[name])}
    assert changed == {"student", "objectives"}
    d.train()
    assert not frozen.training and equal(frozen.state_dict(), before)
    d.double()
    assert {p.dtype for p in frozen.parameters()} == {torch.float64}


def test_one_that_is_restored_continues():
    d, again = distiller(), distiller(Teacher(wider_window(), CSD(hidden=4)))
    again.load_state_dict(d.state_dict())
    again.teachers[0].network.load_state_dict(d.teachers[0].network.state_dict())
    for ours, theirs in zip(d(batch(), 5), again(batch(), 5), strict=True):
        assert equal(ours, theirs)


def until_collapsed() -> AdaptedObjective:
    """What learns on a condition, behind an adapter that goes by the first batch."""
    feature = [(2, 2, 4, 12, 12)]
    csd = CSD(hidden=4, cells="joint_until_collapsed", adaptor=False)
    return AdaptedObjective(csd, adapters=["conv1x1"], student=feature, teacher=feature)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("objective", [until_collapsed, STD])
def test_what_is_computed_without_gradients_changes_no_training(objective, mode):
    def build():
        torch.manual_seed(0)
        learner = wider_window()
        teacher = Teacher(copy.deepcopy(learner), objective())  # nothing is left to learn from
        weights = dict.fromkeys(teacher.objective.terms, 1.0)
        return Distiller(learner, [teacher], PyramidSSIMLoss(), weights=weights)

    def step(d):
        with torch.no_grad():
            next(d.student.parameters()).mul_(1.5)
        losses, scalars = d(batch(), 1)
        sum(losses.values()).backward()
        return [*losses.values(), *scalars.values(), *(p.grad for p in d.parameters() if p.grad is not None)]

    d, validated = build(), build()
    with mode():
        assert validated(batch(), 1)[1].keys() >= {"status/frozen"}
    pairs = zip(d.state_dict().values(), validated.state_dict().values(), strict=True)
    assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in pairs)
    assert all(torch.equal(a, b) for a, b in zip(step(d), step(validated), strict=True))
    validated.after_step()


def test_while_all_weights_are_zero_no_teacher_is_run(monkeypatch):
    d = distiller(weights={term: {"schedule": "stop_at", "start": 0.1, "iters": 3} for term in WEIGHTS})
    alone, _ = Distiller(d.student, [], PyramidSSIMLoss(), weights={})(batch())
    _, scalars = d(batch(), 3)
    assert float(scalars["weight/spatial"]) == pytest.approx(0.1)
    monkeypatch.setattr(d.teachers[0].network, "forward", lambda window: pytest.fail("the teacher was called"))
    losses, scalars = d(batch(), 4)
    assert equal(losses, alone)
    assert scalars == {"weight/spatial": 0, "weight/temporal": 0}


def test_the_first_batch_and_each_nth_are_examined():
    d, warnings = distiller(examine_every=3), []
    d.warn = warnings.append
    looked = [any(name.startswith("health/") for name in d(batch(), iteration)[1]) for iteration in range(1, 7)]
    assert looked == [True, False, True, False, False, True]
    assert warnings == []
    d.monitor.start["spread_spatial"] = 1e9
    d.monitor.start["loss_spatial"] = 1e9
    d(batch(), 9)
    assert len(warnings) == 1 and "has collapsed" in warnings[0]
    unwatched = distiller(examine_every=0)
    assert not any(name.startswith("health/") for name in unwatched(batch())[1])


def test_of_a_batch_in_parts_the_first_is_examined():
    d = distiller(examine_every=3)
    looked = [any(name.startswith("health/") for name in d(batch(), part)[1]) for part in (1, 1, 2, 2, 3, 3)]
    assert looked == [True, False, False, False, True, False]


def test_what_is_examined_or_logged_is_diagnosed_and_nothing_else():
    d = distiller(examine_every=3)
    diagnosed = [
        {"status/spread_spatial", "status/correlation"} <= d(batch(), iteration, logged=logged)[1].keys()
        for iteration, logged in ((1, False), (2, False), (2, True), (3, False), (4, False))
    ]
    assert diagnosed == [True, False, True, True, False]


def test_balanced_weights_keep_the_ratio_that_health_logs_and_end():
    weights = {"spatial": {"balance": 0.3}, "temporal": {"balance": 0.1, "until": 2}}
    d = distiller(weights=weights, examine_every=1)
    losses, scalars = d(batch(), 1)
    assert scalars["health/ratio_spatial"].item() == pytest.approx(0.3, rel=1e-4)
    assert scalars["health/ratio_temporal"].item() == pytest.approx(0.1, rel=1e-4)
    assert scalars["weight/spatial"].item() == pytest.approx(d.balance.measured["spatial"])
    expected = sum(scalars[f"weight/{term}"] * scalars[f"l_{term}"] for term in weights)
    torch.testing.assert_close(losses["l_distill"].detach(), expected)
    _, later = d(batch(), 3)
    assert later["weight/temporal"] == 0 and later["weight/spatial"] == scalars["weight/spatial"]


def test_several_teachers_are_balanced_together():
    teachers = [teacher(label="t", share=0.25), teacher(label="t2", share=0.75)]
    d = distiller(*teachers, weights={"spatial": {"balance": 0.3}, "temporal": 0.0}, examine_every=0)
    losses, _ = d(batch(), 1)
    norms = gradient_norms(losses, d.student.parameters())
    assert (norms["l_distill"] / norms["l_recon"]).item() == pytest.approx(0.3, rel=1e-4)


@pytest.mark.parametrize("around", [True, False])
def test_networks_compute_in_bf16_and_losses_in_float32(around):
    d = distiller(autocast=None if around else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=around):
        losses, scalars = d(batch())
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {value.dtype for value in scalars.values()} == {torch.float32}
    exact, _ = distiller()(batch())
    for name, loss in losses.items():
        assert loss != exact[name]
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.05)


def test_batches_of_other_people():
    """Bytes, a single target without its axis, and the truth of every frame."""
    d, given = distiller(), batch()
    plain, _ = d(batch(targets=2))
    lq = batch()["lq"]
    whole, _ = d({"lq": lq, "gt": lq * 0.9})  # the two targets that have windows of five frames
    assert equal(whole, plain)
    as_bytes = {key: (value * 255).round().byte() for key, value in given.items()}
    rounded = {key: value.float() / 255 for key, value in as_bytes.items()}
    assert equal(d(as_bytes)[0], d(rounded)[0])
    single = batch(frames=5, targets=1)
    assert equal(d(single)[0], d({"lq": single["lq"], "gt": single["gt"][:, 0]})[0])
    with pytest.raises(CSDError, match=r"the batch gives lq .* windows of 3 frames, but a network needs 5"):
        d(batch(frames=4))
    with pytest.raises(CSDError, match="the batch gives no gt"):
        d({"lq": given["lq"]})


def test_two_teachers_have_shares_and_names():
    first, second = teacher(share=0.25), teacher(label="t2", share=0.75)
    losses, scalars = distiller(first, second)(batch())
    terms = [0.1 * scalars[f"l_{label}/spatial"] + 0.1 * scalars[f"l_{label}/temporal"] for label in ("t", "t2")]
    torch.testing.assert_close(losses["l_distill"].detach(), 0.25 * terms[0] + 0.75 * terms[1])


@pytest.mark.parametrize(
    ("teachers", "weights", "words"),
    [
        ([{}, {"label": "t2"}], WEIGHTS, "shares add to 2"),
        ([{"share": 0.5}, {"share": 0.5}], WEIGHTS, "two teachers have the same label"),
        ([{}], {"spatial": 0.1}, "loss 'temporal' has no weight"),
        ([{}], WEIGHTS | {"spacial": 0.1}, "'spacial' is unknown.*spatial"),
        ([{}], WEIGHTS | {"spatial": {"schedule": "linear", "start": 1.0}}, "linear needs iters"),
    ],
)
def test_what_does_not_go_together_is_said_at_once(teachers, weights, words):
    with pytest.raises(CSDError, match=words):
        distiller(*(teacher(**keywords) for keywords in teachers), weights=weights)


@pytest.mark.parametrize(
    ("teachers", "scales", "count", "words"),
    [
        (1, "feature", 2, "the batch has 2 stored features, but 1 are compared"),
        (1, "frames", 1, r"also compares frames pooled by \(1, 2, 4\)"),
        (2, "feature", 1, "features of one teacher, but there are several"),
    ],
)
def test_stored_features_that_do_not_suffice(teachers, scales, count, words):
    made = [
        Teacher(student(), CSD(hidden=4, scale_source=scales), label=f"t{number}", share=1 / teachers)
        for number in range(teachers)
    ]
    stored = {f"{FEATURE}{number}": torch.rand(2, 2, 4, 12, 12) for number in range(count)}
    with pytest.raises(CSDError, match=words):
        distiller(*made)(batch() | stored)


def test_an_objective_without_features_goes_by_any_that_are_stored():
    teacher = Teacher(student(), OutputDistillation())
    stored = {f"{FEATURE}{number}": torch.rand(2, 2, 4, 12, 12) for number in range(2)}
    d = distiller(teacher, weights={"output": 1.0})
    losses, _ = d(batch() | stored)
    frames = interface_of(d.student).run(d.student, batch()["lq"], 2)  # the truth stands for the teacher's
    torch.testing.assert_close(losses["l_distill"], (frames - batch()["gt"].flatten(0, 1)).abs().mean())


def test_weights_need_a_teacher():
    with pytest.raises(CSDError, match="weights of spacial are given, but no teacher"):
        Distiller(student(), [], PyramidSSIMLoss(), weights={"spacial": 0.1, "temporal": 0})
    Distiller(student(), [], PyramidSSIMLoss(), weights=dict.fromkeys(WEIGHTS, 0))


def test_a_network_that_names_no_layer_needs_one_only_where_features_are_compared():
    ours = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1))
    ours.num_frame, ours.layout = 1, "image"
    outputs = Teacher(wider_window(), OutputDistillation())
    losses, _ = Distiller(ours, [outputs], PyramidSSIMLoss(), weights={"output": 1.0})(batch())
    assert losses["l_distill"] > 0
    with pytest.raises(CSDError, match="names no layer"):
        Distiller(ours, [teacher()], PyramidSSIMLoss(), weights=WEIGHTS)
    with pytest.raises(CSDError, match=r"layers is '0:output'; give a list of layers, such as \['0:output'\]"):
        Distiller(ours, [teacher()], PyramidSSIMLoss(), weights=WEIGHTS, layers="0:output")
    assert Distiller(ours, [teacher()], PyramidSSIMLoss(), weights=WEIGHTS, layers=["0:output"])(batch())[0]


def test_adapters_learn_in_addition():
    ours, theirs = student(6), wider_window()
    sides = {
        "student": Compared(ours, interface_of(ours), None),
        "teacher": Compared(theirs, interface_of(theirs), None),
    }
    clips = Clips(batch=1, num_frame=5, num_target=1, size=16)
    objective = adapted(CSD(hidden=4), ["conv1x1"], clips=clips, **sides)
    d = Distiller(ours, [Teacher(theirs, objective)], PyramidSSIMLoss(), weights=WEIGHTS)
    assert d.objectives["t"].convs[0].weight.shape[:2] == (4, 6)
    assert id(d.objectives["t"].convs[0].weight) in {id(p) for p in d.parameters()}
    assert d(batch())[0]["l_distill"] > 0


def test_passes_of_the_networks_beside_the_distiller_leave_nothing_behind():
    d = distiller()
    window = batch()["lq"][:, :3]
    losses, _ = d(batch(), 1)
    d.student(window)
    with torch.inference_mode():
        d.student(window)
    copy.deepcopy(d.student)  # a feature with its graph could not be copied
    again, _ = d(batch(), 1)
    assert equal(again, losses)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_losses_without_gradients_are_the_same_and_the_looks_of_training_wait(without):
    """As in a validation, between two iterations of training or before the first."""
    weights = {"spatial": {"balance": 0.3}, "temporal": 0.1}
    trained, d = distiller(weights=weights), distiller(weights=weights)
    given = batch(size=24)  # of smaller ones, losses with and without gradients differ in their last bits
    with without():
        d.eval()(given, 1)
        d.train()
    assert d.balance.measured == {} and d.monitor.start == {}
    for iteration in (1, 100):
        losses, scalars = trained(given, iteration)
        ours, looked = d(given, iteration)
        assert equal(ours, losses) and looked.keys() == scalars.keys() and "health/grad_recon" in looked
        with without():
            again, looked = d(given, iteration)
        assert not any(name.startswith("health/") for name in looked)
        assert equal(again, losses)


class Recurrent(torch.nn.Module):
    """A sequence, one frame after the other, each with what the one before left."""

    layout, num_frame, feature_tap = "sequence", 3, "tail"

    def __init__(self):
        super().__init__()
        self.head, self.tail = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, sequence):
        state, frames, self.states = 0.0, [], []
        for frame in sequence.unbind(1):
            state = torch.relu(self.head(frame)) + 0.5 * state
            self.states.append(state)
            frames.append(frame + self.tail(state))
        return torch.stack(frames, dim=1)


def test_recurrent_networks_are_compared_frame_by_frame():
    torch.manual_seed(0)
    ours, theirs = Recurrent(), Recurrent()
    for weight in theirs.tail.parameters():  # its frames are its input
        torch.nn.init.zeros_(weight)
    d = Distiller(ours, [Teacher(theirs, SRKD())], PyramidSSIMLoss(), weights={"maps": 1.0}, warn=pytest.fail)
    seen = []
    d.teachers[0].objective.register_forward_pre_hook(lambda _, views: seen.extend(views[:2]))
    losses, _ = d(batch(frames=4, targets=2), 1)
    losses["l_distill"].backward()
    assert ours.head.weight.grad.any()
    with torch.no_grad():
        for network, view in zip((ours, theirs), seen, strict=True):
            network(batch(frames=4)["lq"])
            torch.testing.assert_close(view.features[1][0], torch.stack(network.states[1:3], dim=1))


class Mirror(torch.nn.Module):
    """Gives the frame that it is shown, which is its feature too."""

    layout, num_frame, feature_tap = "image", 1, "last"

    def __init__(self):
        super().__init__()
        self.last = torch.nn.Conv2d(3, 3, 1, bias=False)
        torch.nn.init.dirac_(self.last.weight)

    def forward(self, frame):
        return self.last(frame)


def test_smaller_scales_are_those_of_averaged_frames():
    teacher = Teacher(Mirror(), CSD(hidden=2, scale_source="frames"))
    d, seen = Distiller(Mirror(), [teacher], PyramidSSIMLoss(), weights=WEIGHTS, warn=print), []
    teacher.objective.register_forward_pre_hook(lambda _, views: seen.extend(views[:2]))
    d(batch(), 1)
    middle = batch()["lq"][:, 2:4]
    for view in seen:
        assert list(view.features) == [1, 2, 4]
        for scale, [feature] in view.features.items():
            blocks = middle.unflatten(4, (-1, scale)).unflatten(3, (-1, scale)).mean(dim=(4, 6))
            torch.testing.assert_close(feature, blocks)
    assert len(seen) == 2


@pytest.mark.parametrize(("ours", "theirs"), [(1, 16), (16, 1), (16, 9)])
def test_what_lies_in_the_padding_of_frames_is_not_compared(ours, theirs):
    networks = [(Mirror(), Interface(1, "image", "last", size_divisor=divisor)) for divisor in (ours, theirs)]
    (student, how), (frozen, theirs_how) = networks
    teacher = Teacher(frozen, SRKD(), interface=theirs_how)
    seen = []
    teacher.objective.register_forward_pre_hook(lambda _, views: seen.extend(views[:2]))
    d = Distiller(student, [teacher], PyramidSSIMLoss(), weights={"maps": 1.0}, interface=how, examine_every=0)
    d(batch(), 1)
    assert all(torch.equal(view.features[1][0], batch()["lq"][:, 2:4]) for view in seen) and len(seen) == 2
    clips = Clips(batch=2, num_frame=6, num_target=2, size=12)
    assert all(dry_run(*one, clips, None, tapped=True).features == {"last": (2, 2, 3, 12, 12)} for one in networks)


def test_a_layer_of_which_only_the_last_run_is_compared_is_named_once():
    stages = {"num_stage": 3, "num_feat": 4}
    said = []
    d = Distiller(
        PReNet(**stages), [Teacher(PReNet(**stages), SRKD())], PyramidSSIMLoss(), weights={"maps": 1}, warn=said.append
    )
    for iteration in (1, 2):
        d(batch(), iteration)
    runs = [line for line in said if "'conv.0'" in line]
    assert len(runs) == 1 and "the layer ran 3 times in one pass of 1 frame" in runs[0]


def _itself(ours):
    return ours


def _one_layer(ours):
    theirs = student()
    theirs.conv1 = ours.conv1
    return theirs


def _one_memory(ours):
    theirs = student().requires_grad_(False)
    theirs.load_state_dict(ours.state_dict(), assign=True)
    return theirs


@pytest.mark.parametrize("share", [_itself, _one_layer, _one_memory])
def test_a_teacher_does_not_freeze_its_student(share):
    ours = student()
    with pytest.raises(CSDError, match=r"the teacher t shares \d+ weights with the student, such as conv1.weight"):
        Distiller(ours, [Teacher(share(ours), CSD(hidden=4))], PyramidSSIMLoss(), weights=WEIGHTS)
    assert all(parameter.requires_grad for parameter in ours.parameters())
    Distiller(ours, [Teacher(copy.deepcopy(ours), CSD(hidden=4))], PyramidSSIMLoss(), weights=WEIGHTS)


def test_a_layer_that_nobody_learns_may_be_shared():
    ours, theirs = student(), student()
    theirs.conv1 = ours.conv1.requires_grad_(False)
    Distiller(ours, [Teacher(theirs, CSD(hidden=4))], PyramidSSIMLoss(), weights=WEIGHTS)
    assert not ours.conv1.weight.requires_grad and ours.conv2.weight.requires_grad


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("adapters", [[], ["conv1x1", "resize"]])
@pytest.mark.parametrize("all_of_it", [True, False], ids=["the distiller", "the networks"])
def test_networks_in_float64_are_compared_in_float32(name, adapters, all_of_it):
    networks = student(), wider_window()
    objective = build_objective(method(name))
    if adapters:
        ours, theirs = (Compared(network, interface_of(network), None) for network in networks)
        objective = adapted(objective, adapters, student=ours, teacher=theirs, clips=Clips(2, 6, 2, 12))
    if not all_of_it:
        networks = [network.double() for network in networks]
    weights = {term: {"balance": 0.1} for term in objective.terms}
    d = Distiller(networks[0], [Teacher(networks[1], objective)], PyramidSSIMLoss(), weights=weights)
    losses, scalars = (d.double() if all_of_it else d)({key: value.double() for key, value in batch().items()})
    sum(losses.values()).backward()
    assert {value.dtype for value in (*losses.values(), *scalars.values())} == {torch.float32}
    assert {p.grad.dtype for p in d.student.parameters()} == {torch.float64}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_a_validation_before_and_between_steps_changes_nothing(name):
    """The first forward pass of a process, under inference mode, must leave nothing behind that steps cannot use."""

    def steps(*, validated: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        objective = build_objective(method(name))
        compared = Teacher(wider_window(), objective)
        d = Distiller(student(), [compared], PyramidSSIMLoss(), weights=dict.fromkeys(objective.terms, 0.1))
        optimizer = torch.optim.SGD(d.parameters(), lr=0.1)
        alike = {key: torch.full_like(value, 0.5) for key, value in batch().items()}  # losses of which are next to none
        for iteration in (1, 2):
            if validated:
                with torch.inference_mode():
                    d(alike, iteration)
            sum(d(batch(), iteration)[0].values()).backward()
            optimizer.step()
            d.after_step()
            optimizer.zero_grad()
        return d.state_dict()

    assert equal(steps(validated=True), steps(validated=False))


class Brighter(Mirror):
    """Gives its frames, enlarged, with the mean of a picture added that has values up to `peak`."""

    def __init__(self, peak, scale):
        super().__init__()
        self.more, self.scale = 0.4 * peak, scale

    def forward(self, frame):
        return torch.nn.functional.interpolate(super().forward(frame) + self.more, scale_factor=self.scale)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize(("peak", "said"), [(255, True), (1, True), (0.1, False)])
def test_a_teacher_whose_frames_are_worse_than_its_input_is_told_once(scale, peak, said):
    found = []
    how = Interface(1, "image", scale=scale)
    teachers = [
        Teacher(Brighter(one, scale), OutputDistillation(), label=label, share=0.5, interface=how)
        for label, one in {"t": 0, "t2": peak}.items()
    ]
    d = Distiller(
        Brighter(0, scale),
        teachers,
        PyramidSSIMLoss(),
        weights={"output": 1.0},
        interface=how,
        examine_every=1,
        warn=found.append,
    )
    gt = batch()["gt"].repeat_interleave(scale, 3).repeat_interleave(scale, 4)
    for iteration in (1, 2):
        d({"lq": batch()["lq"], "gt": gt}, iteration)
    astray = [line for line in found if "farther from the truth" in line]
    assert [line.split()[5] for line in astray] == ["t2"] * said


@pytest.mark.parametrize(("scale", "shift", "said"), [(1.0, 0.0, False), (2.0, -1.0, True), (255.0, 0.0, True)])
def test_frames_of_another_range_are_told_once(scale, shift, said):
    found = []
    frozen = Teacher(wider_window(), OutputDistillation())
    d = distiller(frozen, weights={"output": 1.0}, examine_every=1, warn=found.append)
    for iteration in (1, 2):
        d({key: value * scale + shift for key, value in batch().items()}, iteration)
    outside = [line for line in found if "outside [0, 1]" in line]
    assert [line.split()[2] for line in outside] == ["lq", "gt"] * said


@pytest.mark.parametrize(("dtype", "said"), [(torch.bfloat16, 1), (torch.float16, 0), (torch.float32, 0)])
def test_a_truth_that_was_rounded_is_told_once(dtype, said):
    """As by Lightning's Fabric with bf16-mixed, which converts what it gives to a model."""
    found = []
    d = distiller(examine_every=1, warn=found.append)
    for iteration in (1, 2):
        d({key: value.to(dtype) for key, value in batch().items()}, iteration)
    assert len([line for line in found if line.startswith("the batch's gt is in bfloat16")]) == said


class Normalising(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)

    def forward(self, frames):
        return self.norm(frames)


def test_a_teacher_that_others_put_into_training_mode_does_not_follow_the_batches():
    """Trainers put a whole model into training mode, and some models hold the teacher as a part of theirs."""
    network = Normalising()
    frozen = Teacher(network, OutputDistillation(), interface=Interface(1, "image"))
    d = distiller(frozen, weights={"output": 1.0}, warn=lambda line: None)
    expected, before = d(batch())[0]["l_distill"].item(), copy.deepcopy(network.state_dict())
    torch.nn.ModuleList([d, network]).train()
    assert d(batch())[0]["l_distill"].item() == expected
    assert equal(network.state_dict(), before) and d.student.training


def test_numbers_of_iterations_that_do_not_count_steps_are_told_once():
    found = []
    d = distiller(warn=found.append)
    for iteration in (1, 1, 2, 5):  # the first in two parts
        d(batch(), iteration)
    d.after_step()
    with torch.no_grad():
        d(batch(), 1)
    d.restore(d.progress())
    d(batch(), 4)
    assert found == []
    d.after_step()
    for _ in range(2):
        d(batch(), 4)
    assert [line.partition(":")[0] for line in found] == ["iteration 4 comes after 4 was done"]
    d(batch(), 2)
    assert found[1].startswith("iteration 2 comes after 4 was done: give distiller(batch, iteration) the number of")
    with pytest.raises(CSDError, match=r"^the iteration is 0: count from 1, as schedules and examinations do$"):
        d(batch(), 0)


def in_two() -> Objective:
    return build_objective(
        {"type": "Combined", "objectives": [{"type": "SRKD", "taps": [0]}, {"type": "STD", "taps": [0]}]}
    )


@pytest.mark.parametrize(
    ("objective", "weights", "told"),
    [
        (lambda: CSD(hidden=4), WEIGHTS, False),
        (lambda: CSD(hidden=4, cells="averaged"), WEIGHTS, True),
        (until_collapsed, WEIGHTS, True),
        (STD, {"space": 0.1, "time": 0.1}, True),
        (in_two, {"maps": 0.1, "space": 0.1, "time": 0.1}, True),
    ],
    ids=["joint", "averaged", "adapted, until collapsed", "STD", "combined"],
)
@pytest.mark.parametrize("called", [False, True])
def test_a_loop_that_forgets_what_follows_a_step_is_told_once(objective, weights, told, called):
    found = []
    d = distiller(Teacher(wider_window(), objective()), weights=weights, examine_every=2, warn=found.append)
    d.monitor.start["loss_any"] = 1.0  # as in a resumed run, which begins at an examination
    for iteration in (2, 3, 4, 5, 6):
        d(batch(), iteration)
        if called:
            d.after_step()
    said = [line for line in found if line.startswith("after_step() was never called: call it on the Distiller")]
    assert len(said) == (told and not called)


@pytest.mark.parametrize(("teaches", "learns"), [(False, True), (True, True), (True, False)])
def test_sides_that_a_network_cannot_process_are_said_before_the_run(teaches, learns):
    known = Interface(1, "image")
    others = Quarters(), torch.nn.Conv2d(3, 3, 3, padding=1)
    student, teacher = reversed(others) if teaches else others
    taught = Teacher(teacher, OutputDistillation(), interface=known)
    distiller = Distiller(student, [taught], torch.nn.L1Loss(), weights={"output": 1.0}, interface=known)
    distiller.check((2, 3, 3, 8, 12), 3, learns=learns)
    if teaches and not learns:
        return distiller.check((2, 3, 3, 8, 10), 3, learns=False)  # which the student alone gets
    who = "teacher t" if teaches else "student"
    with pytest.raises(CSDError, match=rf"the {who}: Quarters cannot process .* multiples of 4; .* size_divisor 4,"):
        distiller.check((2, 3, 3, 8, 10), 3, learns=learns)


def test_frames_that_are_too_small_are_not_said_to_need_multiples():
    """Padding would help here, too."""
    network = torch.nn.Sequential(torch.nn.ReflectionPad2d(15), torch.nn.Conv2d(3, 3, 31))
    distiller = Distiller(network, [], torch.nn.L1Loss(), weights={}, interface=Interface(1, "image"))
    with pytest.raises(
        CSDError, match=r"the student: Sequential cannot process .* too small for it: 17x17 pixels would do"
    ):
        distiller.check((2, 3, 3, 12, 10), 3)
    distiller.check((2, 3, 3, 17, 17), 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_whose_weights_are_in_16_bits_get_frames_in_16_bits(dtype):
    def losses(dtype):
        torch.manual_seed(0)
        ours, theirs = Small(), Small()
        frames = Interface(1, "image", "tail")
        teachers = [Teacher(theirs.to(dtype), CSD(hidden=4), interface=frames)]
        d = Distiller(ours, teachers, PyramidSSIMLoss(), weights=WEIGHTS, interface=frames)
        d.check((2, 6, 3, 12, 12), num_target=2)
        return d(batch())[0]

    given, wanted = losses(dtype), losses(torch.float32)
    assert {loss.dtype for loss in given.values()} == {torch.float32}
    torch.testing.assert_close(given["l_distill"], wanted["l_distill"], rtol=0.05, atol=0)
    assert given["l_distill"] != wanted["l_distill"]


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.tail = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, frames):
        return self.tail(self.head(frames).relu())


@pytest.fixture
def donated_buffers():
    """Torch's own setting, whatever was set before; torch 2.4 has none."""
    known = {"donated_buffer": True} if hasattr(functorch_config, "donated_buffer") else {}
    with functorch_config.patch(known):
        yield


@pytest.mark.parametrize(("order", "examine_every"), [("compiled last", 1), ("run first", 0)])
@pytest.mark.usefixtures("donated_buffers")
def test_compiled_networks_are_examined_and_balanced(order, examine_every):
    """Unless told not to, compiled code frees buffers in the first of several backward passes."""
    networks = Small(), Small()

    def compile_both():
        for network in networks:
            network.compile(backend="aot_eager")

    if order != "compiled last":
        compile_both()
    if order == "run first":
        networks[0](batch()["lq"][:, 3]).sum().backward()
    frames = Interface(1, "image", "tail")
    teachers = [Teacher(networks[1], SRKD(), interface=frames)]
    weights = {"maps": 0.1 if examine_every else {"balance": 0.1}}
    keywords = {"interface": frames, "examine_every": examine_every}
    d = Distiller(networks[0], teachers, PyramidSSIMLoss(), weights=weights, **keywords)
    if order == "compiled last":
        compile_both()
    sum(d(batch())[0].values()).backward()
    assert networks[0].head.weight.grad.any()


@pytest.mark.parametrize("weights", [{"maps": 0.1}, {"maps": {"balance": 0.1}}], ids=["examined", "balanced"])
@pytest.mark.usefixtures("donated_buffers")
def test_a_distiller_that_was_sent_to_another_process_trains_there(weights):
    frames = Interface(1, "image", "tail")
    torch.manual_seed(0)
    d = Distiller(
        Small(), [Teacher(Small(), SRKD(), interface=frames)], PyramidSSIMLoss(), weights=weights, interface=frames
    )
    sent = pickle.dumps(d)
    if hasattr(functorch_config, "donated_buffer"):
        functorch_config.donated_buffer = True  # as a new process has it
    there = pickle.loads(sent)
    for network in (there.student, there.teachers[0].network):
        network.compile(backend="aot_eager")
    losses, _ = there(batch())
    sum(losses.values()).backward()
    assert losses["l_distill"] > 0 and there.student.head.weight.grad.any()


class Rerun(torch.nn.Module):
    """A network of images whose body is run again in the backward pass."""

    layout, feature_tap = "image", "body.1"

    def __init__(self, *, reentrant: bool):
        super().__init__()
        self.head, self.tail = (torch.nn.Conv2d(*channels, 3, padding=1) for channels in ((3, 4), (4, 3)))
        self.body = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 3, padding=1))
        self.reentrant = reentrant

    def forward(self, frames):
        return self.tail(checkpoint(self.body, self.head(frames), use_reentrant=self.reentrant))


@pytest.mark.parametrize("examine_every", [0, 1])
def test_a_tapped_layer_in_a_reentrant_checkpoint_is_said_to_be_one(examine_every):
    def distils(*, reentrant, layers=None):
        torch.manual_seed(0)
        taught = Teacher(Rerun(reentrant=False), SRKD())
        return Distiller(
            *(Rerun(reentrant=reentrant), [taught], torch.nn.L1Loss()),
            **{"weights": {"maps": 1.0}, "examine_every": examine_every, "layers": layers},
        )

    inside = distils(reentrant=True)
    with pytest.raises(CSDError, match=r"'body.1': the student runs .* without gradients.*; give use_reentrant=False"):
        inside(batch())
    with torch.no_grad():
        inside(batch())
    distils(reentrant=False)(batch())
    outside = distils(reentrant=True, layers=["tail"])
    if not examine_every:  # whose gradients a reentrant checkpoint refuses in its own words
        outside(batch())

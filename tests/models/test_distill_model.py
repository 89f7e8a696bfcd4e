"""Stage 2 from the command line's point of view: the student learns, the teacher and its checkpoint never change."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toolbox import SHALLOW_STUDENT, SHALLOW_TEACHER, changed, equal, scored_set, shallow_options

from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.distill.csd import CSD
from csd_plugin.distill.dry_run import dry_run
from csd_plugin.models.distill_model import DistillModel
from csd_plugin.models.video_derain_model import VideoDerainModel
from csd_plugin.types import ClipView

NO_WEIGHTS = {"train.distill_opt": {"type": "CSD", "weights": {"spatial": 0.0, "temporal": 0}}}


def teacher_weights(path: Path, key: str = "params_ema") -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)[key]


def test_a_run_trains_student_and_cells_and_leaves_the_teacher_alone(launcher, tiny_rain, shallow_teacher):
    assert launcher.train(shallow_options(tiny_rain, shallow_teacher, **{"train.grad_clip": 1.0})) == 0

    model = launcher.models[-1]
    assert equal(model.teachers[0].network.state_dict(), teacher_weights(shallow_teacher))
    assert not model.teachers[0].network.training
    assert all(p.grad is None and not p.requires_grad for p in model.teachers[0].network.parameters())

    optimized = {id(p) for p in model.optimized_parameters()}
    assert optimized == {id(p) for net in (model.net_g, model.teachers[0].objective) for p in net.parameters()}
    files = {path.name for path in (launcher.folder / "experiments/run/models").iterdir()}
    assert files == {"net_g_2.pth", "net_g_latest.pth", "objective_2.pth", "objective_latest.pth"}
    for key in ("params", "params_ema"):
        SLDNet(**SHALLOW_STUDENT).load_state_dict(launcher.weights("net_g_latest", key=key))
    assert equal(launcher.weights("objective_latest"), model.teachers[0].objective.state_dict())
    assert not equal(launcher.weights("objective_2"), _fresh_cells(model))
    logged = set(model.log_dict)
    assert {"l_recon", "l_distill", "l_spatial", "l_temporal", "status/correlation", "grad_norm"} <= logged
    assert "status/spread_temporal" in logged
    expected = 0.1 * model.log_dict["l_spatial"] + 0.1 * model.log_dict["l_temporal"]
    assert float(model.log_dict["l_distill"]) == pytest.approx(float(expected), rel=1e-5)


def _fresh_cells(model) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(value) for name, value in model.teachers[0].objective.state_dict().items()}


def test_one_backward_and_one_step_per_batch(launcher, tiny_rain, shallow_teacher, monkeypatch):
    counts = {"backward": 0, "step": 0}
    for cls, name in ((torch.Tensor, "backward"), (torch.optim.Adam, "step")):
        monkeypatch.setattr(cls, name, _counted(counts, name, getattr(cls, name)))
    assert launcher.train(shallow_options(tiny_rain, shallow_teacher, **{"train.total_iter": 3})) == 0
    assert counts == {"backward": 3, "step": 3}


def _counted(counts, name, function):
    def wrapper(*args, **kwargs):
        counts[name] += 1
        return function(*args, **kwargs)

    return wrapper


def test_without_weights_it_is_stage_1_bit_for_bit_and_the_teacher_is_never_called(
    launcher, tiny_rain, shallow_teacher, monkeypatch
):
    steps = {"train.total_iter": 4}
    assert launcher.train(shallow_options(tiny_rain, name="stage1", **steps)) == 0
    assert launcher.train(shallow_options(tiny_rain, shallow_teacher, name="csd", **steps)) == 0

    forward = SLDNet.forward

    def students_only(self, window):
        assert self.num_frame != 5, "the teacher was called"
        return forward(self, window)

    monkeypatch.setattr(SLDNet, "forward", students_only)
    gone = launcher.folder / "gone.pth"  # nor is its checkpoint asked for
    assert launcher.train(shallow_options(tiny_rain, gone, name="zero", **steps, **NO_WEIGHTS)) == 0
    for key in ("params", "params_ema"):
        stage1, zero, csd = (launcher.weights("net_g_latest", run, key) for run in ("stage1", "zero", "csd"))
        assert equal(stage1, zero)
        assert not equal(stage1, csd)
    state1, state0 = (
        torch.load(launcher.folder / f"experiments/{run}/training_states/4.state", weights_only=True)
        for run in ("stage1", "zero")
    )
    adam1, adam0 = (state["optimizers"][0]["state"] for state in (state1, state0))
    assert adam1.keys() == adam0.keys() and adam1
    assert all(equal(adam1[i], adam0[i]) for i in adam1)


def test_distillation_sees_the_batches_of_stage_1(launcher, tiny_rain, shallow_teacher):
    launcher.train(shallow_options(tiny_rain, name="stage1", **{"train.total_iter": 1}))
    launcher.train(shallow_options(tiny_rain, shallow_teacher, name="csd", **{"train.total_iter": 1}))
    stage1, csd = launcher.models
    assert torch.equal(stage1.lq, csd.lq)
    assert float(stage1.log_dict["l_recon"]) == float(csd.log_dict["l_recon"])


@pytest.mark.parametrize("cells", ["joint", "joint_until_collapsed", "frozen", "averaged"])
def test_resume_restores_the_cells_and_the_frozen_teacher(launcher, tiny_rain, shallow_teacher, monkeypatch, cells):
    options = changed(shallow_options(tiny_rain, shallow_teacher), {"train.distill_opt.cells": cells})
    assert launcher.train(options) == 0
    first = launcher.models[-1]
    before = [copy.deepcopy(net.state_dict()) for net in _networks(first)]

    from csd_plugin.models.distill_model import DistillModel

    after = []
    resume_training = DistillModel.resume_training

    def record(self, state):
        resume_training(self, state)
        after.extend(copy.deepcopy(net.state_dict()) for net in _networks(self))
        after.append(copy.deepcopy(self.optimizer_g.state_dict()))

    monkeypatch.setattr(DistillModel, "resume_training", record)
    assert launcher.train(changed(options, {"train.total_iter": 3}), "--auto_resume") == 0
    *networks, optimizer = after
    assert all(equal(a, b) for a, b in zip(before, networks, strict=True))
    adam = first.optimizer_g.state_dict()["state"]
    assert optimizer["state"].keys() == adam.keys() and adam
    assert all(equal(adam[i], optimizer["state"][i]) for i in adam)


@pytest.mark.parametrize("adapters", [None, ["conv1x1"]])
def test_a_state_from_when_weights_without_use_learned_is_resumed(
    launcher, tiny_rain, shallow_teacher, monkeypatch, adapters
):
    taps = {"student": ["conv22"], "teacher": ["conv22"], "adapters": adapters}
    more = {"cross_scale": False, "adaptor": False} | ({"taps": taps} if adapters else {})
    changes = {f"train.distill_opt.{key}": value for key, value in more.items()} | {"train.total_iter": 4}
    options = changed(shallow_options(tiny_rain, shallow_teacher), changes)
    assert launcher.train(changed(options, {"name": "whole"})) == 0
    with monkeypatch.context() as earlier:
        earlier.setattr(CSD, "weights_without_use", lambda self: [])
        assert launcher.train(changed(options, {"train.total_iter": 2})) == 0
    assert launcher.train(options, "--auto_resume") == 0
    whole, first, last = launcher.models
    ours, theirs, old = (
        len(model.optimizer_g.state_dict()["param_groups"][0]["params"]) for model in (last, whole, first)
    )
    assert ours == theirs == old - 2
    for one, other in zip(_networks(last), _networks(whole), strict=True):
        assert equal(one.state_dict(), other.state_dict())


def _networks(model) -> list[torch.nn.Module]:
    taught_by = [net for teacher in model.teachers for net in (teacher.objective, teacher.network)]
    return [model.net_g, model.net_g_ema, *taught_by]


@pytest.mark.parametrize(
    "path, entry",
    [
        ({}, "params_ema"),
        ({"param_key_t": "params"}, "params"),
        ({"param_key_t": "params_ema"}, "params_ema"),
        ({"param_key_t": "params_ema", "ignore_resume_networks": ["network_t"]}, "params_ema"),
    ],
)
def test_the_teacher_survives_resume_whatever_the_options_say(launcher, tiny_rain, shallow_teacher, path, entry):
    options = shallow_options(tiny_rain, shallow_teacher)
    options["path"] |= path
    assert launcher.train(options) == 0
    state = str(launcher.folder / "experiments/run/training_states/2.state")
    again = changed(options, {"path.resume_state": state, "train.total_iter": 3})
    assert launcher.train(again) == 0
    assert [model.teachers[0].network.training for model in launcher.models] == [False, False]
    for model in launcher.models:
        assert equal(model.teachers[0].network.state_dict(), teacher_weights(shallow_teacher, entry))


def test_resume_does_not_fall_back_to_the_start_where_the_checkpoint_is_gone(
    launcher, tiny_rain, shallow_teacher, capsys
):
    start = launcher.folder / "start.pth"
    torch.save(SLDNet(**SHALLOW_STUDENT).state_dict(), start)
    options = shallow_options(tiny_rain, shallow_teacher, **{"path.pretrain_network_g": str(start)})
    assert launcher.train(options) == 0
    (launcher.folder / "experiments/run/models/net_g_2.pth").unlink()
    assert launcher.train(options, "--auto_resume") == 2
    assert "net_g_2.pth does not exist" in capsys.readouterr().err


def test_resume_does_not_go_on_with_fresh_cells_where_theirs_are_gone(launcher, tiny_rain, shallow_teacher, capsys):
    options = shallow_options(tiny_rain, shallow_teacher)
    assert launcher.train(options) == 0
    (launcher.folder / "experiments/run/models/objective_2.pth").unlink()
    assert launcher.train(changed(options, {"train.total_iter": 3}), "--auto_resume") == 2
    assert "objective_2.pth, which the run has saved" in capsys.readouterr().err


def test_cells_that_are_averaged_follow_each_step(launcher, tiny_rain, shallow_teacher):
    options = shallow_options(tiny_rain, shallow_teacher, **{"train.total_iter": 1})
    options["train"]["distill_opt"] |= {"cells": "averaged", "ema_decay": 0.5}
    assert launcher.train(options) == 0
    objective = launcher.models[-1].teachers[0].objective
    pairs = zip(objective.averaged_cells.parameters(), objective.cells.parameters(), strict=True)
    # one step of half the way, from the common start: neither the start nor the learned weights
    assert all(not torch.equal(average, learned) for average, learned in pairs)
    assert not any(p.requires_grad for p in objective.averaged_cells.parameters())


def test_frames_as_the_source_of_scales(launcher, tiny_rain, shallow_teacher):
    options = shallow_options(tiny_rain, shallow_teacher, **{"train.total_iter": 1, "datasets.train.gt_size": 24})
    options["train"]["distill_opt"] |= {"scale_source": "frames"}
    assert launcher.train(options) == 0
    assert launcher.models[-1].teachers[0].objective.input_scales == (1, 2, 4)


@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_a_fidelity_sets_what_the_file_leaves_out_and_says_so(launcher, tiny_rain, shallow_teacher, fidelity):
    options = shallow_options(tiny_rain, shallow_teacher, **{"train.total_iter": 1})
    options["train"]["distill_opt"]["fidelity"] = fidelity
    assert launcher.train(options) == 0
    model = launcher.models[-1]
    objective = model.teachers[0].objective
    released = fidelity == "released"
    assert objective.input_scales == ((1, 2, 4) if released else (1,))
    assert (objective.cells.temporal_first, objective.detach_teacher_state) == (released, not released)
    assert model.cri_pix.scale_weights == ((1.0, 0.5, 0.5) if released else (0.6, 0.2, 0.2))
    [text] = [path.read_text() for path in (launcher.folder / "experiments/run").glob("train_*.log")]
    assert f"INFO: fidelity: {fidelity}" in text
    assert ("six optimizer steps per frame" in text) == released
    wanted = 4 if released else 5
    assert f"WARNING: datasets.train.num_target is 2, but fidelity: {fidelity} has {wanted}" in text


def test_any_pair_of_widths_and_frames(launcher, tiny_rain, shallow_teacher):
    wide_student = {"type": "SLDNet", "preset": "student3", "num_feat": 5}
    options = shallow_options(tiny_rain, shallow_teacher, **{"train.total_iter": 1, "network_g": wide_student})
    assert launcher.train(options) == 0
    assert SHALLOW_TEACHER["num_feat"] != wide_student["num_feat"] != SHALLOW_STUDENT["num_feat"]
    assert launcher.models[-1].log_dict["l_distill"] > 0


def test_a_teacher_that_takes_few_clips_at_once_says_the_same(launcher, tiny_rain, shallow_teacher, monkeypatch):
    options = shallow_options(tiny_rain, shallow_teacher, **{"train.total_iter": 1, "datasets.train.gt_size": 24})
    options["train"]["distill_opt"] |= {"scale_source": "frames"}
    batches, losses = [], []
    monkeypatch.setattr(SLDNet, "forward", _noting_teachers_batches(batches, SLDNet.forward))
    for targets in (1, 100):
        monkeypatch.setattr("csd_plugin.distill.distiller.TEACHER_TARGETS", targets)
        assert launcher.train(options) == 0
        losses.append(launcher.models[-1].log_dict)
    assert batches == [2, 2, 2] * 2 + [4, 4, 4]  # two clips of two targets, at three scales
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def _noting_teachers_batches(batches, forward):
    def wrapper(self, window):
        if self.num_frame == 5 and type(window) is torch.Tensor:  # not the dry run before
            batches.append(len(window))
        return forward(self, window)

    return wrapper


@pytest.mark.parametrize("adapters", [None, ["conv1x1"], ["conv1x1", "resize"]])
def test_compiled_networks_train_to_the_same_weights(launcher, tiny_rain, shallow_teacher, monkeypatch, adapters):
    compiled = []

    def compile_quickly(function, *args, **kwargs):
        compiled.append(function)
        return real(function, backend="aot_eager")  # the machine that tests need not have a compiler

    def run_dry(network, *args, **kwargs):
        assert network._compiled_call_impl is None  # a compiler's own code crashes on tensors without memory
        return dry_run(network, *args, **kwargs)

    real = torch.compile
    monkeypatch.setattr(torch, "compile", compile_quickly)
    monkeypatch.setattr("csd_plugin.distill.distiller.dry_run", run_dry)
    taps = {"student": ["conv22"], "teacher": ["conv22"], "adapters": adapters}
    for name, how in (("plain", False), ("compiled", True)):
        options = shallow_options(
            tiny_rain, shallow_teacher, name=name, **{"train.compile": how, "train.total_iter": 1}
        )
        options["train"]["distill_opt"] |= {"taps": taps} if adapters else {}
        assert launcher.train(options) == 0
    assert len(compiled) == 2  # student and teacher, of the second run
    for key in ("params", "params_ema"):
        plain, ours = (launcher.weights("net_g_latest", name, key) for name in ("plain", "compiled"))
        assert list(plain) == list(ours)
        for name in plain:
            torch.testing.assert_close(ours[name], plain[name], rtol=1e-3, atol=1e-5)


def test_runs_without_an_average_validate_the_student_that_is_tapped(launcher, tiny_rain, shallow_teacher):
    """On a CPU its 3-D convolutions are folded for that, which tries the network in inference mode."""
    options = shallow_options(tiny_rain, shallow_teacher, **{"train.ema_decay": 0, "train.total_iter": 3})
    options["datasets"]["val"] = scored_set(tiny_rain)
    weights = []
    for name, every in (("often", 1), ("once", 3)):
        validation = {"val_freq": every, "save_img": False}
        assert launcher.train(changed(options, {"name": name, "val": validation})) == 0
        weights.append(launcher.weights("net_g_latest", name))
        assert launcher.models[-1].net_g.training
    assert equal(*weights)


@pytest.mark.parametrize(
    ("switches", "frames"),
    [
        ({}, 1),
        ({"order": "temporal_first"}, 1),
        ({"cross_scale": False, "independent": False, "collaborative": False, "adaptor": False}, 2),
        ({"multi_scale": False, "cross_scale": False, "adaptor": False}, 2),
    ],
    ids=["one target", "one target, temporal first", "no states", "no hints"],
)
def test_data_parallel_cells_may_have_weights_that_a_pass_leaves_out(tmp_path, switches, frames):
    """Torch's exchange waits for the gradients of all weights, and fails in the next step if some do not come."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        train = {"batch_size_per_gpu": 1, "num_frame": frames, "num_target": frames, "gt_size": 8}
        opt = {"dist": True, "datasets": {"train": train}}
        model = SimpleNamespace(device=torch.device("cpu"), opt=opt, lay_out=lambda network: None)
        model.model_to_device = partial(VideoDerainModel.model_to_device, model)
        objective = DistillModel._place_objective(model, CSD(hidden=2, **switches))
        for _ in range(2):
            feature, truth = torch.rand(1, frames, 3, 8, 8, requires_grad=True), torch.rand(1, frames, 3, 8, 8)
            losses = objective(ClipView(truth, {1: (feature,)}), ClipView(truth, {1: (truth,)}), truth).losses
            sum(losses.values()).backward()
            assert feature.grad.abs().sum() > 0
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("weight", ["conv1.bias", "conv22.bias"])
def test_a_teacher_that_is_not_finite_is_named(launcher, tiny_rain, shallow_teacher, capfd, monkeypatch, weight):
    content = torch.load(shallow_teacher, weights_only=True)
    content["params_ema"][weight][0] = float("nan")
    torch.save(content, launcher.folder / "nan.pth")
    monkeypatch.setattr("csd_plugin.archs.checkpoint._check_values", lambda *_: None)  # as if it broke later
    distill = {"type": "OutputDistillation", "weights": {"output": 1.0}}
    changes = {"train.skip_limit": 0, "train.distill_opt": distill}
    assert launcher.train(shallow_options(tiny_rain, launcher.folder / "nan.pth", **changes)) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert "l_output not finite" in error
    assert f"the frames of the teacher t are not finite, as its weight {weight} is not: take another" in error


@pytest.mark.parametrize("role", ["t", "g"])
def test_a_checkpoint_that_is_not_finite_is_refused_before_anything_is_written(
    launcher, tiny_rain, shallow_teacher, capfd, role
):
    content = torch.load(shallow_teacher, weights_only=True)
    content["params_ema"]["conv1.bias"][0] = float("nan")
    torch.save(content, launcher.folder / "nan.pth")
    broken = {f"path.pretrain_network_{role}": str(launcher.folder / "nan.pth"), f"path.param_key_{role}": "params_ema"}
    options = shallow_options(tiny_rain, shallow_teacher, network_g={"type": "SLDNet", **SHALLOW_TEACHER}, **broken)
    assert launcher.train(options) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert f"path.pretrain_network_{role}: checkpoint" in error
    assert "nan.pth: its weight conv1.bias holds NaN or infinity; use another checkpoint" in error
    assert launcher.written() == ["nan.pth"]


def test_another_objective_does_not_resume_the_run(launcher, tiny_rain, shallow_teacher, capfd):
    options = shallow_options(tiny_rain, shallow_teacher)
    assert launcher.train(options) == 0
    for number, other in enumerate(
        [
            {"type": "SRKD", "weights": {"maps": 1.0}},  # which has no weights
            {"type": "STD", "weights": {"space": 1.0, "time": 1.0}},
        ]
    ):
        later = changed(options, {"train.total_iter": 3 + number, "train.distill_opt": other})
        assert launcher.train(later, "--auto_resume") == 2
        error = capfd.readouterr().err.splitlines()[-1]
        assert f"options have changed since: train.distill_opt.type CSD -> {other['type']}, " in error
        assert error.endswith("; give the options with which it was made, or another name")

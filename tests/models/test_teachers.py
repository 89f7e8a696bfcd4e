"""Several teachers, and weights that change while a student learns from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toolbox import TEACHER, changed, distill_options, equal, train_options

from csd_plugin.archs.sldnet import SLDNet


@pytest.fixture(scope="module")
def second_teacher(tmp_path_factory) -> Path:
    """A wider one, with plain and averaged weights."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        plain, averaged = (SLDNet(preset="teacher", num_feat=6).state_dict() for _ in range(2))
    path = tmp_path_factory.mktemp("second") / "teacher2.pth"
    torch.save({"params": plain, "params_ema": averaged}, path)
    return path


def two_teachers(data: Path, first: Path, second: Path, **changes):
    teacher = {"network_t2": TEACHER | {"num_feat": 6}, "path.pretrain_network_t2": str(second)}
    return distill_options(data, first, **teacher | changes)


def test_each_has_cells_of_its_own_and_its_share_of_the_loss(launcher, tiny_rain, tiny_teacher, second_teacher):
    options = two_teachers(tiny_rain, tiny_teacher, second_teacher)
    options["train"]["distill_opt"]["teachers"] = {"t": 1.0, "t2": 3.0}
    assert launcher.train(options) == 0
    model = launcher.models[-1]
    for teacher, path in zip(model.teachers, (tiny_teacher, second_teacher), strict=True):
        assert equal(teacher.network.state_dict(), torch.load(path, weights_only=True)["params_ema"])
        assert not teacher.network.training and not any(p.requires_grad for p in teacher.network.parameters())
    nets = [model.net_g, *(teacher.objective for teacher in model.teachers)]
    assert {id(p) for p in model.optimized_parameters()} == {id(p) for net in nets for p in net.parameters()}

    log = model.log_dict
    terms = {label: 0.1 * log[f"l_{label}/spatial"] + 0.1 * log[f"l_{label}/temporal"] for label in ("t", "t2")}
    assert log["l_distill"] == pytest.approx(0.25 * terms["t"] + 0.75 * terms["t2"], rel=1e-5)
    assert {"status/t2/correlation", "health/grad_t2/spatial", "health/scale_t2/conv22"} <= set(log)
    for entry, teacher in zip(("params", "params_t2"), model.teachers, strict=True):
        assert equal(launcher.weights("objective_latest", key=entry), teacher.objective.state_dict())
    assert not equal(*(launcher.weights("objective_latest", key=entry) for entry in ("params", "params_t2")))


def test_a_teacher_of_no_share_is_as_if_it_were_not_there(launcher, tiny_rain, tiny_teacher, second_teacher):
    assert launcher.train(distill_options(tiny_rain, tiny_teacher, name="one")) == 0
    options = two_teachers(tiny_rain, tiny_teacher, second_teacher, name="two")
    options["train"]["distill_opt"]["teachers"] = {"t": 0.2, "t2": 0.0}
    assert launcher.train(options) == 0
    assert len(launcher.models[-1].teachers) == 1
    for label in ("net_g_latest", "objective_latest"):
        assert equal(launcher.weights(label, "one"), launcher.weights(label, "two"))


@pytest.mark.parametrize("resting", ["t", "t2"])
def test_of_a_teacher_of_no_share_nothing_is_asked(launcher, tiny_rain, tiny_teacher, resting):
    """Neither a checkpoint nor windows as long as it sees."""
    student = {"type": "SLDNet", "preset": "student1", "num_feat": 4}
    torch.save(SLDNet(preset="student1", num_feat=4).state_dict(), launcher.folder / "short.pth")
    options = two_teachers(tiny_rain, tiny_teacher, "none.pth", **{"datasets.train.num_frame": 4})
    taught = {"t": "t2", "t2": "t"}[resting]
    options[f"network_{taught}"] = student
    options["path"] |= {f"pretrain_network_{taught}": "short.pth"}
    del options["path"][f"pretrain_network_{resting}"]
    options["train"]["distill_opt"]["teachers"] = {resting: 0.0, taught: 2.0}
    assert launcher.train(options) == 0
    [teacher] = launcher.models[-1].teachers
    assert teacher.share == 1 and teacher.interface.num_frame == 3


@pytest.mark.parametrize("never", [0.0, {"schedule": "linear", "start": 0.0, "end": 0.0, "iters": 5}])
@pytest.mark.parametrize("given", [{}, {"pretrain_network_t2": "gone.pth"}, {"pretrain_network_t": None}])
def test_without_weights_no_teacher_needs_a_checkpoint(launcher, tiny_rain, never, given):
    options = two_teachers(tiny_rain, "gone.pth", "gone.pth", **{"datasets.train.num_frame": 4})
    for label in ("t", "t2"):
        del options["path"][f"pretrain_network_{label}"]
    options["path"] |= given
    options["train"]["distill_opt"]["weights"] = dict.fromkeys(("spatial", "temporal"), never)
    assert launcher.train(options) == 0
    assert launcher.models[-1].teachers == []


def test_a_teacher_with_a_share_needs_its_checkpoint(launcher, tiny_rain, tiny_teacher, capfd):
    options = two_teachers(tiny_rain, tiny_teacher, "none.pth")
    for label in ("t", "t2"):
        assert launcher.train(changed(options, {f"path.pretrain_network_{label}": ...})) == 2
        assert f"path.pretrain_network_{label} is missing" in capfd.readouterr().err


@pytest.mark.parametrize("path", [{}, {"param_key_t2": "params"}, {"ignore_resume_networks": ["network_t2"]}])
def test_all_survive_a_resume_whatever_the_options_say(launcher, tiny_rain, tiny_teacher, second_teacher, path):
    options = two_teachers(tiny_rain, tiny_teacher, second_teacher)
    options["path"] |= path
    assert launcher.train(options) == 0
    first = launcher.models[-1]
    cells = [dict(launcher.weights("objective_2", key=entry)) for entry in ("params", "params_t2")]
    again = changed(options, {"train.total_iter": 3, "train.optim_g.lr": 1e-30})
    from csd_plugin.models.distill_model import DistillModel

    restored = []
    resume_training = DistillModel.resume_training
    with pytest.MonkeyPatch.context() as patch:

        def record(self, state):
            resume_training(self, state)
            restored.extend(
                {name: value.clone() for name, value in teacher.objective.state_dict().items()}
                for teacher in self.teachers
            )

        patch.setattr(DistillModel, "resume_training", record)
        assert launcher.train(again, "--auto_resume") == 0
    assert all(equal(a, b) for a, b in zip(cells, restored, strict=True))
    for before, after in zip(first.teachers, launcher.models[-1].teachers, strict=True):
        assert equal(before.network.state_dict(), after.network.state_dict())


def test_a_teacher_called_in_its_own_way_at_its_own_layers(launcher, tiny_rain, tiny_teacher):
    """A network of single images, compared by another layer."""
    from csd_plugin.archs.prenet import PReNet

    torch.save(PReNet(num_feat=4, num_stage=1).state_dict(), launcher.folder / "prenet.pth")
    options = distill_options(
        tiny_rain,
        tiny_teacher,
        network_t2={"type": "PReNet", "num_feat": 4, "num_stage": 1},
        interface_t2={"feature": "res_conv1.0"},
        **{"path.pretrain_network_t2": "prenet.pth", "train.total_iter": 1},
    )
    options["train"]["distill_opt"]["taps"] = {"teacher": {"t": ["conv7"]}}
    assert launcher.train(options) == 0
    assert [teacher.taps[0].path for teacher in launcher.models[-1].teachers] == ["conv7", "res_conv1.0"]
    assert [teacher.interface.num_frame for teacher in launcher.models[-1].teachers] == [7, 1]


def test_adapters_bridge_to_each_teachers_width(launcher, tiny_rain, tiny_teacher, second_teacher):
    options = two_teachers(tiny_rain, tiny_teacher, second_teacher, **{"train.total_iter": 1})
    taps = {"student": ["conv22"], "teacher": ["conv22"], "adapters": ["conv1x1"]}
    options["train"]["distill_opt"] = {"type": "FAKD", "weights": dict.fromkeys(("affinity", "truth", "teacher"), 0.1)}
    options["train"]["distill_opt"]["taps"] = taps
    assert launcher.train(options) == 0
    widths = [teacher.objective.convs[0].weight.shape[:2] for teacher in launcher.models[-1].teachers]
    assert widths == [(4, 4), (6, 4)]


def test_weights_follow_their_schedule_and_teachers_rest_while_all_are_off(
    launcher, tiny_rain, tiny_teacher, monkeypatch
):
    options = distill_options(tiny_rain, tiny_teacher, **{"train.total_iter": 4, "logger.save_checkpoint_freq": 2})
    options["train"]["distill_opt"]["weights"] = {
        "spatial": {"schedule": "stop_at", "start": 0.1, "iters": 2},
        "temporal": {"schedule": "linear", "start": 0.2, "iters": 2},
    }
    calls, logged = [], []
    forward = SLDNet.forward

    def counting(self, window):
        if self.num_frame == 7 and not self.training:  # the check before the run leaves it in training mode
            calls.append(1)
        return forward(self, window)

    from csd_plugin.models.distill_model import DistillModel

    optimize = DistillModel.optimize_parameters

    def record(self, current_iter):
        optimize(self, current_iter)
        logged.append(self.log_dict)

    monkeypatch.setattr(SLDNet, "forward", counting)
    monkeypatch.setattr(DistillModel, "optimize_parameters", record)
    assert launcher.train(options) == 0
    assert [(log["weight/spatial"], log["weight/temporal"]) for log in logged] == [
        (pytest.approx(0.1), pytest.approx(0.2)),
        (pytest.approx(0.1), pytest.approx(0.1)),
        (0, 0),
        (0, 0),
    ]
    for log, weights in zip(logged[:2], ((0.1, 0.2), (0.1, 0.1)), strict=True):
        expected = weights[0] * log["l_spatial"] + weights[1] * log["l_temporal"]
        assert log["l_distill"] == pytest.approx(expected, rel=1e-5)
    assert len(calls) == 4  # two iterations of two clips, one at a time
    assert "l_distill" not in logged[3]
    assert equal(launcher.weights("objective_2"), launcher.weights("objective_4"))  # the cells rest too

    # a resumed run goes on with the schedule where it was
    assert launcher.train(changed(options, {"train.total_iter": 5}), "--auto_resume") == 0
    assert (logged[4]["weight/temporal"], len(calls)) == (0, 4)


def test_schedules_that_are_never_on_are_stage_1(launcher, tiny_rain, tiny_teacher):
    assert launcher.train(train_options(tiny_rain, name="stage1")) == 0
    options = distill_options(tiny_rain, tiny_teacher, name="never")
    never = {"schedule": "linear", "start": 0.0, "end": 0.0, "iters": 5}
    options["train"]["distill_opt"]["weights"] = {"spatial": 0.0, "temporal": never}
    assert launcher.train(options) == 0
    assert launcher.models[-1].teachers == []
    assert equal(launcher.weights("net_g_latest", "stage1"), launcher.weights("net_g_latest", "never"))

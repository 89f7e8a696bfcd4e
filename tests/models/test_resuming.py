"""Runs that are resumed with other options of optimizer and schedule: the learning rate follows those of now."""

from __future__ import annotations

import copy
import io
import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from toolbox import Launcher, changed, equal, shallow_options

from csd_plugin.errors import CSDError
from csd_plugin.models.resuming import changes_of_learning, learns_by, weights_digest
from csd_plugin.models.video_derain_model import VideoDerainModel
from csd_plugin.resume_states import load_resume_state, saved_states

TOTAL = 12
MULTI = {"type": "MultiStepLR", "milestones": [3, 6], "gamma": 0.5}
COSINE = {"type": "CosineAnnealingRestartLR", "periods": [6], "restart_weights": [1], "eta_min": 1e-7}
LONGER = COSINE | {"periods": [12]}
RESTARTS = {"type": "MultiStepRestartLR", "milestones": [2, 7], "gamma": 0.5}
RAMP = [0.025, 0.05, 0.075]
"""The rates of a warm-up over 4 steps to 0.1, which ends with the third."""


def options(scheduler, lr=0.1, warmup=-1, total=TOTAL, **optimizer):
    optim_g = {"type": "Adam", "lr": lr, **optimizer}
    train = {"scheduler": dict(scheduler), "optim_g": optim_g, "warmup_iter": warmup, "total_iter": total}
    return {"train": train, "path": {"resume_state": "6.state"}, "num_gpu": 0, "is_train": True}


class Model(VideoDerainModel):
    """What a run does to learning rates, without anything that learns."""

    def __init__(self, opt):
        self.opt = copy.deepcopy(opt)
        self.net_g = torch.nn.Linear(2, 1)
        self.optimizers, self.schedulers = [], []
        self.scaler, self.clock = torch.amp.GradScaler("cpu", enabled=False), None
        self.setup_optimizers()
        self.setup_schedulers()

    def rates(self, first, last):
        """The learning rates of these iterations."""
        rates = []
        for iteration in range(first, last + 1):
            self.update_learning_rate(iteration, warmup_iter=self.opt["train"]["warmup_iter"])
            self.net_g.weight.grad = torch.ones(1, 2)
            self.optimizer_g.step()
            rates.append(self.get_current_learning_rate()[0])
        return rates

    def saved(self, iteration):
        """Its training state, through a file."""
        file = io.BytesIO()
        torch.save(self.training_state(0, iteration), file)
        file.seek(0)
        return torch.load(file, weights_only=True)


@pytest.fixture
def said(monkeypatch):
    """What the model has logged."""
    lines = []
    monkeypatch.setattr("csd_plugin.models.checkpoints.get_root_logger", lambda: SimpleNamespace(warning=lines.append))
    return lines


@pytest.mark.parametrize(
    ("before", "now", "change"),
    [
        (options(COSINE, total=6), options(LONGER), "periods [6] -> [12]"),
        (
            options(COSINE, total=6),
            options(COSINE | {"periods": [6, 6], "restart_weights": [1, 0.5]}),
            "periods [6] -> [6, 6]",
        ),
        (options(COSINE, total=6), options(LONGER | {"eta_min": 0.01}), "eta_min 1e-07 -> 0.01"),
        (options(LONGER), options(LONGER, lr=0.2), "lr 0.1 -> 0.2"),
        (options(MULTI), options(MULTI | {"milestones": [5, 8, 8]}), "milestones [3, 6] -> [5, 8, 8]"),
        (options(MULTI), options(MULTI | {"gamma": 0.1}), "gamma 0.5 -> 0.1"),
        (options(MULTI), options(MULTI, lr=0.01), "lr 0.1 -> 0.01"),
        (options(MULTI), options(MULTI | {"restarts": [0, 4], "restart_weights": [1, 2]}), "restarts [0] -> [0, 4]"),
        (options(MULTI), options(MULTI, warmup=9), "warmup_iter -1 -> 9"),
        (options(MULTI, warmup=9), options(MULTI, warmup=4), "warmup_iter 9 -> 4"),
        (options(MULTI, warmup=9), options(MULTI), "warmup_iter 9 -> -1"),
        (options(MULTI), options(LONGER), "scheduler -> CosineAnnealingRestartLR"),
        (options(LONGER), options(MULTI), "scheduler -> MultiStepRestartLR"),
        (options(MULTI), options(MULTI, weight_decay=0.5), "weight_decay 0 -> 0.5"),
        (options(MULTI), options(MULTI, betas=[0.5, 0.9]), "betas [0.9, 0.999] -> [0.5, 0.9]"),
        (options(MULTI), options(MULTI, type="AdamW"), "weight_decay 0 -> 0.01"),
    ],
)
def test_learning_rates_are_those_of_a_run_that_was_so_from_the_start(before, now, change, said):
    model = Model(before)
    model.rates(1, 6)
    resumed = Model(now)
    resumed.resume_training(model.saved(6))
    [line] = said
    assert line.startswith("6.state: options have changed since: ") and change in line
    expected = Model(now).rates(1, TOTAL)
    assert resumed.get_current_learning_rate() == [expected[5]]
    assert f"learning rate of iteration 6 is {expected[5]:.4g}" in line
    assert resumed.rates(7, TOTAL) == expected[6:]
    assert resumed.optimizer_g.param_groups[0] | {"params": []} == {
        **Model(now).optimizer_g.param_groups[0],
        **{"lr": expected[-1], "params": []},
    }


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (MULTI, [0.05] * 3 + [0.025] * 6),  # the milestones 3 and 6 are passed before the steps 4 and 7
        (MULTI | {"milestones": [2, 2, 7]}, [0.025] * 4 + [0.0125] * 5),
        (MULTI | {"milestones": [9]}, [0.1] * 6 + [0.05] * 3),
        (RESTARTS | {"restarts": [0, 5], "restart_weights": [1, 2]}, [0.05] * 2 + [0.2] * 2 + [0.1] * 5),
        (RESTARTS | {"restarts": [2], "restart_weights": [0.4]}, [0.04] * 4 + [0.02] * 5),
        (LONGER | {"eta_min": 0}, [0.05 * (1 + math.cos(math.pi * step / 12)) for step in range(3, 12)]),
        (
            COSINE | {"periods": [4, 8], "restart_weights": [1, 0.5], "eta_min": 0},
            [0.05 * (1 + math.cos(math.pi * 3 / 4)), 0.0]
            + [0.025 * (1 + math.cos(math.pi * step / 8)) for step in range(1, 8)],
        ),
    ],
)
def test_after_a_warm_up_the_rate_is_what_the_schedule_says(scheduler, expected, said):
    """Step by step, also where a run is resumed after any of them."""
    settings = options(scheduler, warmup=4)
    rates = Model(settings).rates(1, TOTAL)
    assert rates == pytest.approx(RAMP + expected, abs=1e-12)
    for done in range(1, TOTAL):
        model, resumed = Model(settings), Model(settings)
        model.rates(1, done)
        resumed.resume_training(model.saved(done))
        assert resumed.rates(done + 1, TOTAL) == rates[done:]
    assert not said


def test_a_rate_that_an_earlier_version_left_behind_is_mended(said):
    """It stayed at that of the warm-up's last step until the next milestone."""
    settings = options(MULTI | {"milestones": [9]}, warmup=4)
    model, resumed = Model(settings), Model(settings)
    model.rates(1, 6)
    state = model.saved(6)
    state["optimizers"][0]["param_groups"][0]["lr"] = RAMP[-1]
    state["schedulers"][0]["_last_lr"] = RAMP[-1:]
    resumed.resume_training(state)
    assert resumed.rates(7, TOTAL) == pytest.approx([0.1] * 3 + [0.05] * 3)


@pytest.mark.parametrize(
    "more", [{}, {"restarts": [0, 4], "restart_weights": [1, 0.7]}, {"restarts": [3, 9], "restart_weights": [2, 0.3]}]
)
def test_without_a_warm_up_rates_are_the_toolboxs(more):
    from basicsr.models import lr_scheduler

    schedule = {"milestones": [2, 2, 4, 7, 11], "gamma": 0.3, **more}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs, expected = lr_scheduler.MultiStepRestartLR(optimizer, **schedule), []
    for _ in range(TOTAL):
        expected += theirs.get_last_lr()
        optimizer.step()
        theirs.step()
    assert Model(options({"type": "MultiStepLR", **schedule})).rates(1, TOTAL) == expected


def test_what_a_resumed_run_learns_from_otherwise_is_named():
    """Crops, batches, losses and networks; not what differs from machine to machine, nor files of older versions."""
    data = {"gt_size": 32, "batch_size_per_gpu": 2, "dataroot": "a", "num_worker_per_gpu": 1}
    opt = {
        "datasets": {"train": data},
        "network_g": {"type": "SLDNet"},
        "train": {"pixel_opt": {"type": "PyramidSSIMLoss"}, "distill_opt": {"weights": {"spatial": 0.1}}},
    }
    before = learns_by(opt)
    elsewhere = {**opt, "datasets": {"train": {**data, "dataroot": "b", "num_worker_per_gpu": 8}}}
    assert changes_of_learning(before, learns_by(elsewhere)) == []
    other = {
        **opt,
        "datasets": {"train": {**data, "gt_size": 16}},
        "train": {"pixel_opt": {"type": "L1Loss"}, "distill_opt": {"weights": {"spatial": {"balance": 0.3}}}},
    }
    assert sorted(changes_of_learning(before, learns_by(other))) == [
        "datasets.train.gt_size 32 -> 16",
        "train.distill_opt.weights.spatial 0.1 -> None",
        "train.distill_opt.weights.spatial.balance None -> 0.3",
        "train.pixel_opt.type PyramidSSIMLoss -> L1Loss",
    ]
    for damaged in (None, "", "[", 3, "[1]", "{}"):
        assert changes_of_learning(damaged, before) == []


@pytest.mark.parametrize(
    ("key", "value"), [("autocast", "bf16"), ("accumulate", 2), ("ema_decay", 0.5), ("grad_clip", 0.1)]
)
def test_so_is_how_it_learns(key, value):
    opt = {"datasets": {"train": {}}, "network_g": {"type": "SLDNet"}, "train": {}}
    other = {**opt, "train": {key: value}}
    default = {"autocast": None, "accumulate": 1, "ema_decay": 0, "grad_clip": 0}[key]
    assert changes_of_learning(learns_by(opt), learns_by(other)) == [f"train.{key} {default} -> {value}"]


def test_so_are_the_scale_and_further_losses():
    opt = {"datasets": {"train": {}}, "network_g": {"type": "SLDNet"}, "train": {}}
    added = {"perceptual_opt": {"type": "PerceptualLoss"}, "extra_opt": {"edge": {"type": "L1Loss"}}}
    assert sorted(changes_of_learning(learns_by(opt), learns_by({**opt, "scale": 2, "train": added}))) == [
        "scale 1 -> 2",
        "train.extra_opt.edge.type None -> L1Loss",
        "train.perceptual_opt.type None -> PerceptualLoss",
    ]
    assert changes_of_learning(learns_by(opt), learns_by({**opt, "scale": 1})) == []


WRITTEN = {
    "train": {"accumulate": 1, "ema_decay": 0, "ema_warmup": True, "grad_clip": 0.0, "autocast": None},
    "datasets.train": {"use_hflip": True, "scale_range": [1, 1], "dataset_enlarge_ratio": 1, "clips": None},
    "network_g": {"init_type": "identity", "num_pair": 4, "reducing": [7, 10]},
    "train.pixel_opt": {"loss_weight": 1, "scale_weights": [0.6, 0.2, 0.2]},
    "train.distill_opt.objectives.0": {"num_scale": 3, "independent": True},
    "train.distill_opt.weights.spatial": {"end": 0},
    "network_t": {"init_type": "identity"},
}
"""Options with their default values, by section."""


@pytest.mark.parametrize("section", WRITTEN)
def test_a_default_that_is_written_out_is_no_change(section):
    objective = {"type": "CSD", "hidden": 4}
    weights = {"spatial": {"schedule": "linear", "start": 1.0, "iters": 5}, "temporal": 0.1}
    opt = {
        "datasets": {"train": {"type": "PairedVideoDataset", "gt_size": 32}},
        "network_g": {"type": "SLDNet", "preset": "student2"},
        "network_t": {"type": "SLDNet"},
        "train": {
            "pixel_opt": {"type": "PyramidSSIMLoss"},
            "distill_opt": {"type": "Combined", "objectives": [objective], "weights": weights},
        },
    }
    written = copy.deepcopy(opt)
    place = written
    for key in section.split("."):
        place = place[int(key) if key.isdigit() else key]
    place |= WRITTEN[section]
    texts = [learns_by(each, {"t": "f" * 64}) for each in (opt, written)]
    assert changes_of_learning(*texts) == changes_of_learning(*reversed(texts)) == []
    for key in WRITTEN[section]:
        earlier, place[key] = place[key], "other"
        [line] = changes_of_learning(texts[0], learns_by(written, {"t": "f" * 64}))
        assert f"{section}.{key} " in line and line.endswith(" -> other")
        place[key] = earlier


def test_another_type_brings_its_own_defaults():
    opt = {"datasets": {"train": {}}, "network_g": {"type": "SLDNet"}, "train": {"pixel_opt": {"type": "L1Loss"}}}
    other = {**opt, "train": {"pixel_opt": {"type": "PyramidSSIMLoss", "scale_weights": [0.6, 0.2, 0.2]}}}
    change = ["train.pixel_opt.type L1Loss -> PyramidSSIMLoss"]
    assert changes_of_learning(learns_by(opt), learns_by(other)) == change


def test_earlier_versions_knew_less_of_what_a_run_learns_from():
    opt = {
        "datasets": {"train": {"gt_size": 32}},
        "network_g": {"type": "SLDNet"},
        "network_t": {"type": "SLDNet"},
        "interface_g": {"layout": "window"},
        "train": {"ema_decay": 0.9},
    }
    now = learns_by(opt, {"t": "f" * 64})
    text = json.loads(now)
    earlier = {key: text[key] for key in text if key not in ("interface_g", "teachers", "train.ema_warmup")}
    assert changes_of_learning(json.dumps(earlier), now) == []
    assert changes_of_learning(json.dumps({**earlier, "train.ema_decay": 0.5}), now) == ["train.ema_decay 0.5 -> 0.9"]
    assert changes_of_learning(learns_by({**opt, "train": {"ema_decay": 0.9, "ema_warmup": True}}), now) == [
        "teachers.network_t.type None -> SLDNet",
        "teachers.pretrain_network_t None -> weights ffffffffffff",
    ]


def test_a_digest_of_weights_is_of_all_that_they_are():
    state = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros((), dtype=torch.long),
        "c": torch.zeros(0, 2),
        "d": torch.zeros(1),
    }
    others = [
        {**state, "a": torch.zeros(3, 2)},
        {**state, "b": torch.tensor(1)},
        {**state, "d": torch.zeros(1, dtype=torch.bfloat16)},
        {**state, "d": torch.tensor([1j])},
        {name.replace("d", "e"): value for name, value in state.items()},
    ]
    assert len({weights_digest(other) for other in [state, *others]}) == 1 + len(others)
    strided = {name: value.clone() for name, value in reversed(state.items())} | {"a": torch.zeros(3, 2).t()}
    assert weights_digest(strided) == weights_digest(state)


@pytest.fixture(scope="module")
def begun(tmp_path_factory, tiny_rain, shallow_teacher):
    """The experiments of a distillation of two iterations, and its options."""
    options = shallow_options(tiny_rain, shallow_teacher)
    with pytest.MonkeyPatch.context() as patch:
        launcher = Launcher(tmp_path_factory.mktemp("begun"), patch)
        assert launcher.train(options) == 0
    return launcher.folder / "experiments", options


@pytest.mark.parametrize(
    ("changes", "change"),
    [
        ({}, ""),
        ({"path.pretrain_network_t": "moved.pth"}, ""),
        ({"path.pretrain_network_t": "saved_again.pth"}, ""),
        ({"path.pretrain_network_t": "other.pth"}, "teachers.pretrain_network_t weights"),
        ({"path.param_key_t": "params"}, "teachers.pretrain_network_t weights"),
        ({"network_t.init_type": "kaiming"}, "teachers.network_t.init_type identity -> kaiming"),
        ({"interface_t": {"layout": "window", "num_frame": 5}}, "teachers.interface_t.num_frame None -> 5"),
        ({"interface_g": {"layout": "window", "num_frame": 3}}, "interface_g.num_frame None -> 3"),
        ({"train.ema_warmup": True}, ""),
        ({"train.ema_warmup": False}, "train.ema_warmup True -> False"),
    ],
)
def test_another_teacher_or_average_of_a_resumed_run_is_named(launcher, shallow_teacher, begun, capfd, changes, change):
    experiments, options = begun
    shutil.copytree(experiments, launcher.folder / "experiments")
    weights = torch.load(shallow_teacher, weights_only=True)
    torch.save(weights, launcher.folder / "moved.pth")
    torch.save(weights["params_ema"], launcher.folder / "saved_again.pth")
    torch.save({"params": weights["params"]}, launcher.folder / "other.pth")
    capfd.readouterr()
    assert launcher.train(changed(options, {"train.total_iter": 3, **changes}), "--auto_resume") == 0
    said = [line for line in capfd.readouterr().err.splitlines() if "options have changed since" in line]
    assert len(said) == bool(change) and all(change in line and "The first 2 iterations" in line for line in said)


def test_the_optimizers_moments_are_kept(said):
    model = Model(options(MULTI))
    model.rates(1, 6)
    resumed = Model(options(LONGER, lr=0.3))
    resumed.resume_training(model.saved(6))
    assert equal(resumed.optimizer_g.state_dict()["state"][0], model.optimizer_g.state_dict()["state"][0])


@pytest.mark.parametrize("scheduler", [MULTI, LONGER])
@pytest.mark.parametrize("now", [{}, {"total": 10}, {"total": 6}, {"total": 4}, {"betas": (0.9, 0.999)}])
def test_what_has_not_changed_goes_on_without_a_word(scheduler, now, said):
    model = Model(options(scheduler, warmup=4))
    expected = model.rates(1, 6)
    resumed = Model(options(scheduler, warmup=4, **now))
    resumed.resume_training(model.saved(6))
    assert not [line for line in said if "nothing is left to train" not in line]
    assert resumed.get_current_learning_rate() == expected[-1:]
    assert resumed.schedulers[0].state_dict() == model.schedulers[0].state_dict()
    assert resumed.rates(7, 10) == model.rates(7, 10)


def test_states_of_before_resume_as_they_did(said):
    """They do not have the warm-up."""
    model = Model(options(MULTI, warmup=9))
    model.rates(1, 6)
    state = model.saved(6)
    del state["warmup_iter"]
    resumed = Model(options(MULTI, warmup=9))
    resumed.resume_training(state)
    assert not said
    assert resumed.rates(7, TOTAL) == model.rates(7, TOTAL)


def test_a_state_of_another_optimizer_is_refused():
    model = Model(options(MULTI))
    with pytest.raises(
        CSDError, match=r"6.state belongs to another run: it was saved by an optimizer other than SGD; give"
    ):
        Model(options(MULTI, type="SGD", momentum=0.9)).resume_training(model.saved(6))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schedulers", [7]),
        ("optimizers", "x"),
        ("optimizers", [{"state": 3, "param_groups": 4}]),
        ("optimizers", [{"state": {}, "param_groups": []}]),
        ("scaler", [1]),
        ("skipped", "many"),
        ("seconds", [1.0]),
        ("best", [1]),
        ("best", {"rain": 3}),
        ("best", {"rain": {"psnr": "x"}}),
    ],
)
def test_a_state_with_what_no_run_saves_is_one_line(key, value):
    model = Model(options(MULTI))
    state = model.saved(6) | {key: value}
    with pytest.raises(CSDError, match=r"6\.state belongs to another run|which no run saves") as caught:
        model.resume_training(state)
    assert "\n" not in str(caught.value)


def test_a_best_score_that_is_nan_is_forgotten():
    """Nothing is better than it, by any comparison."""
    model = Model(options(MULTI))
    best = {"rain": {"psnr": (30.0, 2), "niqe": (float("nan"), 4)}}
    model.resume_training(model.saved(6) | {"best": best})
    assert model.best_metric_results == {"rain": {"psnr": (30.0, 2)}}


def test_the_best_is_found_anew_where_its_network_is_gone(tmp_path):
    opt = options(MULTI) | {"logger": {"keep_best": "psnr"}}
    opt["path"]["models"] = str(tmp_path)
    state = Model(opt).saved(6) | {"best": {"rain": {"psnr": (30.0, 2), "ssim": (0.9, 2)}}}
    for file, kept in ((None, {"ssim": (0.9, 2)}), ("net_g_best.pth", {"psnr": (30.0, 2), "ssim": (0.9, 2)})):
        if file:
            (tmp_path / file).touch()
        model = Model(opt)
        model.resume_training(copy.deepcopy(state))
        assert model.best_metric_results == {"rain": kept}


@pytest.mark.parametrize(("total", "left"), [(5, False), (6, False), (7, True)])
def test_a_state_after_which_nothing_is_left_says_so(said, total, left):
    state = Model(options(MULTI)).saved(6)
    Model(options(MULTI, total=total)).resume_training(state)
    nothing = f"6.state is of iteration 6, and train.total_iter is {total}: nothing is left to train"
    assert any(line.startswith(nothing) for line in said) is not left


def test_a_state_beyond_the_end_of_a_cosine_is_resumed(said):
    """Its rate is not looked for, as the schedule of now has none."""
    longer = Model(options(COSINE, total=6))
    longer.rates(1, 6)
    Model(options(COSINE | {"periods": [4]}, total=4)).resume_training(longer.saved(6))
    assert said == [
        "6.state is of iteration 6, and train.total_iter is 4: nothing is left to train; a larger total_iter trains on"
    ]


def test_moments_of_other_weights_are_refused():
    model = Model(options(MULTI))
    model.rates(1, 2)
    state = model.saved(2)
    for moments in (torch.zeros(1), torch.zeros(1).expand(10**6, 10**6), torch.zeros(1, 2, device="meta")):
        state["optimizers"][0]["state"][0]["exp_avg"] = moments
        with pytest.raises(CSDError, match=r"its optimizer('s state does not fit| has a )"):
            Model(options(MULTI)).resume_training(copy.deepcopy(state))


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {"iter": "2"},
            {"iter": True},
            {"iter": -2},
            {"iter": 10**18},
            {"epoch": None},
            {"samples": "x"},
            {"iter": 3},
        ),
        *({"manual_seed": "x"}, {"manual_seed": True}, {"manual_seed": -1}, {"manual_seed": 2**32}),
    ],
)
def test_a_state_that_counts_as_no_run_does_is_refused(tmp_path, wrong):
    state = {"iter": 2, "epoch": 0, "samples": 4, "manual_seed": 3, "optimizers": [], "schedulers": []}
    path = tmp_path / "2.state"
    torch.save(state | wrong, path)
    opt = {"datasets": {"train": {}}, "manual_seed": 3, "rank": 0, "auto_resume": False}
    with pytest.raises(
        CSDError,
        match=r"2\.state(: (iter|epoch|samples) is .* not possible|: manual_seed is .* not a seed| is of iteration 3)",
    ):
        load_resume_state(opt | {"path": {"resume_state": str(path), "training_states": str(tmp_path)}})


def test_states_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("9.state", "10.state", "100.state", "last.state", "11.pth"):
        (tmp_path / name).touch()
    assert [path.name for path in saved_states(tmp_path)] == ["100.state", "10.state", "9.state"]


def test_a_finished_cosine_run_goes_on_with_longer_periods(launcher, tiny_rain, capfd):
    short = shallow_options(tiny_rain, **{"train.scheduler": COSINE | {"periods": [2]}})
    assert launcher.train(short) == 0
    longer = changed(short, {"train.scheduler.periods": [4], "train.total_iter": 4})
    assert launcher.train(changed(short, {"train.total_iter": 4}), "--auto_resume") == 2
    assert "periods end at iteration 2, but train.total_iter is 4; make them equal" in capfd.readouterr().err
    assert launcher.train(longer, "--auto_resume") == 0
    log = capfd.readouterr().err
    assert "WARNING: " in log and "2.state: options have changed since: periods [2] -> [4]" in log
    # three of four steps of the longer way
    expected = 1e-7 + 0.5 * (0.001 - 1e-7) * (1 + torch.tensor(0.75 * torch.pi, dtype=torch.float64).cos().item())
    assert launcher.models[-1].get_current_learning_rate() == [pytest.approx(expected, rel=1e-9)]
    assert (launcher.folder / "experiments/run/models/net_g_4.pth").is_file()

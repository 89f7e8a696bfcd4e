"""The health monitor in training runs: what is logged and when, and that it changes nothing."""

from __future__ import annotations

import pytest
import torch
from toolbox import changed, distill_options, equal


def test_it_is_logged_with_the_losses_and_changes_no_bit(launcher, tiny_rain, tiny_teacher, monkeypatch):
    logged, started = {}, []
    from csd_plugin.models.distill_model import DistillModel

    optimize = DistillModel.optimize_parameters

    def record(self, current_iter):
        optimize(self, current_iter)
        printed = self.log_dict if current_iter % 3 == 0 else {}
        health = {name: value for name, value in printed.items() if name.startswith("health/")}
        logged[self.opt["name"], current_iter] = health
        started.append(self.distiller.monitor is not None and bool(self.distiller.monitor.start))

    monkeypatch.setattr(DistillModel, "optimize_parameters", record)
    options = distill_options(tiny_rain, tiny_teacher, **{"train.total_iter": 4, "logger.print_freq": 3})
    assert launcher.train(changed(options, {"name": "on"})) == 0
    assert launcher.train(changed(options, {"name": "off", "train.health": False})) == 0

    measured = {f"health/{what}_{term}" for what in ("grad", "ratio") for term in ("spatial", "temporal")}
    measured |= {"health/grad_recon", "health/scale_conv22"}
    # those that are printed; and the first, for the start that later ones are compared with
    assert [set(logged["on", i]) for i in (1, 2, 3, 4)] == [set(), set(), measured, set()]
    assert started == [True] * 4 + [False] * 4
    assert not any(logged["off", i] for i in (1, 2, 3, 4))
    values = logged["on", 3]
    assert all(value > 0 for value in values.values())
    ratio = values["health/grad_spatial"] / values["health/grad_recon"]
    assert values["health/ratio_spatial"] == pytest.approx(ratio, rel=1e-5)
    for label in ("net_g_latest", "objective_latest"):
        assert equal(launcher.weights(label, "on"), launcher.weights(label, "off"))
    [text] = [path.read_text() for path in (launcher.folder / "experiments/on").glob("train_*.log")]
    assert "health/ratio_temporal: " in text and "status/student_spread_temporal: " in text


def test_gradients_are_of_the_weighted_terms_on_the_student(launcher, tiny_rain, tiny_teacher):
    options = distill_options(tiny_rain, tiny_teacher, **{"train.total_iter": 1})
    norms = []
    for name, weight in (("one", 0.1), ("twice", 0.2)):
        weights = {"spatial": weight, "temporal": 0.0}
        assert launcher.train(changed(options, {"name": name, "train.distill_opt.weights": weights})) == 0
        norms.append(launcher.models[-1].log_dict["health/grad_spatial"])
        assert "health/grad_temporal" not in launcher.models[-1].log_dict
    assert norms[1] == pytest.approx(2 * norms[0], rel=1e-4)


def test_a_term_that_teaches_nothing_stops_the_run_in_one_line(launcher, tiny_rain, tiny_teacher, capsys):
    options = distill_options(tiny_rain, tiny_teacher)
    options["train"]["distill_opt"]["taps"] = {"student": ["conv2", "conv1"], "teacher": ["conv2", "conv1"]}
    options["train"]["distill_opt"] |= {"type": "SRKD", "weights": {"maps": 1.0}}
    del options["train"]["distill_opt"]["hidden"]
    assert launcher.train(changed(options, {"name": "one_of_two"})) == 0
    # what goes into the first layer are the frames themselves
    options["train"]["distill_opt"]["taps"] = {"student": ["conv1"], "teacher": ["conv2"]}
    assert launcher.train(options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the term maps is" in error and "gives the student no gradient" in error
    assert launcher.train(changed(options, {"name": "unwatched", "train.health": False})) == 0


def test_what_is_wrong_is_logged_once_and_the_start_survives_a_resume(launcher, tiny_rain, tiny_teacher):
    """A teacher whose features are a thousand times as large."""
    content = torch.load(tiny_teacher, weights_only=True)
    for state in content.values():
        state["conv13.weight"] *= 1000
        state["conv21.weight"] *= 1000
        state["conv21.bias"] *= 1000
    torch.save(content, launcher.folder / "large.pth")
    options = distill_options(tiny_rain, launcher.folder / "large.pth")
    assert launcher.train(options) == 0
    [log] = (launcher.folder / "experiments/run").glob("train_*.log")
    warnings = [line for line in log.read_text().splitlines() if "WARNING" in line]
    assert len([line for line in warnings if "the student's feature at conv22 is" in line]) == 1

    start = launcher.models[-1].distiller.monitor.start
    assert set(start) == {f"{what}_{term}" for what in ("grad", "loss", "spread") for term in ("spatial", "temporal")}
    assert launcher.train(changed(options, {"train.total_iter": 3}), "--auto_resume") == 0
    assert launcher.models[-1].distiller.monitor.start == start

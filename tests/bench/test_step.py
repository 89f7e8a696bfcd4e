"""`csd bench step`: its contenders compute the same numbers, its parts are those of the step. No time is asserted."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from csd_plugin.bench import patterns, training
from csd_plugin.bench.patterns import PerFrame, Released
from csd_plugin.bench.training import CONTENDERS, TOLERANCE, Bench, Settings, Stopwatch, verify
from csd_plugin.cli import main
from csd_plugin.errors import CSDError

TINY = Settings(
    student="student2",
    teacher="teacher",
    student_width=4,
    teacher_width=5,
    batch=2,
    size=16,
    num_target=3,
    precision="fp32",
    threads=1,
)
PARTS = [
    "teacher, forward",
    "student, forward",
    "objective, forward",
    "reconstruction, forward",
    "reconstruction, backward",
    "objective, backward",
    "student, backward",
    "optimizer",
    "rest",
]


def changed(**numbers) -> Settings:
    return Settings(**{**vars(TINY), **numbers})


@pytest.mark.parametrize(
    "settings",
    [
        changed(size=21, precision="bf16"),
        changed(student="student1", num_target=1),
        changed(student="student3", batch=1),
    ],
)
def test_the_step_per_frame_is_ours(settings):
    assert verify(settings) <= TOLERANCE


def test_other_numbers_are_not_timed(monkeypatch):
    monkeypatch.setattr(patterns, "TERM_WEIGHT", 0.11)
    with pytest.raises(CSDError, match="the step per frame and ours differ"):
        verify(TINY)


def test_the_released_way_sums_up_to_ours_with_pooled_frames():
    """Many backward passes add up to the gradient of `scale_source: frames`, to which the model is switched here."""
    bench = Bench(TINY)
    released = bench.plain(Released)
    loss = released.gradients(bench.lq, bench.gt)
    [teacher] = bench.model.teachers
    teacher.objective.input_scales = released.input_scales
    losses, _ = bench.model.compute_losses(1)
    total = sum(losses.values())
    total.backward()
    assert loss == pytest.approx(float(total.detach()), rel=1e-5)
    theirs = [*released.student.parameters(), *released.cells.parameters()]
    for a, b in zip(theirs, bench.model.optimized_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4 * b.grad.abs().max().item())


def test_released_goes_back_six_times_a_frame_and_steps_once(monkeypatch):
    counts = {"backward": 0, "step": 0}

    def count(name, function):
        def wrapper(*args, **keywords):
            counts[name] += 1
            return function(*args, **keywords)

        return wrapper

    for owner, name in ((torch.Tensor, "backward"), (torch.optim.Adam, "step")):
        monkeypatch.setattr(owner, name, count(name, getattr(owner, name)))
    Bench(TINY).step("released")()
    assert counts == {"backward": 6 * TINY.num_target, "step": 1}


def test_contenders_learn_each_for_itself():
    bench = Bench(TINY)
    start = [p.detach().clone() for p in bench.model.net_g.parameters()]
    plain = bench.plain(PerFrame)
    first, second = (plain.step(bench.lq, bench.gt) for _ in range(2))
    assert second != first
    assert all(torch.equal(a, b) for a, b in zip(bench.model.net_g.parameters(), start, strict=True))
    assert all(not p.requires_grad for p in plain.teacher.parameters())


def test_parts_of_a_step_in_their_order():
    watch = Stopwatch(Bench(TINY).model)
    for _ in range(2):
        parts = watch.time_step()
        assert list(parts) == PARTS
        assert all(seconds > 0 for seconds in parts.values())


def test_report(tmp_path, capsys, forked):
    report = tmp_path / "step.json"
    options = ["--student", "student2", "--student-width", "4", "--teacher-width", "4", "--size", "16"]
    arguments = ["bench", "step", *options, "--num-target", "2", "--rounds", "1", "--profile", "--json", str(report)]
    threads = torch.get_num_threads()
    assert main(arguments) == 0
    assert torch.get_num_threads() == threads
    content = json.loads(report.read_text())
    assert content["settings"]["teacher_width"] == 4 and content["apart"] <= TOLERANCE
    assert [row["contender"] for row in content["rows"]] == list(CONTENDERS)
    assert all(len(row["seconds"]) == 1 and row["peak"] > row["before"] > 10 for row in content["rows"])
    assert list(content["parts"]) == PARTS
    shown = capsys.readouterr().out
    assert report.with_suffix(".md").read_text().strip() in shown and "equal ours to within" in shown
    if "matplotlib" in sys.modules:
        assert report.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_keeps_the_contenders_that_are_measured(tmp_path, capsys, monkeypatch):
    def footprint(settings, contender):
        if contender == CONTENDERS[2]:
            raise KeyboardInterrupt
        return 20.0, 10.0

    monkeypatch.setattr(training, "_footprint", footprint)
    report = tmp_path / "step.json"
    options = ["--student", "student2", "--student-width", "4", "--teacher-width", "4", "--size", "16"]
    assert main(["bench", "step", *options, "--num-target", "2", "--rounds", "1", "--json", str(report)]) == 130
    content = json.loads(report.read_text())
    assert [row["contender"] for row in content["rows"]] == list(CONTENDERS[:2]) and content["stopped"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--student", "student9"], "did you mean student"),
        (["--teacher", "PReNet"], "--teacher PReNet is unknown"),
        (["--student-width", "2"], "num_feat is 2, expected at least 3"),
        (["--size", "3", "--teacher-width", "3"], "is too small for 3 scales"),
        (["--json", "step.txt"], "the name must end in .json"),
        (["--device", "cuda:7"], "device 'cuda:7' cannot be used"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert main(["bench", "step", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1

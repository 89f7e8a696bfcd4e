"""The same short distillation by BasicSR, by MMEngine's Runner and by a plain loop, each through its own loader."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from test_mmengine import config, train
from toolbox import STUDENT, TEACHER, distill_options
from torch.utils.data import DataLoader

from csd_plugin.archs.checkpoint import load_network
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.data.datasets.paired_video import PairedVideoDataset
from csd_plugin.distill import OBJECTIVES
from csd_plugin.distill.csd import CSD
from csd_plugin.distill.distiller import Distiller, Teacher
from csd_plugin.losses.ssim import PyramidSSIMLoss
from csd_plugin.weights import NETWORKS

pytest.importorskip("mmengine", reason="mmengine is not installed")
from csd_plugin.integrate.mmengine.registered import register

STEPS, SEED = 4, 3
NAMES = ("l_recon", "l_distill", "l_spatial", "l_temporal")
CLIPS = {"num_frame": 8, "num_target": 2, "gt_size": 24, "random_reverse": True, "dataset_enlarge_ratio": STEPS}
Run = tuple[list[dict[str, float]], dict[str, torch.Tensor]]
"""The losses of each step, and the student at the end."""


class SameStart(CSD):
    """CSD whose cells start from one seed, whatever was drawn before."""

    def __init__(self, *, hidden: int = 4) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__(hidden=hidden)


@dataclass
class Case:
    """What is distilled: options of the data set, and of both networks their numbers and files."""

    data: dict[str, Any]
    student: dict[str, Any]
    student_file: Path
    teacher: dict[str, Any]
    teacher_file: Path


@pytest.fixture
def synthetic(tmp_path, tiny_rain, tiny_teacher) -> Case:
    student = tmp_path / "student.pth"
    with torch.random.fork_rng():
        torch.manual_seed(4)
        torch.save(SLDNet(preset="student2", num_feat=4).state_dict(), student)
    return Case({"dataroot": str(tiny_rain)}, STUDENT, student, TEACHER, tiny_teacher)


@pytest.fixture
def real(shared) -> Case:
    """NTURain's a1, and two networks that ship."""
    student, teacher = ({"type": "HalfNet", "preset": name} for name in ("realtime", "wide"))
    data = {"dataroot": str(shared / "data" / "NTURain"), "split": "test", "clips": ["a1"], "dataset_enlarge_ratio": 1}
    return Case(data, student, NETWORKS["realtime"].path, teacher, NETWORKS["wide"].path)


def by_basicsr(case: Case, launcher) -> Run:
    from csd_plugin.models.distill_model import DistillModel

    logged = []
    optimize = DistillModel.optimize_parameters

    def record(self, current_iter: int) -> None:
        optimize(self, current_iter)
        logged.append(dict(self.log_dict))

    changes = {"train.total_iter": STEPS, "train.ema_decay": 0, "path.pretrain_network_g": str(case.student_file)}
    options = distill_options(Path(), case.teacher_file, network_g=case.student, network_t=case.teacher, **changes)
    options["datasets"]["train"] |= CLIPS | case.data
    options["train"]["distill_opt"]["type"] = "SameStart"
    options["train"]["scheduler"]["milestones"] = [100]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillModel, "optimize_parameters", record)
        assert launcher.train(options) == 0
    return logged, launcher.models[-1].net_g.state_dict()


def by_mmengine(case: Case, folder: Path) -> Run:
    content = config(folder, Path(), case.teacher_file, case.student_file, param_scheduler=None)
    content["model"] |= {
        "student": case.student | {"checkpoint": str(case.student_file)},
        "teachers": {"t": case.teacher | {"checkpoint": str(case.teacher_file)}},
        "objective": {"type": "SameStart"},
    }
    content["train_cfg"]["max_iters"] = STEPS
    content["train_dataloader"]["dataset"] |= CLIPS | case.data
    runner = train(content)
    shown = [name.replace("l_", "loss_", 1) for name in NAMES[:2]] + list(NAMES[2:])
    history = [runner.message_hub.log_scalars[f"train/{name}"].data[0] for name in shown]
    steps = [dict(zip(NAMES, map(float, step), strict=True)) for step in zip(*history, strict=True)]
    return steps, runner.model.distiller.student.state_dict()


def by_a_plain_loop(case: Case) -> Run:
    student, teacher = load_network(case.student_file), Teacher(load_network(case.teacher_file), SameStart())
    distiller = Distiller(student, [teacher], PyramidSSIMLoss(), weights={"spatial": 0.1, "temporal": 0.1})
    optimizer = torch.optim.Adam(distiller.parameters(), lr=1e-3)
    clips = PairedVideoDataset(CLIPS | case.data | {"manual_seed": SEED})
    loader = DataLoader(clips, batch_size=2, sampler=clips.places(epoch=0))  # type: ignore[arg-type]
    logged = []
    for iteration, batch in zip(range(1, STEPS + 1), loader, strict=False):
        losses, scalars = distiller(batch, iteration)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        distiller.after_step()
        logged.append({name: value.detach() for name, value in (losses | scalars).items()})
    return logged, student.state_dict()


@pytest.mark.parametrize("frames", ["synthetic", "real"])
def test_three_loops_have_the_same_losses_and_end_at_the_same_student(frames, request, launcher, tmp_path, monkeypatch):
    case = request.getfixturevalue(frames)
    monkeypatch.setitem(OBJECTIVES._rows, "SameStart", SameStart)
    register()
    runs = {
        "BasicSR": by_basicsr(case, launcher),
        "MMEngine": by_mmengine(case, tmp_path),
        "plain": by_a_plain_loop(case),
    }
    table = {name: [[float(step[key]) for key in NAMES] for step in losses] for name, (losses, _) in runs.items()}
    for name, steps in table.items():
        print(name, [[f"{value:.7f}" for value in step] for step in steps])
    assert [len(losses) for losses in table.values()] == [STEPS] * 3
    assert len({tuple(step) for step in table["plain"]}) == STEPS  # the batches differ
    for name in ("MMEngine", "plain"):
        torch.testing.assert_close(torch.tensor(table[name]), torch.tensor(table["BasicSR"]), rtol=1e-5, atol=1e-7)
        for key, weight in runs["BasicSR"][1].items():
            torch.testing.assert_close(runs[name][1][key], weight, rtol=1e-4, atol=1e-6)

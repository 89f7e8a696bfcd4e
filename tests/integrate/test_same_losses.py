"""The same short distillation by BasicSR, by MMEngine's Runner and by a plain loop, each through its own loader."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_mmengine import config, train
from toolbox import distill_options
from torch.utils.data import DataLoader

from csd_plugin.archs.checkpoint import load_network
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.data.datasets.paired_video import PairedVideoDataset
from csd_plugin.distill import OBJECTIVES
from csd_plugin.distill.csd import CSD
from csd_plugin.distill.distiller import Distiller, Teacher
from csd_plugin.losses.ssim import PyramidSSIMLoss

pytest.importorskip("mmengine", reason="mmengine is not installed")

STEPS, SEED = 4, 3
NAMES = ("l_recon", "l_distill", "l_spatial", "l_temporal")
Losses = list[dict[str, float]]


class SameStart(CSD):
    """CSD whose cells start from one seed, whatever was drawn before."""

    def __init__(self, *, hidden: int = 4) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__(hidden=hidden)


def by_basicsr(launcher, data: Path, teacher: Path, student: Path) -> tuple[Losses, dict[str, torch.Tensor]]:
    from csd_plugin.models.distill_model import DistillModel

    logged = []
    optimize = DistillModel.optimize_parameters

    def record(self, current_iter: int) -> None:
        optimize(self, current_iter)
        logged.append(dict(self.log_dict))

    changes = {"train.total_iter": STEPS, "datasets.train.dataset_enlarge_ratio": STEPS, "train.ema_decay": 0}
    options = distill_options(data, teacher, **changes, **{"path.pretrain_network_g": str(student)})
    options["train"]["distill_opt"]["type"] = "SameStart"
    options["train"]["scheduler"]["milestones"] = [100]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillModel, "optimize_parameters", record)
        assert launcher.train(options) == 0
    return logged, launcher.models[-1].net_g.state_dict()


def by_mmengine(folder: Path, data: Path, teacher: Path, student: Path) -> tuple[Losses, dict[str, torch.Tensor]]:
    content = config(folder, data, teacher, student, **{"train_cfg.max_iters": STEPS, "param_scheduler": None})
    content["model"]["objective"]["type"] = "SameStart"
    content["train_dataloader"]["dataset"]["dataset_enlarge_ratio"] = STEPS
    runner = train(content)
    history = {name: runner.message_hub.log_scalars[f"train/{name.replace('l_', 'loss_', 1)}"] for name in NAMES[:2]}
    history |= {name: runner.message_hub.log_scalars[f"train/{name}"] for name in NAMES[2:]}
    logged = [{name: float(buffer.data[0][i]) for name, buffer in history.items()} for i in range(STEPS)]
    return logged, runner.model.distiller.student.state_dict()


def by_a_plain_loop(data: Path, teacher: Path, student: Path) -> tuple[Losses, dict[str, torch.Tensor]]:
    learner = load_network(student)
    teachers = [Teacher(load_network(teacher), SameStart(hidden=4))]
    distiller = Distiller(learner, teachers, PyramidSSIMLoss(), weights={"spatial": 0.1, "temporal": 0.1})
    optimizer = torch.optim.Adam(distiller.parameters(), lr=1e-3)
    options = {"num_frame": 8, "num_target": 2, "gt_size": 24, "random_reverse": True, "manual_seed": SEED}
    clips = PairedVideoDataset({"dataroot": str(data), "dataset_enlarge_ratio": STEPS, **options})
    loader = DataLoader(clips, batch_size=2, sampler=clips.places(epoch=0))  # type: ignore[arg-type]
    logged = []
    for iteration, batch in zip(range(1, STEPS + 1), loader, strict=False):
        losses, scalars = distiller(batch, iteration)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        distiller.after_step()
        logged.append({**losses, **scalars})
    return logged, learner.state_dict()


def test_three_loops_have_the_same_losses_and_end_at_the_same_student(
    launcher, tmp_path, tiny_rain, tiny_teacher, monkeypatch
):
    monkeypatch.setitem(OBJECTIVES._rows, "SameStart", SameStart)
    from csd_plugin.integrate.mmengine.registered import register

    register()
    student = tmp_path / "student.pth"
    with torch.random.fork_rng():
        torch.manual_seed(4)
        torch.save(SLDNet(preset="student2", num_feat=4).state_dict(), student)
    runs = {
        "BasicSR": by_basicsr(launcher, tiny_rain, tiny_teacher, student),
        "MMEngine": by_mmengine(tmp_path, tiny_rain, tiny_teacher, student),
        "plain": by_a_plain_loop(tiny_rain, tiny_teacher, student),
    }
    table = {name: [[float(step[key]) for key in NAMES] for step in losses] for name, (losses, _) in runs.items()}
    print(table)
    assert [len(losses) for losses in table.values()] == [STEPS] * 3
    assert len({tuple(step) for step in table["plain"]}) == STEPS  # the batches differ
    for name in ("MMEngine", "plain"):
        torch.testing.assert_close(torch.tensor(table[name]), torch.tensor(table["BasicSR"]), rtol=1e-5, atol=1e-7)
        for key, weight in runs["BasicSR"][1].items():
            torch.testing.assert_close(runs[name][1][key], weight, rtol=1e-4, atol=1e-6)

"""Two processes with half of the batch each are one process with all of it, on real frames; and what ends them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from toolbox import changed, distill_options, scored_set, torchrun, train_options, two_processes

from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.models.distill_model import DistillModel

SGD = {"type": "SGD", "lr": 0.003}  # Adam makes steps of rounding errors
OBJECTIVE = "objective_latest.pth"
BALANCED = {"spatial": {"balance": 0.3}, "temporal": {"balance": 0.1}}


@pytest.fixture
def real(shared) -> dict:
    """Crops of NTURain's a1, four clips in a batch."""
    root = shared / "data" / "NTURain"
    data = {"dataroot": str(root), "split": "test", "clips": ["a1"], "batch_size_per_gpu": 4}
    return {f"datasets.train.{key}": value for key, value in data.items()} | {
        "train.total_iter": 3,
        "train.optim_g": SGD,
    }


def written(experiment: Path) -> list[str]:
    """Its files, but for logs, whose names say when."""
    return sorted(str(path.relative_to(experiment)) for path in experiment.rglob("*") if path.suffix != ".log")


def halved(options: dict) -> dict:
    batch = options["datasets"]["train"]["batch_size_per_gpu"]
    return changed(options, {"datasets.train.batch_size_per_gpu": batch // 2})


def assert_same_weights(one: Path, two: Path, *objective: str, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    """Every tensor of the last checkpoints, those of a distillation's objective too."""
    files = [sorted(path.name for path in (run / "models").glob("*_latest.pth")) for run in (one, two)]
    assert files[0] == files[1] == ["net_g_latest.pth", *objective]
    for file in files[0]:
        ours, theirs = (torch.load(run / "models" / file) for run in (one, two))
        assert ours.keys() == theirs.keys() and ours
        for key in ours:
            assert ours[key].keys() == theirs[key].keys() and ours[key]
            for name, weight in ours[key].items():
                torch.testing.assert_close(theirs[key][name], weight, rtol=rtol, atol=atol, msg=f"{file} {name}")


def test_stage_1_with_validation(launcher, real, tmp_path, shared):
    """Losses, clipped gradients, average and scores; and nothing of the second process is left on the disk."""
    options = train_options(tmp_path, val={"val_freq": 2, "save_img": False}, **real, **{"train.grad_clip": 0.1})
    options["datasets"]["val"] = scored_set(shared / "data" / "NTURain", clips=["a1"], frame_range=[1, 3])
    assert launcher.train(options) == 0
    other = tmp_path / "other"
    other.mkdir()
    run = two_processes(other, halved(options))
    assert run.returncode == 0, run.stderr[-3000:]
    one, two = (folder / "experiments/run" for folder in (launcher.folder, other))
    assert_same_weights(one, two)
    assert written(one) == written(two)
    scores = [json.loads((run / "metrics/rain_3.json").read_text())["average"] for run in (one, two)]
    for protocol, quality in scores[0].items():
        assert scores[1][protocol] == pytest.approx(quality, rel=1e-4)
    losses = [float(value) for value in re.findall(r"l_recon: (\S+)", run.stderr)]
    assert losses[-1] == pytest.approx(launcher.models[-1].log_dict["l_recon"], rel=1e-3)


def test_convolutions_of_one_pixel_are_nothing_to_warn_of(tiny_rain, tmp_path):
    network = {"type": "HalfNet", "preset": "tiny", "branches": True}
    options = train_options(tiny_rain, network_g=network, **{"train.total_iter": 2})
    run = two_processes(tmp_path, options)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "Warning" not in run.stderr


def test_distillation_by_adapters_and_balanced_weights(launcher, real, tmp_path, tiny_teacher):
    """Student, average, cells and adapters."""
    taps = {"train.distill_opt.taps": {"adapters": ["conv1x1"]}, "train.distill_opt.weights": BALANCED}
    one, two = one_and_two(launcher, changed(distill_options(tmp_path, tiny_teacher, **real), taps), tmp_path)
    assert_same_weights(one, two, OBJECTIVE)


def test_distillation_in_bf16_and_in_parts(launcher, real, tmp_path, tiny_teacher):
    """The students are as near to each other as rounding to 8 bits lets them, compared with the way that they went."""
    start = SLDNet(preset="student2", num_feat=4).state_dict()
    torch.save(start, tmp_path / "start.pth")
    parts = {"train.autocast": "bf16", "train.accumulate": 2, "path.pretrain_network_g": str(tmp_path / "start.pth")}
    options = distill_options(tmp_path, tiny_teacher, **real | parts)
    options["train"]["distill_opt"]["cells"] = "joint_until_collapsed"
    one, two = (torch.load(run / "models/net_g_latest.pth") for run in one_and_two(launcher, options, tmp_path))
    for key in ("params", "params_ema"):
        first, second, begun = (flat(state) for state in (one[key], two[key], start))
        assert (first - second).norm() < 0.02 * (first - begun).norm()


def flat(state: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in state.values()])


def one_and_two(launcher, options: dict, tmp_path: Path) -> tuple[Path, Path]:
    """The experiments of one process and of two."""
    assert launcher.train(options) == 0
    other = tmp_path / "other"
    other.mkdir()
    run = two_processes(other, halved(options))
    assert run.returncode == 0, run.stderr[-3000:]
    return launcher.folder / "experiments/run", other / "experiments/run"


WORSE = """
import os, signal, sys
from csd_plugin import train
from csd_plugin.models.distill_model import DistillModel

compute = DistillModel.compute_losses


def worse(self, iteration):
    if os.environ["RANK"] == "1":
        if iteration == 2:
            self.gt[0, 0, 0, 0, 0] = float("nan")
        if iteration == 4:
            os.kill(os.getpid(), signal.SIGKILL)
    return compute(self, iteration)


DistillModel.compute_losses = worse
sys.exit(train.main())
"""


def test_what_goes_wrong_in_one_process(launcher, tmp_path, tiny_rain, tiny_teacher, monkeypatch):
    """A bad batch is left out by both. When one is killed the other ends, and the job is resumed."""
    options = distill_options(tiny_rain, tiny_teacher, **{"train.total_iter": 6, "train.optim_g": SGD})
    compute = DistillModel.compute_losses

    def spoilt(self, iteration):
        self.gt[0, 0, 0, 0, 0] *= float("nan") if iteration == 2 else 1
        return compute(self, iteration)

    monkeypatch.setattr(DistillModel, "compute_losses", spoilt)
    assert launcher.train(options) == 0

    other, script = tmp_path / "other", tmp_path / "worse.py"
    other.mkdir()
    script.write_text(WORSE)
    killed = torchrun(other, halved(options), script=script)
    assert killed.returncode != 0
    lines = [line for line in killed.stderr.splitlines() if "error: " in line]
    assert len(lines) == 1, killed.stderr[-5000:]
    assert re.search(r"error: rank 1 \(host .*, process \d+\) has died.* --auto_resume", lines[0])
    [line] = [line for line in killed.stderr.splitlines() if "not finite" in line]
    assert "iteration 2: l_recon not finite on t" in line and "the frames hold values" in line
    experiment = other / "experiments/run"
    assert len((experiment / "skipped.txt").read_text().splitlines()) == 1
    assert [path.name for path in (experiment / "training_states").iterdir()] == ["2.state"]

    resumed = two_processes(other, halved(options), "--auto_resume")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "iter: 2." in resumed.stderr
    assert_same_weights(launcher.folder / "experiments/run", experiment, OBJECTIVE)

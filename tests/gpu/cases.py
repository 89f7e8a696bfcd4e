"""What the launchers do on a GPU: a real one, or the pretend one where `conftest.py` has loaded it.

The losses are those of the same run on the CPU; seeded mistakes with devices are caught; steps wait and launch little.
"""

from __future__ import annotations

import shutil
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pretend
import pytest
import torch
from toolbox import changed, distill_options, equal, scored_set, scoring_options, train_options

from csd_plugin import registration
from csd_plugin.adapt.batches import Batch
from csd_plugin.adapt.learning import Learner
from csd_plugin.archs import fused
from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.archs.s2vd import S2VD
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.bench import training
from csd_plugin.devices import exact_float32
from csd_plugin.distill import csd, temporal
from csd_plugin.distill.objective import build_objective
from csd_plugin.metrics.results import load_results
from csd_plugin.models.probe import Probe
from csd_plugin.models.validation import ValidationMixin
from csd_plugin.models.video_derain_model import VideoDerainModel

registration.install()
PRETENDS = "plugin" in sys.modules
#: of losses; a real GPU adds in another order than a CPU
TOLERANCE = 1e-6 if PRETENDS else 1e-4
#: and Adam's first steps go by the signs of gradients, small ones too: 1 - SSIM hardly sees brightness
LATER = 1e-6 if PRETENDS else 5e-2
HALF = 0.05 if PRETENDS else 0.1


@contextmanager
def gpu(devices: int = 1):
    """Inside, there is one. Gives what counts its launches and waits, or None for a real one, without TF32."""
    if not PRETENDS:
        with exact_float32():
            yield None
        return
    # its times say nothing, and a test goes by neither of two ways at random
    with pretend.PretendGPU(devices) as counting, patch.object(fused, "is_slower", return_value=False):
        yield counting


@dataclass
class Runs:
    """Trainings in one folder; `losses` of the latest, iteration by iteration."""

    launcher: Any
    losses: list[dict[str, float]] = field(default_factory=list)

    def __call__(self, options: dict[str, Any], *flags: str, on_gpu: bool) -> list[dict[str, float]]:
        self.losses.clear()
        options = changed(options, {"num_gpu": int(on_gpu), "name": "gpu" if on_gpu else "cpu"})
        with gpu() if on_gpu else nullcontext():
            assert self.launcher.train(options, *flags) == 0
        return list(self.losses)


@pytest.fixture
def runs(launcher, monkeypatch):
    runs = Runs(launcher)
    step = VideoDerainModel.optimize_parameters

    def recording(self, current_iter):
        step(self, current_iter)
        runs.losses.append({name: float(value) for name, value in self.log_dict.items() if name.startswith("l_")})

    monkeypatch.setattr(VideoDerainModel, "optimize_parameters", recording)
    return runs


@pytest.fixture(scope="session")
def clean_clips(tiny_rain, tmp_path_factory):
    """The truth of the training clips, as `RenderedRainDataset` wants it."""
    root = tmp_path_factory.mktemp("clean")
    for folder in tiny_rain.glob("Dataset_Training_Synthetic/*_GT"):
        shutil.copytree(folder, root / folder.name)
    return root


def validated(options: dict[str, Any], data: Path) -> dict[str, Any]:
    """With a validation at the end of three steps, and a checkpoint after each."""
    options = changed(options, {"logger.save_checkpoint_freq": 1})
    options = changed(options, {"datasets.val": scored_set(data, name="val", split="test", frame_range=[1, 2])})
    return options | {"val": {"val_freq": 3, "save_img": False, "pbar": False}}


RESIDENT = {
    "datasets.train.type": "ResidentVideoDataset",
    "datasets.train.num_worker_per_gpu": 0,
}
PREFETCHED = {"datasets.train.num_worker_per_gpu": 1, "datasets.train.pin_memory": True}
RENDERED = {"datasets.train.type": "RenderedRainDataset"}
CSD = {"type": "CSD", "hidden": 4, "weights": {"spatial": 0.1, "temporal": 0.1}}
#: name -> objective (None: no distillation), and what else differs from `toolbox.train_options`
RUNS: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "alone": (None, RESIDENT | {"train.grad_clip": 0.5}),
    "CSD": (CSD, {"train.accumulate": 2}),
    "CSD frozen when collapsed, from frames": (
        CSD | {"cells": "joint_until_collapsed", "scale_source": "frames", "order": "temporal_first"},
        RENDERED,
    ),
    "SRKD": ({"type": "SRKD", "weights": {"maps": 1.0}}, RESIDENT),
    "STD": ({"type": "STD", "hidden": 4, "weights": {"space": 0.1, "time": 0.1}}, RENDERED),
    "FAKD": ({"type": "FAKD", "weights": {"affinity": 1.0, "truth": 0.5, "teacher": 0.5}}, {}),
    "CRD": ({"type": "CRD", "weights": {"contrast": 0.1}, "taps": {"adapters": ["conv1x1"]}}, {}),
    "OutputDistillation": ({"type": "OutputDistillation", "weights": {"output": 1.0}}, PREFETCHED),
    "TeacherTruthBlend": ({"type": "TeacherTruthBlend", "weights": {"blend": 1.0}}, RESIDENT),
}


def options_of(name: str, data: Path, teacher: Path, clean: Path) -> dict[str, Any]:
    objective, changes = RUNS[name]
    changes = {"train.total_iter": 3, "datasets.train.dataset_enlarge_ratio": 4, **changes}
    if changes.get("datasets.train.type") == "RenderedRainDataset":
        changes["datasets.train.dataroot"] = str(clean)
    if objective is None:
        return train_options(data, **changes)
    return distill_options(data, teacher, **changes, **{"train.distill_opt": objective})


@pytest.mark.parametrize("name", RUNS)
def test_training_is_that_of_the_cpu_resumed_or_not(runs, tiny_rain, tiny_teacher, clean_clips, name):
    options = validated(options_of(name, tiny_rain, tiny_teacher, clean_clips), tiny_rain)
    expected = runs(options, on_gpu=False)
    first = runs(changed(options, {"train.total_iter": 1}), on_gpu=True)
    second = runs(options, "--auto_resume", on_gpu=True)
    assert (len(first), len(second)) == (1, 2)
    for step, (ours, theirs) in enumerate(zip(first + second, expected, strict=True), start=1):
        tolerance = TOLERANCE if step == 1 else LATER
        assert ours == pytest.approx(theirs, abs=tolerance, rel=tolerance), f"step {step}"

    model = runs.launcher.models[-1]
    assert model.lq.is_cuda and all(
        weight.is_cuda for network, _ in model.called.values() for weight in network.parameters()
    )
    scores = [
        load_results(runs.launcher.folder / "experiments" / name / "metrics/val_3.json").scores.summary()
        for name in ("gpu", "cpu")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=2e-3 if PRETENDS else 0.1)


@pytest.mark.parametrize(("name", "autocast"), [("alone", "bf16"), ("alone", "fp16"), ("CSD", "bf16")])
def test_half_precision_is_near_that_of_the_cpu(runs, tiny_rain, tiny_teacher, clean_clips, name, autocast):
    options = changed(options_of(name, tiny_rain, tiny_teacher, clean_clips), {"train.total_iter": 2})
    exact = runs(options, on_gpu=False)
    options = changed(options, {"train.autocast": autocast})
    expected = exact if autocast == "fp16" else runs(options, on_gpu=False)
    for ours, theirs, without in zip(runs(options, on_gpu=True), expected, exact, strict=True):
        assert ours["l_recon"] == pytest.approx(theirs["l_recon"], rel=HALF)
        assert ours != without
    if autocast == "fp16":
        assert runs.launcher.models[-1].scaler.is_enabled()


def test_the_prefetcher_of_the_toolbox_gives_the_same_batches(runs, tiny_rain):
    options = train_options(tiny_rain, **{"datasets.train.pin_memory": True, "datasets.train.num_worker_per_gpu": 1})
    expected = runs(changed(options, {"datasets.train.pin_memory": False}), on_gpu=False)
    assert runs(changed(options, {"datasets.train.prefetch_mode": "cuda"}), on_gpu=True) == [
        pytest.approx(losses, abs=LATER) for losses in expected
    ]


def test_a_checkpoint_of_the_gpu_is_tested_there_and_loaded_anywhere(runs, tiny_rain):
    runs(train_options(tiny_rain), on_gpu=True)
    checkpoint = runs.launcher.folder / "experiments/gpu/models/net_g_latest.pth"
    state = torch.load(checkpoint, weights_only=True)["params"]
    network = SLDNet(preset="student2", num_feat=4)
    network.load_state_dict(state)
    assert all(value.device.type == "cpu" for value in state.values()) and equal(network.state_dict(), state)
    with gpu():
        assert runs.launcher.test(scoring_options(tiny_rain, checkpoint, num_gpu=1)) == 0
    assert (runs.launcher.folder / "results/row/rain.json").is_file()


@pytest.mark.parametrize("network", ["student2", "realtime", "sequence"])
def test_frames_are_those_of_the_cpu(network):
    pytest.importorskip("av", reason="derains by the package's video part, which needs PyAV")
    from csd_plugin.inference.runner import Derainer

    torch.manual_seed(0)
    built = {
        "student2": lambda: SLDNet(preset="student2", num_feat=4, init_type="kaiming"),
        "realtime": lambda: HalfNet(preset="realtime", num_feat=4),
        "sequence": lambda: S2VD(),
    }[network]()
    clip = torch.randint(256, (5, 21, 34, 3), dtype=torch.uint8).numpy()
    expected = list(Derainer(built.eval(), device="cpu")(clip))
    with gpu():
        derainer = Derainer(built, device="cuda")
        assert str(derainer.device) == "cuda:0"
        for ours, theirs in zip(derainer(clip), expected, strict=True):
            assert abs(ours.astype(int) - theirs).max() <= 1


def _hint_on_the_cpu(self, frames):
    steps = self.cell.over([frames])
    step = steps.step
    steps.step = lambda state, more=None, **which: step(state, torch.zeros(frames.shape[1:]), **which)
    return steps


def _batch_not_moved(self, data):
    self.lq, self.gt, self.sample_names = data["lq"], data["gt"], []


def _frames_not_moved(self, network, windows):
    with torch.no_grad():
        return self.interface_of(network).run(network, windows, 1)


def _spread_with_a_number_of_the_cpu(frames):
    return torch.stack([torch.tensor(0.0)] + [x.mean() for x in frames]).mean()


FAULTS = {
    "a state on the CPU": (temporal.Aggregator, "over", _hint_on_the_cpu),
    "a batch that is not moved": (VideoDerainModel, "feed_data", _batch_not_moved),
    "validation frames that are not moved": (ValidationMixin, "_predict", _frames_not_moved),
    "numbers of both stacked": (csd, "spread", _spread_with_a_number_of_the_cpu),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_seeded_faults_are_caught(launcher, tiny_rain, tiny_teacher, monkeypatch, fault):
    """Each passes on a CPU."""
    owner, name, wrong = FAULTS[fault]
    monkeypatch.setattr(owner, name, wrong)
    objective = CSD | {"adaptor": False}
    options = validated(distill_options(tiny_rain, tiny_teacher, **{"train.distill_opt": objective}), tiny_rain)
    assert launcher.train(options) == 0
    with gpu(), pytest.raises(RuntimeError, match=r"same device|should be the same"):
        launcher.train(changed(options, {"num_gpu": 1, "name": "gpu"}))


#: At most, per step: by objective, of the paper's student1 and teacher with L = 5 in bf16. What is launched depends on
#: neither widths nor sizes.
LAUNCHES = {
    "none": 175,
    "CSD": 875,
    "SRKD": 220,
    "STD": 295,
    "FAKD": 265,
    "CRD": 265,
    "OutputDistillation": 210,
    "TeacherTruthBlend": 212,
}


#: MiB at most that operations of these steps read and write
MOVED = {
    "none": 35.5,
    "CSD": 210,
    "SRKD": 47,
    "STD": 76,
    "FAKD": 49,
    "CRD": 49,
    "OutputDistillation": 47,
    "TeacherTruthBlend": 47,
}


def step_options(objective: str, **train: Any) -> dict[str, Any]:
    """Of a run with the paper's student1 and teacher and L = 5, narrow and small. `train` replaces entries of it."""
    name = "CSD" if objective == "none" else objective
    terms = dict.fromkeys(build_objective({"type": name}).terms, 0.0 if objective == "none" else 0.1)
    return {
        "model_type": "DistillModel",
        "num_gpu": 1,
        "datasets": {"train": {"batch_size_per_gpu": 4, "num_frame": 11, "num_target": 5, "gt_size": 16}},
        "network_g": {"type": "SLDNet", "preset": "student1", "num_feat": 4},
        "network_t": {"type": "SLDNet", "preset": "teacher", "num_feat": 4},
        "path": {},
        "logger": {"print_freq": 100},
        "train": {
            "ema_decay": 0.999,
            "autocast": "bf16",
            "optim_g": {"type": "Adam", "lr": 1e-4},
            "scheduler": {"type": "MultiStepLR", "milestones": [1000], "gamma": 0.5},
            "total_iter": 10000,
            "pixel_opt": {"type": "PyramidSSIMLoss"},
            "distill_opt": {"type": name, "weights": terms},
            **train,
        },
    }


def step_of_the_paper(objective: str, *, iteration: int, **train: Any) -> pretend.PretendGPU:
    """One step, counted, after others."""
    with gpu() as counting:
        probe = Probe(step_options(objective, **train))
        probe.step()
        probe.step()
        probe._steps = iteration - 1
        counting.forget()
        probe.step()
    return counting


@pytest.mark.skipif(not PRETENDS, reason="launches and waits are counted by the pretend GPU")
@pytest.mark.parametrize("objective", LAUNCHES)
def test_a_step_waits_once_and_launches_and_moves_no_more_than_is_stated(objective):
    counted = step_of_the_paper(objective, iteration=51)
    assert len(counted.waits) <= 1, counted.waits
    assert counted.launches.total() <= LAUNCHES[objective], counted.launches.most_common(20)
    assert counted.moved.total() / 2**20 <= MOVED[objective]


@pytest.mark.skipif(not PRETENDS, reason="launches and waits are counted by the pretend GPU")
def test_a_step_that_clips_its_gradient_waits_once():
    assert len(step_of_the_paper("none", iteration=51, grad_clip=1.0).waits) == 1


@pytest.mark.skipif(not PRETENDS, reason="launches and waits are counted by the pretend GPU")
def test_a_logged_step_reads_all_numbers_at_once():
    waits = step_of_the_paper("none", iteration=100).waits
    assert len(waits) <= 2, waits


LINEAR = {"schedule": "linear", "start": 0.1, "end": 0.0, "iters": 100}


@pytest.mark.skipif(not PRETENDS, reason="launches and waits are counted by the pretend GPU")
def test_weights_that_change_do_not_make_a_step_wait():
    objective = {"type": "CSD", "weights": {"spatial": LINEAR, "temporal": LINEAR}}
    assert len(step_of_the_paper("CSD", iteration=51, distill_opt=objective).waits) == 1


@pytest.mark.skipif(not PRETENDS, reason="launches and waits are counted by the pretend GPU")
def test_steps_after_a_batch_that_was_left_out_wait_once(monkeypatch):
    monkeypatch.setattr(VideoDerainModel, "skipped", 1)
    assert len(step_of_the_paper("none", iteration=51).waits) == 1


def test_weights_that_follow_gradients_are_those_of_the_cpu():
    balanced = {"type": "SRKD", "weights": {"maps": {"balance": 0.5}}}
    measured = []
    for on_gpu in (False, True):
        torch.manual_seed(0)
        options = step_options("SRKD", distill_opt=balanced, autocast=None) | {"num_gpu": int(on_gpu)}
        options["network_g"]["init_type"] = options["network_t"]["init_type"] = "kaiming"
        with gpu() if on_gpu else nullcontext():
            torch.manual_seed(1)
            probe = Probe(options)
            probe.step()
        measured.append(probe.model.distiller.balance.measured)
    assert measured[0] and measured[1] == pytest.approx(measured[0], rel=1e-3)


@pytest.mark.skipif(not PRETENDS, reason="launches and waits are counted by the pretend GPU")
def test_a_step_of_adapt_waits_once():
    with gpu() as counting:
        learner = Learner(HalfNet(preset="tiny", num_feat=4), rate=1e-3, device=torch.device("cuda", 0))
        batch = Batch(torch.rand(1, 5, 3, 16, 16).to("cuda"), torch.rand(1, 3, 3, 16, 16).to("cuda"))
        learner._step(batch, 0.5)
        counting.forget()
        learner._step(batch, 0.5)
    assert len(counting.waits) == 1, counting.waits


def test_the_benchmark_of_a_step(monkeypatch):
    if PRETENDS:  # it has no memory of its own
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: None)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda *_: 2**20)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(training, "_TO_RECORD", 1)  # it would record nothing later either
    settings = training.Settings(
        student="student2",
        teacher="teacher",
        student_width=4,
        teacher_width=5,
        batch=2,
        size=20,
        num_target=2,
        precision="bf16",
        threads=1,
        device="cuda:0",
    )
    with gpu():
        assert training.verify(settings) <= 10 * training.TOLERANCE
        rows = list(training.measure(settings, 1))
    recorded = [] if PRETENDS else ["csd, graph"]
    assert [row.contender for row in rows] == ["csd", *recorded, "per frame", "released"]
    assert all(len(row.seconds) == 1 and min(row.seconds) > 0 and row.peak >= row.before > 0 for row in rows)

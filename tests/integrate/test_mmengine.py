"""Distillation by MMEngine's Runner: what it trains, saves, resumes and scores."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from quarters import Quarters
from synthetic import TEST, moving_scene, write_image
from toolbox import STUDENT, TEACHER, begin_two, changed, equal, scored_set

from csd_plugin.archs.checkpoint import load_network, read_state_dict
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.errors import CSDError
from csd_plugin.locks import alone

mmengine = pytest.importorskip("mmengine", reason="mmengine is not installed")

ROOT = Path(__file__).resolve().parents[2]
DATA = {"type": "csd.PairedVideoDataset", "num_frame": 8, "num_target": 2, "gt_size": 24, "random_reverse": True}


@pytest.fixture(scope="module", autouse=True)
def _configs_as_they_are():
    """MMEngine writes its config into each checkpoint, and takes a second to break its lines for people."""
    from mmengine.config import config as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FormatCode", lambda text, **_: (text, True))
        yield


@pytest.fixture
def student(tmp_path) -> Path:
    path = tmp_path / "student.pth"
    with torch.random.fork_rng():
        torch.manual_seed(5)
        torch.save({"params": SLDNet(preset="student2", num_feat=4).state_dict()}, path)
    return path


def config(folder: Path, data: Path, teacher: Path, student: Path, **changes: Any) -> dict[str, Any]:
    """Two iterations of the narrow student, a checkpoint after each."""
    content = {
        "custom_imports": {"imports": ["csd_plugin.integrate.mmengine"], "allow_failed_imports": False},
        "work_dir": str(folder / "work"),
        "randomness": {"seed": 3},
        "model": {
            "type": "csd.CSDDistiller",
            "student": STUDENT | {"checkpoint": str(student)},
            "teachers": {"t": TEACHER | {"checkpoint": str(teacher)}},
            "objective": {"type": "CSD", "hidden": 4},
            "weights": {"spatial": 0.1, "temporal": 0.1},
            "pixel_loss": {"type": "PyramidSSIMLoss"},
        },
        "train_dataloader": {
            "dataset": DATA | {"dataroot": str(data)},
            "sampler": {"type": "csd.ClipSampler"},
            "collate_fn": {"type": "default_collate"},
            "batch_size": 2,
            "num_workers": 0,
        },
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 2, "val_interval": 2},
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "Adam", "lr": 1e-3}},
        "param_scheduler": [{"type": "CosineAnnealingLR", "T_max": 5, "end": 5, "by_epoch": False}],
        "default_hooks": {
            "checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": 1},
            "logger": {"type": "LoggerHook", "interval": 1},
        },
        "custom_hooks": [{"type": "csd.DistillHook"}],
        "log_processor": {"by_epoch": False},
        "env_cfg": {"mp_cfg": {"opencv_num_threads": 0}},
    }
    return changed(content, changes)


def scored(data: Path) -> dict[str, Any]:
    """Changes that score three frames of each test clip."""
    dataset = {key: value for key, value in scored_set(data).items() if key != "name"}
    loader = {
        "dataset": dataset | {"type": "csd.PairedVideoTestDataset"},
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "collate_fn": {"type": "default_collate"},
        "batch_size": 1,
        "num_workers": 0,
    }
    evaluator = {"type": "csd.DerainingMetric", "also": {"warping": {}}}
    return {
        f"{phase}_{part}": content
        for phase in ("val", "test")
        for part, content in (("dataloader", loader), ("evaluator", evaluator), ("cfg", {}))
    }


def other_names(batch: list[dict[str, Any]]) -> dict[str, Any]:
    """As another toolbox's loaders collate."""
    return {"inputs": [sample["lq"] for sample in batch]}


def runner_of(content: dict[str, Any]) -> Any:
    from mmengine.config import Config
    from mmengine.runner import Runner

    import csd_plugin.integrate.mmengine  # noqa: F401

    _runs.append(0)
    return Runner.from_cfg(Config(content | {"experiment_name": f"run{len(_runs)}"}))


_runs: list[int] = []  # MMEngine keeps what belongs to an experiment under its name


def train(content: dict[str, Any]) -> Any:
    runner = runner_of(content)
    runner.train()
    return runner


def test_student_and_cells_learn_and_checkpoints_hold_data_alone(tmp_path, tiny_rain, tiny_teacher, student):
    content = config(tmp_path, tiny_rain, tiny_teacher, student, **scored(tiny_rain))
    content["custom_hooks"].append({"type": "EMAHook", "ema_type": "MomentumAnnealingEMA", "momentum": 0.1, "gamma": 9})
    content["default_hooks"]["checkpoint"] |= {"save_best": "nturain_y/psnr", "rule": "greater"}
    runner = train(content)
    distiller = runner.model.distiller
    frozen = distiller.teachers[0].network
    assert equal(frozen.state_dict(), torch.load(tiny_teacher, weights_only=True)["params_ema"])

    saved = torch.load(tmp_path / "work" / "iter_2.pth", weights_only=True)
    assert {".".join(name.split(".")[:2]) for name in saved["state_dict"]} == {
        "distiller.student",
        "distiller.objectives",
    }
    assert saved["csd"]["health"] == distiller.monitor.start != {}
    assert saved["message_hub"]["runtime_info"]["best_score"] > 10
    assert list(tmp_path.glob("work/best_*.pth"))

    averaged = saved["state_dict"]  # what EMAHook ships there; the plain weights are in the other entry
    plain = {name: saved["ema_state_dict"][f"module.{name}"] for name in averaged}
    assert equal(plain, {name: value.cpu() for name, value in runner.model.state_dict().items()})
    assert not equal(plain, averaged)
    logged = runner.message_hub.log_scalars
    assert {"train/loss_recon", "train/loss_distill", "train/l_spatial", "val/rgb/psnr", "val/warping"} <= set(logged)
    total = logged["train/loss_recon"].current() + logged["train/loss_distill"].current()
    assert logged["train/loss"].current() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(("cells", "spatial"), [("joint", {"balance": 0.2}), ("averaged", 0.1)])
def test_a_run_that_is_resumed_is_the_run_that_was_not_stopped(
    tmp_path, tiny_rain, tiny_teacher, student, cells, spatial
):
    changes = {"model.objective.cells": cells, "model.weights.spatial": spatial, "train_cfg.max_iters": 3}
    whole = train(config(tmp_path / "whole", tiny_rain, tiny_teacher, student, **changes))
    train(config(tmp_path, tiny_rain, tiny_teacher, student, **changes | {"train_cfg.max_iters": 2}))
    again = train(config(tmp_path, tiny_rain, tiny_teacher, student, **changes, resume=True))
    assert again.iter == 3 and len(again.message_hub.log_scalars["train/loss"].data[0]) == 3
    assert equal(whole.model.state_dict(), again.model.state_dict())
    assert whole.model.distiller.monitor.start == again.model.distiller.monitor.start
    assert whole.model.distiller.balance.measured == again.model.distiller.balance.measured
    assert bool(again.model.distiller.balance.measured) == isinstance(spatial, dict)
    if cells == "averaged":  # they follow each step
        objective = again.model.distiller.objectives["t"]
        pairs = zip(objective.averaged_cells.parameters(), objective.cells.parameters(), strict=True)
        assert not all(torch.equal(average, learned) for average, learned in pairs)


def launched(content: dict[str, Any], folder: Path, *flags: str) -> int:
    """The status of the command that runs this config."""
    from csd_plugin.integrate.run_mmengine import main

    _runs.append(0)
    content = content | {"experiment_name": f"run{len(_runs)}"}
    (folder / "config.py").write_text("\n".join(f"{key} = {value!r}" for key, value in content.items()))
    return main([str(folder / "config.py"), *flags])


@pytest.mark.parametrize(
    ("number", "mode", "frames"),
    [(signal.SIGINT, "loss", 0), (signal.SIGTERM, "loss", 0), (signal.SIGTERM, "predict", 2)],
    ids=["Ctrl-C in a step", "SIGTERM in a step", "SIGTERM in the validation"],
)
def test_a_signal_ends_a_run_that_resumes_as_if_it_had_not(
    tmp_path, tiny_rain, tiny_teacher, student, monkeypatch, capfd, number, mode, frames
):
    from csd_plugin.integrate.mmengine.model import CSDDistiller

    changes = scored(tiny_rain) | {"train_cfg.max_iters": 3, "default_hooks.checkpoint.interval": 3}
    average = {"type": "EMAHook", "ema_type": "MomentumAnnealingEMA", "momentum": 0.1, "gamma": 9}
    changes["custom_hooks"] = [{"type": "csd.DistillHook"}, average]
    before = signal.getsignal(number)
    own = changes | {"custom_hooks": [*changes["custom_hooks"], {"type": "csd.StoppingHook"}]}  # as in one's own script
    whole = train(config(tmp_path / "whole", tiny_rain, tiny_teacher, student, **own))
    assert signal.getsignal(number) is before
    forward, seen = CSDDistiller.forward, []

    def interrupted(self, *given, **named):
        seen.append(named["mode"])
        if self.iteration == 2 and seen.count(mode) == (2 if mode == "loss" else frames):
            os.kill(os.getpid(), number)
        return forward(self, *given, **named)

    content = config(tmp_path, tiny_rain, tiny_teacher, student, **changes)
    with monkeypatch.context() as patch:
        patch.setattr(CSDDistiller, "forward", interrupted)
        assert launched(content, tmp_path) == 128 + number
    assert seen == ["loss"] * 2 + ["predict"] * frames  # the first validation is after the second step
    assert [path.name for path in tmp_path.glob("work/*.pth")] == ["iter_2.pth"]
    assert "stopping when this step is done and saved; once more to leave at once" in capfd.readouterr().err
    assert launched(content, tmp_path, "--resume") == 0
    ends = [torch.load(tmp_path / folder / "work/iter_3.pth", weights_only=True) for folder in ("whole", ".")]
    assert equal(*(end["state_dict"] for end in ends)) and equal(*(end["ema_state_dict"] for end in ends))
    gc.collect()  # of the run that has not come to its end
    assert signal.getsignal(number) is before and whole.iter == 3


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


@pytest.mark.parametrize("harm", ["newest cut short", "newest gone", "no word of the last", "folder moved"])
def test_a_run_resumes_from_the_newest_whole_checkpoint(tmp_path, tiny_rain, tiny_teacher, student, harm):
    whole = train(config(tmp_path / "whole", tiny_rain, tiny_teacher, student, **{"train_cfg.max_iters": 3}))
    content = config(tmp_path, tiny_rain, tiny_teacher, student)
    train(content)
    work = tmp_path / "work"
    if harm == "newest cut short":
        cut_short(work / "iter_2.pth")
    elif harm == "newest gone":
        (work / "iter_2.pth").unlink()
    elif harm == "no word of the last":
        (work / "last_checkpoint").unlink()
    else:
        work = work.rename(tmp_path / "moved")
    again = train(
        changed(content, {"train_cfg.max_iters": 3, "work_dir": str(work), "resume": True, "load_from": None})
    )
    assert again._load_from == str(work / ("iter_1.pth" if "newest" in harm else "iter_2.pth"))
    assert equal(*(dict(runner.model.distiller.state_dict()) for runner in (whole, again)))


def test_a_run_without_a_whole_checkpoint_is_one_line(tmp_path, tiny_rain, tiny_teacher, student):
    content = config(tmp_path, tiny_rain, tiny_teacher, student)
    train(content)
    for number in (1, 2):
        cut_short(tmp_path / "work" / f"iter_{number}.pth")
    with pytest.raises(CSDError, match=r"iter_2\.pth cannot be read: .*; no checkpoint of .*work can be resumed"):
        train(content | {"resume": True})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.student.num_feat": 6, "model.student.checkpoint": ...}, "has shape .* another size"),
        (
            {"optim_wrapper.optimizer": {"type": "SGD", "lr": 1e-3}},
            "an optimizer other than SGD; it belongs to",
        ),
        (
            {f"model.{key}": ... for key in ("teachers", "objective", "weights")},
            "unknown to the network .* another run",
        ),
    ],
)
def test_another_run_is_not_resumed(tmp_path, tiny_rain, tiny_teacher, student, changes, words):
    train(config(tmp_path, tiny_rain, tiny_teacher, student))
    with pytest.raises(CSDError, match=rf"iter_2\.pth: .*{words}"):
        train(config(tmp_path, tiny_rain, tiny_teacher, student, resume=True, **changes))


@pytest.mark.parametrize(
    ("part", "content"),
    [("csd", {"orders": {"student (SLDNet) tail, 2 frames": "SIDEWAYS"}}), ("csd", 3), ("message_hub", {"loss": {}})],
)
def test_a_checkpoint_whose_word_of_the_run_is_damaged_is_one_line(
    tmp_path, tiny_rain, tiny_teacher, student, part, content
):
    settings = config(tmp_path, tiny_rain, tiny_teacher, student)
    train(settings)
    path = tmp_path / "work" / "iter_2.pth"
    saved = torch.load(path, weights_only=True)
    torch.save(saved | {part: content if part == "csd" else saved[part] | {"log_scalars": content}}, path)
    with pytest.raises(CSDError, match=r"iter_2\.pth: what it says of the run is damaged \(.*\)"):
        train(settings | {"resume": True})


class Code:
    def __reduce__(self):
        return exec, ("raise SystemExit('code from a file ran')",)


@pytest.mark.parametrize(
    ("content", "resumes", "words"),
    [
        (None, False, "does not exist; check the path"),
        (b"", False, "is cut short or damaged"),
        ([1.0], False, "holds a list, expected a dict of tensors"),
        ({"state_dict": {}, "more": Code()}, False, "holds more than tensors and plain data"),
        ({"conv1.bias": torch.tensor([1.0])}, False, "the checkpoint is for another size"),
        ({"params": "the student's"}, True, "holds no state to resume from"),
    ],
)
def test_files_that_no_run_can_start_from_are_one_line(
    tmp_path, tiny_rain, tiny_teacher, student, content, resumes, words
):
    file = tmp_path / "start.pth"
    if content == {"params": "the student's"}:
        file.write_bytes(student.read_bytes())
    elif isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(CSDError, match=words) as caught:
        train(config(tmp_path, tiny_rain, tiny_teacher, student, load_from=str(file), resume=resumes))
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)


@pytest.mark.parametrize("key", ["load_from", "model.student.checkpoint", "model.teachers.t.checkpoint"])
def test_weights_that_are_not_finite_are_refused(tmp_path, tiny_rain, tiny_teacher, student, key):
    content = torch.load(tiny_teacher if "teachers" in key else student)
    for weights in content.values():
        weights["conv1.bias"][0] = torch.nan
    torch.save(content, tmp_path / "nan.pth")
    with pytest.raises(CSDError, match=r"nan\.pth: its weight conv1\.bias holds NaN or infinity"):
        train(config(tmp_path, tiny_rain, tiny_teacher, student, **{key: str(tmp_path / "nan.pth")}))


EPOCHS = {
    "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": 2},
    "log_processor": ...,
    "train_dataloader.batch_size": 3,
    "train_dataloader.dataset.dataset_enlarge_ratio": 2,
}


@pytest.mark.parametrize("step", ["in the first epoch", "last of the first epoch", "in the second epoch"])
def test_a_run_over_epochs_is_resumed_within_one(tmp_path, tiny_rain, tiny_teacher, student, step):
    whole = train(config(tmp_path / "whole", tiny_rain, tiny_teacher, student, **EPOCHS))
    steps = len(whole.train_dataloader)
    assert whole.iter == 2 * steps > 4 and len(whole.train_dataloader.sampler) % 3  # the last batch is smaller
    last = {"in the first epoch": 1, "last of the first epoch": steps, "in the second epoch": steps + 1}[step]
    again = config(tmp_path, tiny_rain, tiny_teacher, student, **EPOCHS, resume=True)
    train(again | {"load_from": str(tmp_path / f"whole/work/iter_{last}.pth")})
    ends = (tmp_path / folder / f"work/iter_{2 * steps}.pth" for folder in ("whole", "."))
    assert equal(*(torch.load(path, weights_only=True)["state_dict"] for path in ends))


def test_a_sampler_whose_crops_begin_again_is_named_on_resuming(tmp_path, tiny_rain, tiny_teacher, student):
    changes = EPOCHS | {"train_dataloader.sampler": {"type": "DefaultSampler", "shuffle": True}}
    words = "with DefaultSampler a resumed run draws the crops of its first epochs again"
    train(config(tmp_path, tiny_rain, tiny_teacher, student, **changes))
    [log] = tmp_path.rglob("*.log")
    assert words not in log.read_text()
    again = changes | {"train_cfg": EPOCHS["train_cfg"] | {"max_epochs": 3}}
    train(config(tmp_path, tiny_rain, tiny_teacher, student, **again, resume=True))
    # where both runs begin in one second, MMEngine gives their logs one name
    assert any(words in log.read_text() for log in tmp_path.rglob("*.log"))


@pytest.mark.parametrize("tested", [False, True])
def test_sides_that_a_network_cannot_process_are_said_before_the_first_step(tmp_path, tiny_rain, student, tested):
    from mmengine.registry import MODELS

    MODELS.register_module(module=Quarters, force=True)
    changes = {f"model.{key}": ... for key in ("teachers", "objective", "weights")}
    changes |= {"model.student": {"type": "Quarters", "interface": {"layout": "image"}}}
    changes |= scored(tiny_rain) if tested else {"train_dataloader.dataset.gt_size": 26}
    for frames in (tiny_rain / TEST).rglob("*.png") if tested else ():
        assert cv2.imread(str(frames)).shape[0] % 4  # else this test shows nothing
        break
    with pytest.raises(CSDError, match=r"the student: Quarters cannot process clips .* multiples of 4; .*size_divisor"):
        train(config(tmp_path, tiny_rain, student, student, **changes))
    assert not list((tmp_path / "work").glob("*.pth"))


def test_csd_reads_its_checkpoints_and_it_reads_those_of_basicsr(tmp_path, tiny_rain, tiny_teacher, student):
    from synthetic import moving_scene, rain_on, write_image

    from csd_plugin.cli import main

    content = config(tmp_path, tiny_rain, tiny_teacher, student, **{"train_cfg.max_iters": 1})
    runner = train(content)
    file = tmp_path / "work" / "iter_1.pth"
    assert equal(read_state_dict(file), dict(runner.model.distiller.student.state_dict()))
    assert isinstance(load_network(file), SLDNet)
    for i, frame in enumerate(rain_on(moving_scene(3, 24, 32, 0), 1), start=1):
        write_image(tmp_path / "rain" / f"{i:05d}.png", frame)
    assert main(["derain", str(tmp_path / "rain"), str(tmp_path / "clean"), "--model", str(file)]) == 0
    assert len(list((tmp_path / "clean").glob("*.png"))) == 3

    other = tmp_path / "net_g.pth"  # as BasicSR's models save
    weights = {name: value + 1 for name, value in read_state_dict(file).items()}
    torch.save({"params": read_state_dict(student), "params_ema": weights}, other)
    loaded = runner_of(content | {"load_from": str(other)})
    loaded.load_or_resume()
    assert equal(dict(loaded.model.distiller.student.state_dict()), weights)
    torch.save({"params": SLDNet(preset="student3", num_feat=4).state_dict()}, other)
    with pytest.raises(CSDError, match="the checkpoint is for another"):
        runner_of(content | {"load_from": str(other)}).load_or_resume()


def test_scores_are_those_of_basicsr_s_validation(tmp_path, tiny_rain, tiny_teacher, student, launcher):
    import json

    from toolbox import scoring_options

    content = config(tmp_path, tiny_rain, tiny_teacher, student, **scored(tiny_rain), load_from=str(student))
    metrics = runner_of(content).test()
    assert launcher.test(scoring_options(tiny_rain, student, **{"path.param_key_g": "params"})) == 0
    basicsr = json.loads((launcher.folder / "results/row/rain.json").read_text())
    assert list(metrics)[:4] == ["nturain_y/psnr", "nturain_y/ssim", "rgb/psnr", "rgb/ssim"]
    for protocol in ("nturain_y", "rgb"):
        for name in ("psnr", "ssim"):
            expected = basicsr["average"][protocol][name]
            assert metrics[f"{protocol}/{name}"] == pytest.approx(expected, abs=1e-3)
    assert metrics["warping"] > 0


def test_frames_without_truth_have_the_metrics_that_need_none(caplog, monkeypatch):
    from csd_plugin.integrate.mmengine.metric import DerainingMetric

    frames = np.random.default_rng(0).integers(0, 255, (3, 24, 24, 3), dtype=np.uint8)
    metric = DerainingMetric(also={"warping": {}})
    numbers = (0, 1, 5)  # the last does not follow
    samples = [
        {"clip": "a", "number": number, "result": frame, "guide": frame, "truth": None}
        for number, frame in zip(numbers, frames, strict=True)
    ]
    metric.process({}, samples)
    assert [len(values) for *_, values in metric.results] == [0, 1, 0]
    monkeypatch.setattr(
        "csd_plugin.integrate.mmengine.metric.print_log", lambda text, _, level: logging.log(level, text)
    )
    assert metric.compute_metrics(metric.results).keys() == {"warping"}
    assert "No frame has what PSNR and SSIM needs" in caplog.text


def test_networks_compute_in_bf16_without_a_gpu(tmp_path, tiny_rain, tiny_teacher, student):
    exact, half = (
        train(config(tmp_path / name, tiny_rain, tiny_teacher, student, **change)).message_hub.log_scalars["train/loss"]
        for name, change in (("a", {}), ("b", {"model.precision": "bf16"}))
    )
    assert half.current() != exact.current()
    assert half.current() == pytest.approx(exact.current(), rel=0.05)


def test_its_own_half_precision_leaves_the_losses_in_float32(tmp_path, tiny_rain, tiny_teacher, student, monkeypatch):
    """`AmpOptimWrapper` around the whole model, as on a GPU, which it asks for; the first look at the terms too."""
    monkeypatch.setattr("mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available", lambda: True)
    amp = {"type": "AmpOptimWrapper", "dtype": "bfloat16", "optimizer": {"type": "Adam", "lr": 1e-3}}
    runner, exact = (
        train(config(tmp_path / name, tiny_rain, tiny_teacher, student, **change, **{"train_cfg.max_iters": 1}))
        for name, change in (("amp", {"optim_wrapper": amp}), ("exact", {}))
    )
    assert runner.model.distiller.scaler is runner.optim_wrapper.loss_scaler
    half, whole = (each.message_hub.log_scalars for each in (runner, exact))
    for name in ("train/loss", "train/health/grad_spatial"):
        assert half[name].current() != whole[name].current()
        assert half[name].current() == pytest.approx(whole[name].current(), rel=0.1)


class Enlarging(torch.nn.Module):
    """(B, 3, H, W) to (B, 3, 2 H, 2 W)."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, width, 3, padding=1), torch.nn.Conv2d(width, 12, 1))

    def forward(self, frame):
        return torch.nn.functional.pixel_shuffle(self.body(frame), 2)


def test_networks_of_super_resolution_learn_and_are_scored(tmp_path, monkeypatch):
    import csd_plugin.integrate.mmengine  # noqa: F401
    from csd_plugin.integrate.mmengine.registries import MODELS

    monkeypatch.setitem(MODELS.module_dict, "Enlarging", Enlarging)
    for index, frame in enumerate(moving_scene(9, 48, 64, seed=0)):
        write_image(tmp_path / f"gt/clip/{index:04d}.png", frame)
        write_image(tmp_path / f"lq/clip/{index:04d}.png", np.ascontiguousarray(frame[::2, ::2]))
    torch.save({"params": Enlarging(6).state_dict()}, tmp_path / "teacher.pth")
    torch.save({"params": Enlarging().state_dict()}, tmp_path / "student.pth")
    roots = {"dataroot_lq": str(tmp_path / "lq"), "dataroot_gt": str(tmp_path / "gt"), "scale": 2}
    how = {"type": "Enlarging", "interface": {"layout": "image", "feature": "body.0:output", "scale": 2}}
    content = config(tmp_path, tmp_path, tmp_path / "teacher.pth", tmp_path / "student.pth", **scored(tmp_path))
    for section in ("train_dataloader", "val_dataloader", "test_dataloader"):
        dataset = content[section]["dataset"]
        kept = {key: value for key, value in dataset.items() if key not in ("dataroot", "split")}
        content[section] = content[section] | {"dataset": kept | roots}
    content["model"]["student"] = how | {"checkpoint": str(tmp_path / "student.pth")}
    content["model"]["teachers"]["t"] = how | {"width": 6, "checkpoint": str(tmp_path / "teacher.pth")}
    logged = train(content).message_hub.log_scalars
    assert logged["train/l_spatial"].current() > 0 and logged["val/rgb/psnr"].current() > 0


def test_several_losses_are_added(tmp_path, tiny_rain, tiny_teacher, student):
    extra = {"model.extra_losses": {"edge": {"type": "PyramidSSIMLoss", "loss_weight": 0.5}}}
    runner = train(config(tmp_path, tiny_rain, tiny_teacher, student, **extra, **{"train_cfg.max_iters": 1}))
    logged = {name: value.current() for name, value in runner.message_hub.log_scalars.items()}
    assert logged["train/recon/edge"] == pytest.approx(0.5 * logged["train/recon/pixel"], rel=1e-5)
    assert logged["train/loss_recon"] == pytest.approx(1.5 * logged["train/recon/pixel"], rel=1e-5)


def test_a_student_alone_learns_from_the_truth(tmp_path, tiny_rain, student):
    content = config(tmp_path, tiny_rain, student, student)
    for key in ("teachers", "objective", "weights"):
        del content["model"][key]
    runner = train(content)
    assert "train/loss_distill" not in runner.message_hub.log_scalars
    assert list(runner.model.distiller.objectives) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_dataloader.collate_fn": {"type": "pseudo_collate"}}, "collate_fn=dict.type='default_collate'."),
        ({"train_dataloader.collate_fn": {"type": "csd_other_names"}}, "a batch has inputs, but no lq: let collate_fn"),
        ({"custom_hooks": []}, "csd.DistillHook"),
        ({"train_dataloader.dataset.gt_sise": 24}, "gt_sise is unknown; did you mean gt_size"),
        ({"train_dataloader.dataset.gt_size": "24"}, "gt_size is '24'"),
        ({"model.extra_losses": [{"type": "L1Loss"}]}, "model.extra_losses is a list; give dict.NAME=dict"),
        (
            {"model.extra_losses": {"pixel": {"type": "PyramidSSIMLoss"}}},
            "model.extra_losses.pixel: pixel is model.pix",
        ),
        ({"model.teachers.t.checkpoint": ...}, "model.teachers.t.checkpoint is missing"),
        ({"model.teachers.t.checkpoint": "gone.pth"}, "model.teachers.t: there is no checkpoint gone.pth"),
        ({"model.teachers.t.num_feat": 6}, "model.teachers.t: .* the checkpoint is for another size"),
        ({"model.objective": {"type": "CSB"}}, "model.objective: type 'CSB' is unknown; did you mean CSD"),
        ({"model.student": {"type": "else.Net"}}, "model.student: type 'else.Net' is unknown; list the module of else"),
        ({"model.objective.hiden": 4}, "model.objective: .*hiden"),
        ({"model.objective.aggregation": "sum"}, "CSD: aggregation 'sum' is unknown"),
        ({"model.weights": {"spatial": 0.1}}, "loss 'temporal' has no weight"),
        ({"model.objective": ...}, "give `objective` and `weights` too"),
        ({"model.precision": "bf61"}, "model.precision is 'bf61'"),
        ({"train_dataloader.dataset.num_frame": 6}, "windows of 5 frames, but a network needs 7"),
    ],
)
def test_mistakes_are_one_line(tmp_path, tiny_rain, tiny_teacher, student, changes, words):
    from mmengine.registry import FUNCTIONS

    FUNCTIONS.register_module("csd_other_names", force=True, module=other_names)
    with pytest.raises(CSDError, match=words) as caught:
        train(config(tmp_path, tiny_rain, tiny_teacher, student, **changes))
    assert "\n" not in str(caught.value)


def test_a_type_of_another_project_is_known_by_its_nearest_name(monkeypatch):
    from mmengine.registry import MODELS, Registry

    from csd_plugin.integrate.mmengine.registries import build

    monkeypatch.setattr(MODELS, "_children", dict(MODELS.children))
    Registry("model", parent=MODELS, scope="elsewhere").register_module("RestorationNet", module=torch.nn.Identity)
    with pytest.raises(CSDError, match="is unknown; did you mean elsewhere\\.RestorationNet"):
        build({"type": "elsewhere.RestoratonNet"}, "model.student")
    assert isinstance(build({"type": "elsewhere.RestorationNet"}, "model.student"), torch.nn.Identity)


def test_a_scalar_with_loss_in_its_name_is_not_minimised():
    from csd_plugin.integrate.mmengine.model import CSDDistiller

    model = CSDDistiller(dict(STUDENT))
    total, logged = model.parse_losses({"loss_recon": torch.tensor(1.0), "l_my_loss": torch.tensor(5.0)})
    assert total == 1 and logged.keys() == {"loss", "loss_recon", "l_my_loss"}
    with pytest.raises(CSDError, match="the loss is not finite"):
        model.parse_losses({"loss_recon": torch.tensor(float("nan"))})


def train_two(folder: Path) -> None:
    """The runner of config.py in two processes."""
    command = ("-m", "csd_plugin.integrate.run_mmengine", "config.py", "--launcher", "pytorch")
    for process in begin_two(folder, *command, CUDA_VISIBLE_DEVICES="-1"):
        _, said = process.communicate()
        assert process.returncode == 0, said[-3000:]


def test_two_processes_train_one_student(tmp_path, tiny_rain, tiny_teacher, student):
    """By gloo: half of the batch each gives the student of one process."""
    content = config(tmp_path, tiny_rain, tiny_teacher, student, **{"train_dataloader.batch_size": 1})
    (tmp_path / "config.py").write_text("\n".join(f"{key} = {value!r}" for key, value in content.items()))
    train_two(tmp_path)
    alone = train(config(tmp_path / "alone", tiny_rain, tiny_teacher, student))
    together = read_state_dict(tmp_path / "work" / "iter_2.pth")
    for name, value in alone.model.distiller.student.state_dict().items():
        torch.testing.assert_close(together[name], value, rtol=1e-3, atol=1e-5)


WATCHED = """
import os, signal, sys
from csd_plugin import peers
from csd_plugin.integrate.mmengine.model import CSDDistiller
from csd_plugin.integrate.run_mmengine import main

peers._BEAT = 0.1
forward = CSDDistiller.forward

def dying(self, *given, **named):
    if self.iteration == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(self, *given, **named)

CSDDistiller.forward = dying
sys.exit(main(["config.py", "--launcher", "pytorch"]))
"""


def test_a_process_that_dies_is_named_by_the_other(tmp_path, tiny_rain, tiny_teacher, student):
    """Each is on a host of its own, as it were: no launcher ends the one that is left."""
    content = config(tmp_path, tiny_rain, tiny_teacher, student, **{"train_cfg.max_iters": 10**6})
    (tmp_path / "config.py").write_text("\n".join(f"{key} = {value!r}" for key, value in content.items()))
    (tmp_path / "watched.py").write_text(WATCHED)
    survivor, victim = begin_two(tmp_path, "watched.py", hosts=2, CUDA_VISIBLE_DEVICES="-1")
    _, said = survivor.communicate(timeout=300)
    victim.communicate()
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert (
        f"rank 1 (host {socket.gethostname()}, process {victim.pid}) has died" in line and "--resume resumes it" in line
    )
    assert survivor.returncode == 2


AMP_ON_A_CPU = """
import mmengine.optim.optimizer.amp_optimizer_wrapper as wrapper
wrapper.is_cuda_available = lambda: True  # it asks for a GPU, and then computes where the model is
"""


def test_two_processes_sum_gradients_in_half_precision(tmp_path, tiny_rain, tiny_teacher, student):
    """A step after every second iteration, of gradients in bf16 that two processes exchange by gloo.

    Four clips are in a step, as in the one step of a process alone with all four, in float32.
    """
    same_rate = {"optim_wrapper.optimizer": {"type": "SGD", "lr": 0.1}, "param_scheduler": ...}
    changes = {"train_dataloader.batch_size": 1, "optim_wrapper.accumulative_counts": 2, **same_rate}
    changes |= {"optim_wrapper.type": "AmpOptimWrapper", "optim_wrapper.dtype": "bfloat16"}
    content = config(tmp_path, tiny_rain, tiny_teacher, student, **changes)
    content["custom_imports"]["imports"] = ["amp_on_a_cpu", *content["custom_imports"]["imports"]]
    (tmp_path / "amp_on_a_cpu.py").write_text(AMP_ON_A_CPU)
    (tmp_path / "config.py").write_text("\n".join(f"{key} = {value!r}" for key, value in content.items()))
    train_two(tmp_path)

    alone = {"train_dataloader.batch_size": 4, "train_cfg.max_iters": 1, **same_rate}
    whole = train(config(tmp_path / "alone", tiny_rain, tiny_teacher, student, **alone))
    start, together = read_state_dict(student), read_state_dict(tmp_path / "work" / "iter_2.pth")
    steps = [
        torch.cat([(state[name] - start[name]).flatten() for name in start])
        for state in (together, whole.model.distiller.student.state_dict())
    ]
    assert not torch.equal(*steps)
    assert (steps[0] - steps[1]).norm() < 0.05 * steps[1].norm()


def test_the_launcher_says_what_is_wrong_in_one_line(tmp_path, capsys):
    from csd_plugin.integrate.run_mmengine import main

    assert main([str(tmp_path / "gone.py")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'gone.py'} does not exist; check the path\n"
    (tmp_path / "broken.py").write_text("model = dict(")
    assert main([str(tmp_path / "broken.py")]) == 2
    assert capsys.readouterr().err.splitlines()[0].startswith(f"error: {tmp_path / 'broken.py'}: cannot be read")


@pytest.mark.parametrize(
    ("changes", "flags", "words"),
    [
        ({"model": ...}, [], "model is missing"),
        ({"model.student": "tiny"}, [], "model.student is 'tiny': give a dict"),
        ({"model.teachers": [{"type": "SLDNet"}]}, [], "model.teachers is "),
        ({"custom_imports.imports": ["no_such_project"]}, [], "MMEngine: No module named 'no_such_project'"),
        ({"model.studnt": 3}, [], "unexpected keyword argument 'studnt'; check the config"),
        ({"model.type": "csd.CSDDistil"}, [], "csd.CSDDistil is not in the mmengine::model registry; check the config"),
        ({"train_dataloader": ...}, [], "train_dataloader, train_cfg, and optim_wrapper should be either all None"),
        ({"optim_wrapper.type": "AmpOptimWrapper"}, [], "only available training on gpu"),
        ({"train_dataloader.dataset.dataroot": "gone"}, [], "data root gone does not exist"),
        ({}, ["--test", "wide"], "test_dataloader is missing"),
        ({}, ["--launcher", "pytorch"], "--launcher pytorch is for torchrun"),
        ({}, ["--work-dir", "config.py/below"], "config.py/below: not a directory"),
    ],
)
def test_the_launcher_says_what_a_config_lacks_in_one_line(
    tmp_path, tiny_rain, tiny_teacher, student, monkeypatch, capfd, changes, flags, words
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert launched(config(tmp_path, tiny_rain, tiny_teacher, student, **changes), Path(), *flags) == 2
    said = capfd.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: ") and words in said[-1] and "Traceback" not in "".join(said)


@pytest.mark.parametrize(
    "words",
    ["could not determine the home directory for '~/.cache', set HOME", "Could not determine home directory."],
)
def test_a_user_without_a_home_folder_is_one_line(tmp_path, monkeypatch, capsys, words):
    """As in a container that runs under any number: yapf, which MMEngine imports, asks platformdirs for its cache."""
    from csd_plugin.integrate import run_mmengine

    def run(*_):
        raise RuntimeError(words)

    monkeypatch.setattr(run_mmengine, "_run", run)
    assert run_mmengine.main([str(tmp_path / "config.py")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == "error: a library looks for your home folder, and there is none; set HOME to a folder"


def test_two_runs_into_one_folder_are_refused(tmp_path, capsys):
    from csd_plugin.integrate.run_mmengine import main

    (tmp_path / "config.py").write_text("model = dict(type='csd.CSDDistiller')\n")
    with alone(tmp_path / "work"):
        assert main([str(tmp_path / "config.py"), "--work-dir", str(tmp_path / "work")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/work: another command is writing there now")
    assert not (tmp_path / "work").exists()


def test_a_config_that_does_not_run_is_one_line(tmp_path, capsys):
    from csd_plugin.integrate.run_mmengine import main

    (tmp_path / "config.py").write_text("model = undefined")
    assert main([str(tmp_path / "config.py")]) == 2
    assert "config.py: cannot be read as a config of MMEngine: name 'undefined'" in capsys.readouterr().err


def test_the_config_that_ships_builds_its_model():
    from mmengine.config import Config
    from mmengine.registry import HOOKS, METRICS, MODELS

    import csd_plugin.integrate.mmengine  # noqa: F401

    content = Config.fromfile(str(ROOT / "options" / "mmengine" / "tiny_csd_cpu.py"))
    model = MODELS.build(content.model)
    assert equal(dict(model.distiller.student.state_dict()), read_state_dict(ROOT / "csd_plugin/weights/tiny.pth"))
    assert METRICS.build(content.val_evaluator) and HOOKS.build(content.custom_hooks[0])

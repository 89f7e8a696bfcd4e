"""What runs do and say about GPUs, as far as a machine without one can show it."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch
import yaml
from toolbox import distill_options, scored_set, scoring_options, train_options

from csd_plugin import devices
from csd_plugin.options.files import read_options


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_auto_is_one_gpu_though_there_are_two(two_gpus, tiny_rain, tmp_path):
    file = tmp_path / "auto.yml"
    file.write_text(yaml.safe_dump(train_options(tiny_rain, num_gpu="auto")))
    assert read_options(file)["num_gpu"] == 1
    file.write_text(yaml.safe_dump(train_options(tiny_rain, num_gpu="auto", model_type="EDVRModel")))
    assert read_options(file)["num_gpu"] == "auto"  # the toolbox's models take all, as they are written


@pytest.mark.parametrize("job", ["train", "test", "distill"])
def test_several_gpus_in_one_process_are_refused_with_the_line_to_use(
    two_gpus, launcher, tiny_rain, tiny_teacher, capfd, job
):
    options = {
        "train": train_options(tiny_rain, num_gpu=2),
        "test": scoring_options(tiny_rain, tiny_teacher, num_gpu=2),
        "distill": distill_options(tiny_rain, tiny_teacher, num_gpu=2),
    }[job]
    job = job.replace("distill", "train")
    assert getattr(launcher, job)(options) == 2
    assert f"torchrun --nproc_per_node 2 -m csd_plugin.{job} .. --launcher pytorch" in capfd.readouterr().err
    assert launcher.written() == []


def test_the_network_is_validated_uncompiled(launcher, tiny_rain, monkeypatch):
    """With ema_decay 0 it is the very one that trains, and each size of frame would be compiled anew."""
    shapes = []

    def record(function, *args, **kwargs):
        def run(window):
            shapes.append(tuple(window.shape[3:]))
            return function(window)

        return run

    monkeypatch.setattr(torch, "compile", record)
    monkeypatch.setattr("csd_plugin.models.validation.fold", lambda network: network)  # as on a GPU
    options = train_options(tiny_rain, **{"train.compile": True, "train.ema_decay": 0})
    options["datasets"]["val"] = scored_set(tiny_rain, name="val")
    options["val"] = {"val_freq": 1, "save_img": False, "pbar": False}
    assert launcher.train(options) == 0
    assert shapes == [(24, 24)] * 2


def test_a_loss_below_zero_is_a_warning(launcher, tiny_rain, monkeypatch, capfd):
    def rounded_badly(outputs, truths):
        return torch.stack([(x - y).mean(dim=(1, 2, 3)) + 1.25 for x, y in zip(outputs, truths, strict=True)], dim=1)

    monkeypatch.setattr("csd_plugin.losses.ssim._ssim", rounded_badly)
    assert launcher.train(train_options(tiny_rain)) == 0
    assert "l_recon is -0.2" in capfd.readouterr().err


def test_a_gpu_that_is_slow_in_16_bits_is_said_at_the_start(launcher, tiny_rain, monkeypatch, capfd):
    seen = []

    def warn(networks, dtype, device):
        seen.append(([type(network).__name__ for network in networks], dtype, device.type))
        return ["this GPU is slow"]

    monkeypatch.setattr("csd_plugin.models.video_derain_model.half_precision_warnings", warn)
    assert launcher.train(train_options(tiny_rain, **{"train.autocast": "bf16"})) == 0
    assert seen == [(["SLDNet"], torch.bfloat16, "cpu")]
    assert "train.autocast: this GPU is slow" in capfd.readouterr().err


def test_batches_that_are_copied_ahead_are_kept_until_they_are_read(monkeypatch):
    """The toolbox's prefetcher copies on a stream of its own."""
    importlib.import_module("csd_plugin.train")
    prefetcher = importlib.import_module("basicsr.data.prefetch_dataloader").CUDAPrefetcher

    class Copied(torch.Tensor):
        is_cuda = True

        def record_stream(self, stream):
            recorded.append(stream)

    recorded, read = [], SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *device: read)
    ahead = prefetcher.__new__(prefetcher)
    batch = {"lq": torch.zeros(2).as_subclass(Copied), "gt": torch.zeros(2).as_subclass(Copied), "key": ["a"]}
    ahead.stream, ahead.batch, ahead.loader = None, batch, iter(())
    assert ahead.next() is batch and recorded == [read, read]
    assert ahead.next() is None


def test_frames_are_scored_in_exact_float32(launcher, tiny_rain, monkeypatch):
    settings = []
    predict = importlib.import_module("csd_plugin.archs.interface").Interface.run

    def run(self, network, clips, num_target):
        if not torch.is_grad_enabled():
            settings.append([getattr(owner, name) for owner, name, _ in devices._rounding()])
        return predict(self, network, clips, num_target)

    monkeypatch.setattr("csd_plugin.archs.interface.Interface.run", run)
    options = train_options(tiny_rain)
    options["datasets"]["val"] = scored_set(tiny_rain, name="val", frame_range=[1, 1])
    options["val"] = {"val_freq": 2, "save_img": False, "pbar": False}
    assert launcher.train(options) == 0
    exact = [value for _, _, value in devices._rounding()]
    assert settings and all(setting == exact for setting in settings)

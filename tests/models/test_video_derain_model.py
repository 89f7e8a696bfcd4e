"""Stage 1 from the command line's point of view: what is trained, written, and restored."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from toolbox import changed, equal, train_options
from torch import nn

from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.models.distill_model import DistillModel
from csd_plugin.models.video_derain_model import VideoDerainModel


def test_a_run_trains_and_writes_plain_and_averaged_weights(launcher, tiny_rain):
    assert launcher.train(train_options(tiny_rain, **{"train.total_iter": 3})) == 0

    experiment = launcher.folder / "experiments" / "run"
    assert sorted(path.name for path in (experiment / "models").iterdir()) == ["net_g_2.pth", "net_g_latest.pth"]
    assert [path.name for path in (experiment / "training_states").iterdir()] == ["2.state"]
    model = launcher.models[-1]
    assert equal(launcher.weights("net_g_latest"), model.net_g.state_dict())
    assert equal(launcher.weights("net_g_latest", key="params_ema"), model.net_g_ema.state_dict())
    assert not equal(model.net_g.state_dict(), model.net_g_ema.state_dict())
    assert not equal(launcher.weights("net_g_2"), launcher.weights("net_g_latest"))
    SLDNet(preset="student2", num_feat=4).load_state_dict(launcher.weights("net_g_latest"))


def test_runs_repeat_bit_for_bit(launcher, tiny_rain):
    for name in ("one", "two"):
        assert launcher.train(train_options(tiny_rain, name=name)) == 0
    assert equal(launcher.weights("net_g_latest", "one"), launcher.weights("net_g_latest", "two"))


def test_resume_restores_weights_average_optimizer_and_schedule(launcher, tiny_rain, monkeypatch):
    options = train_options(tiny_rain, **{"train.total_iter": 2})
    assert launcher.train(options) == 0
    first = launcher.models[-1]

    restored = _record_resume(monkeypatch)
    assert launcher.train(changed(options, {"train.total_iter": 4}), "--auto_resume") == 0
    assert equal(restored["net_g"], first.net_g.state_dict())
    assert equal(restored["net_g_ema"], first.net_g_ema.state_dict())
    assert restored["scheduler"] == first.schedulers[0].state_dict()
    before, after = first.optimizer_g.state_dict(), restored["optimizer"]
    assert before["param_groups"] == after["param_groups"]
    assert before["state"].keys() == after["state"].keys() and before["state"]
    assert all(equal(before["state"][i], after["state"][i]) for i in before["state"])
    # halved at iterations 1 and 3, counted from the first run's start
    assert launcher.models[-1].get_current_learning_rate() == [0.00025]
    assert (launcher.folder / "experiments/run/models/net_g_4.pth").is_file()


def _record_resume(monkeypatch) -> dict:
    """What the model holds right after its resume."""
    from csd_plugin.models.video_derain_model import VideoDerainModel

    restored = {}
    resume_training = VideoDerainModel.resume_training

    def record(self, state):
        resume_training(self, state)
        restored.update(
            net_g=copy.deepcopy(self.net_g.state_dict()),
            net_g_ema=copy.deepcopy(self.net_g_ema.state_dict()),
            optimizer=copy.deepcopy(self.optimizer_g.state_dict()),
            scheduler=dict(self.schedulers[0].state_dict()),
        )

    monkeypatch.setattr(VideoDerainModel, "resume_training", record)
    return restored


def test_a_step_is_one_backward_and_one_optimizer_step(launcher, tiny_rain, monkeypatch):
    counts = {"backward": 0, "step": 0}
    backward, step = torch.Tensor.backward, torch.optim.AdamW.step
    monkeypatch.setattr(torch.Tensor, "backward", _counted(counts, "backward", backward))
    monkeypatch.setattr(torch.optim.AdamW, "step", _counted(counts, "step", step))
    optimizer = {"type": "AdamW", "lr": 0.001, "weight_decay": 0.01}
    assert launcher.train(train_options(tiny_rain, **{"train.total_iter": 3, "train.optim_g": optimizer})) == 0
    assert counts == {"backward": 3, "step": 3}
    assert type(launcher.models[-1].optimizer_g) is torch.optim.AdamW


def _counted(counts, name, function):
    def wrapper(*args, **kwargs):
        counts[name] += 1
        return function(*args, **kwargs)

    return wrapper


def test_grad_clip_bounds_what_the_optimizer_sees(launcher, tiny_rain, monkeypatch):
    norms = []
    step = torch.optim.Adam.step

    def recording(self, *args, **kwargs):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm().item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", recording)
    assert launcher.train(train_options(tiny_rain, name="free")) == 0
    assert launcher.train(train_options(tiny_rain, name="clipped", **{"train.grad_clip": 0.001})) == 0
    assert min(norms[:2]) > 0.002
    assert norms[2:] == pytest.approx([0.001, 0.001], rel=1e-3)
    assert float(launcher.models[-1].log_dict["grad_norm"]) > 0.002  # what it was before


def test_averaging_copies_buffers(launcher):
    from csd_plugin.models.video_derain_model import VideoDerainModel

    model = object.__new__(VideoDerainModel)
    model.net_g, model.net_g_ema = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    model.net_g(torch.randn(4, 2, 3, 3) + 5)
    nn.init.constant_(model.net_g.weight, 3.0)
    model.model_ema(0.75)
    assert model.net_g_ema.weight.tolist() == [1.5, 1.5]
    assert torch.equal(model.net_g_ema.running_mean, model.net_g.running_mean)
    assert model.net_g_ema.num_batches_tracked == 1


def test_bf16_changes_the_networks_arithmetic_and_nothing_else(launcher, tiny_rain, monkeypatch):
    seen = set()
    forward = nn.Conv3d.forward

    def recording(self, x):
        result = forward(self, x)
        seen.add(result.dtype)
        return result

    monkeypatch.setattr(nn.Conv3d, "forward", recording)
    assert launcher.train(train_options(tiny_rain, **{"train.autocast": "bf16"})) == 0
    assert seen == {torch.bfloat16}
    weights = launcher.weights("net_g_latest")
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in weights.values())
    model = launcher.models[-1]
    assert model.run_network(model.net_g, model.lq, 2, model.interface_of(model.net_g)).dtype == torch.float32


def test_starting_weights_are_loaded(launcher, tiny_rain, tmp_path):
    network = SLDNet(preset="student2", num_feat=4, init_type="kaiming")
    torch.save({"three_dim_model": network.state_dict()}, tmp_path / "authors.pth")
    options = train_options(tiny_rain, **{"path.pretrain_network_g": "authors.pth", "train.optim_g.lr": 1e-30})
    assert launcher.train(options) == 0
    for key in ("params", "params_ema"):
        for name, weight in launcher.weights("net_g_latest", key=key).items():
            torch.testing.assert_close(weight, network.state_dict()[name], rtol=1e-6, atol=1e-20)


def test_frames_kept_on_the_device_train_to_the_same_weights(launcher, tiny_rain):
    for name, kind in (("loaded", "PairedVideoDataset"), ("resident", "ResidentVideoDataset")):
        assert launcher.train(train_options(tiny_rain, name=name, **{"datasets.train.type": kind})) == 0
    assert equal(launcher.weights("net_g_latest", "loaded"), launcher.weights("net_g_latest", "resident"))


def test_steps_of_a_model_with_other_losses_are_not_taken_for_its_own():
    """They may depend on anything, so they are not replayed."""
    for model in (VideoDerainModel, DistillModel):
        other = type("Other", (model,), {"compute_losses": lambda self, iteration: ({}, {})})
        assert other.repeats(object.__new__(other), 1) is None
    assert VideoDerainModel.repeats(object.__new__(VideoDerainModel), 1) == ()


def test_the_time_left_counts_the_last_step(launcher, tiny_rain, monkeypatch):
    import basicsr.train as toolbox

    lines = []
    assert launcher.train(train_options(tiny_rain, **{"train.total_iter": 1})) == 0
    made = toolbox.MessageLogger(
        {"name": "n", "logger": {"print_freq": 1, "use_tb_logger": False}, "train": {"total_iter": 4}}
    )
    monkeypatch.setattr(made, "logger", type("Log", (), {"info": lambda _, text: lines.append(text)})())
    for done in (2, 4):
        made.start_time = time.time() - 10 * done - 0.5  # ten seconds a step
        made({"epoch": 0, "iter": done, "lrs": [0.1], "time": 10.0, "data_time": 0.0})
    assert ["[eta: 0:00:20" in lines[0], "[eta: 0:00:00" in lines[1]] == [True, True], lines

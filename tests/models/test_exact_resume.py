"""A run that was cut and resumed ends with the bits of one that was not: weights, average, cells, optimizer, data."""

from __future__ import annotations

import pytest
import torch
from toolbox import SHALLOW_STUDENT, changed, equal, scored_set, shallow_options
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from csd_plugin.archs import NETWORKS
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.data.datasets.paired_video import PairedVideoDataset
from csd_plugin.distill import OBJECTIVES
from csd_plugin.distill.interface import Objective, feature_pairs
from csd_plugin.errors import CSDError
from csd_plugin.models.video_derain_model import VideoDerainModel
from csd_plugin.types import Terms


def resumed_and_whole(launcher, options, *, cut: int, total: int) -> list[dict[str, dict[str, torch.Tensor]]]:
    """What a run of `total` steps and one that was cut at `cut` leave behind: every tensor of every file of theirs."""
    options = changed(options, {"train.total_iter": total, "logger.save_checkpoint_freq": cut})
    assert launcher.train(changed(options, {"name": "whole"})) == 0
    # the whole schedule is in the options of both; only the end comes early
    assert launcher.train(changed(options, {"name": "cut", "train.total_iter": cut})) == 0
    assert launcher.train(changed(options, {"name": "cut"}), "--auto_resume") == 0
    return [left_behind(launcher, name) for name in ("whole", "cut")]


def left_behind(launcher, name):
    experiment = launcher.folder / "experiments" / name
    files = {path.name: path for path in sorted(experiment.glob("models/*_latest.pth"))}
    assert "net_g_latest.pth" in files
    newest = max(experiment.glob("training_states/*.state"), key=lambda path: int(path.stem))
    content = {name: torch.load(path, weights_only=True) for name, path in files.items()}
    return content | {newest.name: torch.load(newest, weights_only=True)}


def assert_same(a, b, where=""):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_same(one, other, f"{where}/{index}")
    else:
        assert a == b, where


@pytest.mark.parametrize(
    ("workers", "autocast"), [(0, None), (1, "bf16"), (3, None)], ids=["0 fp32", "1 bf16", "3 fp32"]
)
def test_distillation_goes_on_to_the_last_bit(launcher, tiny_rain, shallow_teacher, workers, autocast):
    options = shallow_options(tiny_rain, shallow_teacher)
    options["datasets"]["train"] |= {"num_worker_per_gpu": workers, "batch_size_per_gpu": 3}
    options["train"]["autocast"] = autocast
    whole, cut = resumed_and_whole(launcher, options, cut=3, total=6)
    assert "objective_latest.pth" in whole
    assert_same(whole, cut)


def test_clips_in_their_own_order_go_on_with_the_next_one(launcher, tiny_rain, monkeypatch):
    """Cut in the middle of the second epoch of two batches."""
    seen = []
    feed = VideoDerainModel.feed_data
    monkeypatch.setattr(VideoDerainModel, "feed_data", lambda self, data: (seen.append(data["key"]), feed(self, data)))
    ordered = {"use_shuffle": False, "dataset_enlarge_ratio": 1}
    options = changed(shallow_options(tiny_rain), {f"datasets.train.{key}": value for key, value in ordered.items()})
    whole, cut = resumed_and_whole(launcher, options, cut=3, total=6)
    assert_same(whole, cut)
    of_an_epoch = [[f"{clip}_Rain_01/{first:05d}.png" for first in (1, 2)] for clip in ("t1", "t2")]
    assert seen == 2 * 3 * of_an_epoch


def test_weights_that_follow_gradients_go_on_too(launcher, tiny_rain, shallow_teacher):
    options = shallow_options(tiny_rain, shallow_teacher)
    options["train"]["distill_opt"]["weights"] = {"spatial": {"balance": 0.3}, "temporal": {"balance": 0.1, "until": 4}}
    whole, cut = resumed_and_whole(launcher, options, cut=3, total=6)
    assert set(whole["6.state"]["balance"]) == {"spatial", "temporal"} and "objective_latest.pth" in whole
    assert_same(whole, cut)


class Turns(nn.Module):
    """A recurrent network that goes backward in time for its first steps in training, and forward after them."""

    layout, num_frame, feature_tap = "sequence", 3, "tail"

    def __init__(self):
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, clip):
        state, made, order = 0.0, {}, range(clip.shape[1])
        for i in reversed(order) if self.steps < 3 else order:
            state = 0.5 * state + self.head(clip[:, i])
            made[i] = clip[:, i] + self.tail(state)
        self.steps += self.training and torch.is_grad_enabled()
        return torch.stack([made[i] for i in order], dim=1)


def test_the_order_in_which_layers_run_is_that_of_the_first_batch(launcher, tiny_rain, shallow_teacher, monkeypatch):
    from basicsr.utils.registry import ARCH_REGISTRY

    monkeypatch.setitem(NETWORKS._rows, "Turns", Turns)
    options = shallow_options(tiny_rain, shallow_teacher, network_g={"type": "Turns"})
    options["train"]["distill_opt"] |= {"taps": {"student": ["tail"], "teacher": ["conv22"], "adapters": ["resize"]}}
    whole, cut = resumed_and_whole(launcher, options, cut=3, total=6)
    ARCH_REGISTRY._obj_map.pop("Turns", None)
    assert whole["6.state"]["orders"]["student (Turns) tail, 4 frames"] == "BACKWARD"
    assert_same(whole, cut)


def test_a_run_goes_on_under_another_name(launcher, tiny_rain, shallow_teacher):
    """With the networks and cells of the state's experiment, also where the new one has some of its own."""
    steps = {"train.total_iter": 4, "logger.save_checkpoint_freq": 2}
    options = shallow_options(tiny_rain, shallow_teacher, name="whole", **steps)
    assert launcher.train(options) == 0
    state = {"path.resume_state": "experiments/whole/training_states/2.state"}
    assert launcher.train(changed(options, {"name": "branch", **state})) == 0
    assert_same(left_behind(launcher, "whole"), left_behind(launcher, "branch"))
    assert (launcher.folder / "experiments/branch/options.yml").is_file()
    assert list((launcher.folder / "experiments/branch").glob("train_branch_*.log"))

    assert launcher.train(changed(options, {"name": "other", "manual_seed": 4})) == 0
    assert launcher.train(changed(options, {"name": "other", **state})) == 0
    assert_same(left_behind(launcher, "whole"), left_behind(launcher, "other"))


def test_a_state_without_its_networks_begins_no_experiment(launcher, tiny_rain, capfd):
    options = shallow_options(tiny_rain)
    assert launcher.train(options) == 0
    (launcher.folder / "experiments/run/training_states/2.state").rename("2.state")
    capfd.readouterr()
    assert launcher.train(changed(options, {"name": "branch", "path.resume_state": "2.state"})) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: path.resume_state: 2.state: ")
    assert "branch/models/net_g_2.pth, which was saved with it, does not exist" in error
    assert not (launcher.folder / "experiments/branch").exists()


def test_a_resumed_run_whose_epochs_are_over_is_no_finished_one(launcher, tiny_rain, capfd):
    options = shallow_options(tiny_rain, **{"datasets.train.batch_size_per_gpu": 8, "train.total_iter": 4})
    assert launcher.train(options) == 0  # an epoch each
    (launcher.folder / "experiments/run/models/net_g_latest.pth").unlink()
    longer = {"datasets.train.batch_size_per_gpu": 1, "train.total_iter": 6}
    assert launcher.train(changed(options, longer), "--auto_resume") == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: datasets.train: training has ended after 4 of 6 iterations")
    assert not (launcher.folder / "experiments/run/models/net_g_latest.pth").exists()


class Heads(Objective):
    """Somebody's own: a head for each network, by its name, and batch norm, which keeps means and a count."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher, self.norm = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3)

    @property
    def terms(self):
        return ("heads",)

    def forward(self, student, teacher, target):
        [(ours, theirs)] = feature_pairs("Heads", student, teacher, count=1)
        ours, theirs = self.norm(self.student(ours.flatten(0, 1))), self.teacher(theirs.flatten(0, 1))
        return Terms({"heads": F.mse_loss(ours, theirs)}, {})


class LazyHeads(Heads):
    """The same, which learns from the first batch how many channels the features have."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher, self.norm = nn.LazyConv2d(3, 1), nn.LazyConv2d(3, 1), nn.LazyBatchNorm2d()


class OnlyLazyHeads(LazyHeads):
    """Without batch norm, whose count is there from the start."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Identity()


def own_objective(monkeypatch, cls, data, teacher, weight=0.1):
    monkeypatch.setitem(OBJECTIVES._rows, cls.__name__, cls)
    objective = {"type": cls.__name__, "weights": {"heads": weight}}
    return shallow_options(data, teacher, **{"train.distill_opt": objective})


def test_an_objective_with_parts_of_any_name_goes_on(launcher, tiny_rain, shallow_teacher, monkeypatch):
    options = own_objective(monkeypatch, Heads, tiny_rain, shallow_teacher)
    whole, cut = resumed_and_whole(launcher, options, cut=2, total=4)
    assert {"student.weight", "teacher.weight", "norm.running_mean"} <= whole["objective_latest.pth"]["params"].keys()
    assert_same(whole, cut)


@pytest.mark.parametrize("objective", [LazyHeads, OnlyLazyHeads])
@pytest.mark.parametrize("seen", [True, False])
def test_an_objective_with_lazy_modules_goes_on(launcher, tiny_rain, shallow_teacher, monkeypatch, objective, seen):
    """Also where it has not seen a batch before the cut."""
    weight = 0.1 if seen else {"schedule": "stop_at", "start": 0, "end": 0.1, "iters": 2}
    options = own_objective(monkeypatch, objective, tiny_rain, shallow_teacher, weight)
    whole, cut = resumed_and_whole(launcher, options, cut=2, total=4)
    assert whole["objective_latest.pth"]["params"]["student.weight"].shape == (3, 4, 1, 1)
    assert_same(whole, cut)


def test_lazy_modules_of_a_state_without_their_weights_are_one_line(
    launcher, tiny_rain, shallow_teacher, monkeypatch, capsys
):
    options = own_objective(monkeypatch, OnlyLazyHeads, tiny_rain, shallow_teacher)
    assert launcher.train(options) == 0
    (launcher.folder / "experiments/run/models/objective_2.pth").unlink()
    assert launcher.train(changed(options, {"train.total_iter": 3}), "--auto_resume") == 2
    assert (
        "belongs to another run: its optimizer has a lazy weight whose size is in no file"
        in capsys.readouterr().err.splitlines()[-1]
    )


class Lazy(nn.Module):
    """Somebody's own network, which does not say how many channels it takes."""

    layout, feature_tap = "image", "tail"

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.LazyConv2d(4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)


class Counts(nn.Conv2d):
    """One whose state dict has more than tensors."""

    layout, feature_tap = "image", ""

    def __init__(self) -> None:
        super().__init__(3, 3, 1)

    def get_extra_state(self):
        return {"passes": 0}

    def set_extra_state(self, state) -> None:
        pass


@pytest.mark.parametrize("role", ["network_g", "network_t"])
@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (Lazy, "Lazy: head.weight is lazy: it gets its size"),
        (Counts, "Counts: _extra_state is a dict, and checkpoints hold tensors alone; let get_extra_state return a"),
    ],
)
def test_networks_that_cannot_be_saved_are_refused_before_anything_is_written(
    launcher, tiny_rain, shallow_teacher, monkeypatch, capsys, role, cls, words
):
    from basicsr.utils.registry import ARCH_REGISTRY

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, cls.__name__, cls)
    assert launcher.train(shallow_options(tiny_rain, shallow_teacher, **{role: {"type": cls.__name__}})) == 2
    assert f"{role}: {words}" in capsys.readouterr().err
    assert launcher.written() == []


def test_several_processes_refuse_an_objective_with_lazy_modules(tiny_rain, shallow_teacher, monkeypatch):
    from csd_plugin.models.preflight import check_parts

    options = own_objective(monkeypatch, LazyHeads, tiny_rain, shallow_teacher)
    check_parts({**options, "is_train": True, "dist": False})
    with pytest.raises(CSDError, match=r"train\.distill_opt: LazyHeads: student\.weight is lazy: .* several processes"):
        check_parts({**options, "is_train": True, "dist": True})


class Spectral(nn.Module):
    """Somebody's own network of images, with complex weights."""

    layout, feature_tap = "image", "tail"

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.gain = nn.Parameter(torch.randn(4, 1, 1, dtype=torch.cfloat))

    def forward(self, image):
        spectrum = torch.fft.rfft2(self.head(image)) * self.gain
        return image + self.tail(torch.fft.irfft2(spectrum, s=image.shape[-2:]))


def test_complex_weights_learn_teach_and_go_on(launcher, tiny_rain, monkeypatch):
    from basicsr.utils.registry import ARCH_REGISTRY

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "Spectral", Spectral)
    teacher = launcher.folder / "teacher.pth"
    torch.save({"params": Spectral().state_dict()}, teacher)
    networks = {key: {"type": "Spectral"} for key in ("network_g", "network_t")}
    options = shallow_options(tiny_rain, teacher, **networks, **{"train.health": False, "train.grad_clip": 0.1})
    whole, cut = resumed_and_whole(launcher, options, cut=2, total=4)
    assert whole["net_g_latest.pth"]["params"]["gain"].is_complex()
    assert_same(whole, cut)


def test_the_weights_that_a_resumed_run_started_from_may_be_gone(launcher, tiny_rain):
    start = launcher.folder / "start.pth"
    torch.save(SLDNet(**SHALLOW_STUDENT).state_dict(), start)
    options = shallow_options(tiny_rain, **{"path.pretrain_network_g": str(start)})
    assert launcher.train(options) == 0
    start.unlink()
    assert launcher.train(changed(options, {"train.total_iter": 3}), "--auto_resume") == 0


@pytest.mark.parametrize("key", ["params", "params_ema", "state_dict", None, "absent"])
def test_the_student_goes_on_whatever_entry_it_started_from(launcher, tiny_rain, key):
    """And not its average, which is in the saved file, too."""
    start = launcher.folder / "start.pth"
    torch.save({"state_dict": SLDNet(**SHALLOW_STUDENT).state_dict()}, start)
    options = shallow_options(tiny_rain, **{"path.pretrain_network_g": str(start)})
    options["path"] |= {} if key == "absent" else {"param_key_g": key}
    assert_same(*resumed_and_whole(launcher, options, cut=2, total=4))


@pytest.mark.parametrize("ignored", [True, False])
def test_what_is_loaded_on_resume_has_its_entry(tmp_path, ignored):
    """Also of a network that starts anew, and of one that was never saved."""
    from basicsr.utils.misc import check_resume

    networks = {"network_g": {}, "network_d": {}, "network_t": {}}
    names = [name.removeprefix("network_") for name in networks]
    path = {"resume_state": "4.state", "models": str(tmp_path)}
    path |= {f"pretrain_network_{name}": f"start_{name}.pth" for name in names}
    path |= {f"param_key_{name}": "params_ema" if name == "t" else "mine" for name in names}
    path |= {"param_key_g": "params_ema", "ignore_resume_networks": ["network_g"]} if ignored else {}
    (tmp_path / "net_d_4.pth").touch()
    opt = {**networks, "path": path.copy()}
    check_resume(opt, 4)
    saved = {f"pretrain_network_{name}": str(tmp_path / f"net_{name}_4.pth") for name in "gd"}
    entries = {"param_key_g": "params", "param_key_d": "params"}
    if ignored:
        del saved["pretrain_network_g"], entries["param_key_g"]
    assert opt["path"] == path | saved | entries


def test_a_fused_optimizer_goes_on_too(launcher, tiny_rain, capfd):
    """And a GPU's option in the same file, which is said to have no effect here."""
    options = shallow_options(tiny_rain, **{"train.optim_g.fused": True, "train.cuda_graph": True})
    whole, cut = resumed_and_whole(launcher, options, cut=2, total=4)
    assert whole["4.state"]["optimizers"][0]["param_groups"][0]["fused"]
    assert_same(whole, cut)
    if not torch.cuda.is_available():
        assert "train.cuda_graph has no effect without a GPU" in capfd.readouterr().err


def test_the_cut_may_be_anywhere_in_the_epochs(launcher, tiny_rain):
    """At the very end of the first epoch, and inside the second."""
    options = shallow_options(tiny_rain)
    options["datasets"]["train"]["dataset_enlarge_ratio"] = 1
    train = options["datasets"]["train"]
    batches = len(PairedVideoDataset(train)) // train["batch_size_per_gpu"]
    assert batches > 1
    for cut in (batches, batches + 1):
        whole, resumed = resumed_and_whole(launcher, options, cut=cut, total=2 * batches + 1)
        assert_same(whole, resumed)


def test_random_numbers_inside_a_network_go_on(launcher, tiny_rain, monkeypatch):
    """A network with dropout draws in every step, each time other numbers."""
    original, dropped = SLDNet.forward, []

    def forward(self, window):
        output = torch.dropout(original(self, window), 0.5, self.training)
        if self.training and torch.is_grad_enabled():
            dropped.append((output[0, 0] == 0).tolist())
        return output

    monkeypatch.setattr(SLDNet, "forward", forward)
    whole, cut = resumed_and_whole(launcher, shallow_options(tiny_rain), cut=2, total=4)
    assert_same(whole, cut)
    assert len(set(map(str, dropped))) == 4
    assert not equal(whole["net_g_latest.pth"]["params"], launcher.weights("net_g_2", "whole"))


@pytest.mark.parametrize("seed", [4, None])
def test_the_seed_goes_on(launcher, tiny_rain, monkeypatch, capfd, seed):
    """Whatever the file says then, or where each start draws one: data and network draw by the first, in every part."""
    forward = SLDNet.forward
    monkeypatch.setattr(
        SLDNet, "forward", lambda self, window: torch.dropout(forward(self, window), 0.5, self.training)
    )
    options = shallow_options(tiny_rain, **{"train.total_iter": 3, "logger.save_checkpoint_freq": 1})
    assert launcher.train(changed(options, {"name": "whole"})) == 0
    for last in (1, 2, 3):
        now = {"name": "cut", "train.total_iter": last, "manual_seed": 3 if last == 1 else seed}
        assert launcher.train(changed(options, now), *(["--auto_resume"] if last > 1 else [])) == 0
    assert capfd.readouterr().err.count("the run continues with its manual_seed 3") == 2
    assert_same(*(left_behind(launcher, name) for name in ("whole", "cut")))


def test_the_best_scores_are_remembered(launcher, tiny_rain):
    options = shallow_options(tiny_rain, **{"datasets.val": scored_set(tiny_rain)})
    options["val"] = {"val_freq": 1, "save_img": False}
    assert launcher.train(options) == 0
    path = launcher.folder / "experiments/run/training_states/2.state"
    state = torch.load(path, weights_only=True)
    [best] = state["best"].values()
    assert "nturain_y/psnr" in best
    best["nturain_y/psnr"] = (99.0, 1)
    torch.save(state, path)
    assert launcher.train(changed(options, {"train.total_iter": 3}), "--auto_resume") == 0
    [resumed] = launcher.models[-1].best_metric_results.values()
    assert resumed["nturain_y/psnr"] == (99.0, 1)


def test_a_state_without_a_place_in_the_data_is_resumed_from_the_epochs_start(launcher, tiny_rain, capfd):
    """Of an earlier version."""
    options = shallow_options(tiny_rain)
    assert launcher.train(options) == 0
    path = launcher.folder / "experiments/run/training_states/2.state"
    state = torch.load(path, weights_only=True)
    assert state["samples"]
    for key in ("samples", "manual_seed", "best"):
        del state[key]
    torch.save(state, path)
    assert launcher.train(options, "--auto_resume") == 0  # is at its end
    assert "no position in the data" not in capfd.readouterr().err
    assert launcher.train(changed(options, {"train.total_iter": 3}), "--auto_resume") == 0
    assert "2.state has no position in the data of PairedVideoDataset: epoch 0 starts again" in capfd.readouterr().err


class OwnClips(Dataset):
    """Somebody's own clips, which draw by torch and have no `places`."""

    def __init__(self, opt):
        self.size = opt["gt_size"]

    def __len__(self):
        return 4

    def __getitem__(self, index):
        clip = torch.rand(4, 3, self.size, self.size)
        return {"lq": clip, "gt": 0.9 * clip[1:3]}


def test_data_sets_of_others_start_their_epoch_anew_with_a_line(launcher, tiny_rain, monkeypatch, capfd):
    from basicsr.utils.registry import DATASET_REGISTRY

    feed, seen = VideoDerainModel.feed_data, []

    def feed_data(self, data):
        seen.append(data["lq"][0, 0, 0, 0, 0].item())
        feed(self, data)

    monkeypatch.setattr(VideoDerainModel, "feed_data", feed_data)
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "OwnClips", OwnClips)
    options = shallow_options(tiny_rain, **{"datasets.train.type": "OwnClips"})
    assert launcher.train(options) == 0
    assert launcher.train(changed(options, {"train.total_iter": 3}), "--auto_resume") == 0
    said = [line for line in capfd.readouterr().err.splitlines() if "has no position in the data of OwnClips" in line]
    assert len(said) == 1 and said[0].startswith("warning: ")
    assert said[0].endswith("epoch 0 starts again, so the run differs from an uninterrupted one")
    assert len(seen) == len(set(seen)) == 3  # no draw comes again

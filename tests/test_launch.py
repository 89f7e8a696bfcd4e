"""The launchers as their users meet them: mistakes are one line and status 2, and leave nothing half written."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import warm
import yaml
from synthetic import REAL, TEST, TRAIN, write_ntu_rain
from toolbox import (
    TEACHER,
    begin_two,
    changed,
    distill_options,
    equal,
    scored_set,
    scoring_options,
    train_options,
    two_processes,
)

from csd_plugin import compat
from csd_plugin.archs.checkpoint import load_network
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.data import workers
from csd_plugin.distill import OBJECTIVES
from csd_plugin.distill.interface import Objective
from csd_plugin.errors import CSDError
from csd_plugin.options import force_yml
from csd_plugin.weights import FASTEST, NETWORKS, find_checkpoint

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def refuses(launcher, capfd):
    """Launch, expect status 2, one line with these words and nothing written. Returns the line."""

    def check(options, *words, flags=(), job="train"):
        before = launcher.written()
        assert getattr(launcher, job)(options, *flags) == 2
        lines = capfd.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        for word in words:
            assert word in lines[0], f"{word!r} is not in {lines[0]!r}"
        assert launcher.written() == before
        return lines[0]

    return check


def stopped(launcher, capfd, options, *words, job="train"):
    """Launch, expect status 2 and one error line after what the run has logged."""
    capfd.readouterr()
    assert getattr(launcher, job)(options) == 2
    text = capfd.readouterr().err
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and text.rstrip().endswith(errors[0])
    assert "Traceback" not in text
    for word in words:
        assert word in errors[0], f"{word!r} is not in {errors[0]!r}"


def half_written(folder: Path) -> list[str]:
    """Temporary files, and checkpoints and results of a run that did not get so far."""
    return [
        str(path) for path in folder.rglob("*") if path.suffix in (".pth", ".state", ".json") or path.name[0] == "."
    ]


# ---------------------------------------------------------------------- where weights may come from
def test_a_network_that_comes_with_the_package_is_a_start_by_its_name(launcher, tiny_rain):
    network = {"type": type(load_network(find_checkpoint(FASTEST))).__name__, **NETWORKS[FASTEST].numbers}
    start = {"network_g": network, "path.pretrain_network_g": FASTEST, "train.total_iter": 1, "train.optim_g.lr": 1e-9}
    assert launcher.train(train_options(tiny_rain, **start)) == 0
    shipped = load_network(find_checkpoint(FASTEST)).state_dict()
    for key, value in launcher.weights("net_g_latest").items():
        torch.testing.assert_close(value, shipped[key], rtol=0, atol=1e-7)


def test_weights_stored_as_fp16_become_fp32_everywhere(launcher, tiny_rain, tmp_path):
    from basicsr.models.base_model import BaseModel

    def half(network):
        return {key: value.half() for key, value in network.state_dict().items()}

    teacher, student = half(SLDNet(preset="teacher", num_feat=4)), half(SLDNet(preset="student2", num_feat=4))
    for name, state in (("teacher", teacher), ("student", student)):
        torch.save({"params": state}, tmp_path / f"{name}.pth")
    options = distill_options(tiny_rain, tmp_path / "teacher.pth", **{"train.total_iter": 1})
    assert launcher.train(changed(options, {"path.pretrain_network_g": str(tmp_path / "student.pth")})) == 0
    model = launcher.models[-1]
    assert equal(model.teachers[0].network.state_dict(), {key: value.float() for key, value in teacher.items()})
    assert {value.dtype for value in launcher.weights("net_g_latest").values()} == {torch.float32}

    network = SLDNet(preset="student2", num_feat=4)
    BaseModel.load_network(model, network, str(tmp_path / "student.pth"))  # the toolbox's own
    assert equal(network.state_dict(), {key: value.float() for key, value in student.items()})


# ---------------------------------------------------------------------- found before the start
def test_wrong_data(refuses, tiny_rain, tmp_path_factory):
    refuses(train_options(Path("nowhere")), "nowhere", "does not exist", "give the folder")
    empty = tmp_path_factory.mktemp("empty")
    refuses(train_options(empty), str(empty), "no images found", TRAIN)
    wrong = tiny_rain / REAL
    refuses(train_options(wrong), str(wrong), "set dataroot to the folder that holds")
    options = train_options(tiny_rain)
    refuses(changed(options, {"datasets.train.clips": ["t3"]}), "'t3'", "did you mean")
    refuses(changed(options, {"datasets.train.num_frame": 10}), "t1", "9 frames are fewer than num_frame 10")
    refuses(changed(options, {"datasets.train.num_frame": 7}), "num_frame=7", "num_target=2", "even")
    refuses(changed(options, {"datasets.train.gt_size": 64}), "t1")


def test_a_training_is_not_tested_and_its_results_stay(refuses, launcher, tiny_rain):
    (launcher.folder / "results" / "run").mkdir(parents=True)
    before = sorted(launcher.folder.rglob("results/*"))
    options = train_options(tiny_rain, val={"val_freq": 1, "save_img": False})
    refuses(options, "options.yml: line", "datasets.train is for training; a test takes sets test_1", job="test")
    assert sorted(launcher.folder.rglob("results/*")) == before


def test_a_test_without_the_section_train_has_no_training_set(refuses, tiny_rain, tiny_teacher):
    options = scoring_options(tiny_rain, tiny_teacher, network_g=dict(TEACHER))
    options["datasets"]["train"] = train_options(tiny_rain)["datasets"]["train"]
    refuses(options, "datasets.train is for training; a test takes sets test_1", job="test")


def test_a_test_of_nothing_is_refused(refuses, tiny_rain, tiny_teacher):
    options = scoring_options(tiny_rain, tiny_teacher, network_g=dict(TEACHER), datasets={})
    refuses(options, "datasets is empty", job="test")


@pytest.mark.parametrize(("key", "advice"), [("test_1", "name it val"), ("train_2", "put all clips into one folder")])
def test_sets_that_a_training_does_not_take(refuses, tiny_rain, key, advice):
    options = train_options(tiny_rain)
    options["datasets"][key] = scored_set(tiny_rain) if key == "test_1" else options["datasets"]["train"]
    refuses(options, f"datasets.{key}: a training takes one set train", advice)


def test_resident_frames_and_loader_processes(refuses, tiny_rain):
    options = train_options(tiny_rain, **{"datasets.train.type": "ResidentVideoDataset"})
    refuses(changed(options, {"datasets.train.num_worker_per_gpu": 1}), "datasets.train", "num_worker_per_gpu to 0")
    refuses(changed(options, {"datasets.train.device": 0}), "datasets.train.device", "string")


def test_windows_longer_than_the_clips(refuses, tiny_rain, tiny_teacher):
    options = train_options(tiny_rain, **{"datasets.train.num_frame": 4, "datasets.train.num_target": 4})
    refuses(options, "windows of 1 frames", "network_g needs 3", "set num_frame to at least 6")
    options = distill_options(tiny_rain, tiny_teacher, **{"datasets.train.num_frame": 4})
    refuses(options, "windows of 3 frames", "network_t needs 7", "at least 8")
    options = train_options(tiny_rain, val={"val_freq": 1, "save_img": False})
    options["datasets"]["val"] = scored_set(tiny_rain, num_frame=1)
    refuses(options, "datasets.val", "network_g needs 3")


def test_a_distillation_without_a_teacher(launcher, tiny_rain, tiny_teacher, capfd):
    assert launcher.train(changed(distill_options(tiny_rain, tiny_teacher), {"network_t": ...})) == 2
    error = capfd.readouterr().err
    assert "network_t is missing" in error and "there is no teacher: give the section network_t" in error


def test_weights_that_a_teacher_has_more(launcher, refuses, tiny_rain, tiny_teacher):
    content = torch.load(tiny_teacher, weights_only=True)
    content["params_ema"]["aux.weight"] = torch.ones(2)
    torch.save(content, launcher.folder / "more.pth")
    options = distill_options(tiny_rain, launcher.folder / "more.pth")
    refuses(options, "has aux.weight, unknown", "or set path.strict_load_t: false if that is meant")
    options["path"]["strict_load_t"] = False
    assert launcher.train(options) == 0
    [log] = (launcher.folder / "experiments/run").glob("train_*.log")
    assert "more.pth has 1 tensors more, which SLDNet has no place for" in log.read_text()


def test_the_teachers_windows_do_not_matter_in_validation(launcher, tiny_rain, tiny_teacher):
    options = distill_options(tiny_rain, tiny_teacher, val={"val_freq": 2, "save_img": False})
    options["datasets"]["val"] = scored_set(tiny_rain)
    assert launcher.train(options) == 0


def test_wrong_checkpoints(refuses, tiny_rain, tiny_teacher, launcher):
    missing = {"path.pretrain_network_t": "teacher.pth"}
    refuses(distill_options(tiny_rain, tiny_teacher, **missing), "path.pretrain_network_t", "teacher.pth", "not exist")
    wide = {"network_t.num_feat": 6}
    line = refuses(distill_options(tiny_rain, tiny_teacher, **wide), str(tiny_teacher), "has shape", "expects")
    assert "conv1.weight" in line and "make the network's options match it" in line
    options = train_options(tiny_rain, **{"path.pretrain_network_g": str(tiny_teacher)})
    refuses(options, "path.pretrain_network_g", "has shape")
    refuses(options, "path.pretrain_network_g", "has shape", flags=["--auto_resume"])  # there is nothing to resume
    (launcher.folder / "cut.pth").write_bytes(tiny_teacher.read_bytes()[:3000])
    refuses(distill_options(tiny_rain, Path("cut.pth")), "cut.pth", "damaged")
    refuses(scoring_options(tiny_rain, Path("none.pth")), "none.pth", "does not exist", job="test")


def test_a_checkpoint_that_fits_in_part_alone(refuses, launcher, capfd, tiny_rain, tiny_teacher):
    torch.save({"params": {"body.0.weight": torch.zeros(3)}}, launcher.folder / "other.pth")
    for label in ("t", "g"):
        options = distill_options(tiny_rain, tiny_teacher)
        options["path"] |= {f"pretrain_network_{label}": "other.pth", f"strict_load_{label}": False}
        refuses(options, f"path.pretrain_network_{label}", "it has only 0 of the network's ", "for another network")

    start = SLDNet(preset="student2", num_feat=4).state_dict()
    del start["conv13.weight"]
    torch.save({f"module._orig_mod.{name}": value for name, value in start.items()}, launcher.folder / "part.pth")
    part = {"path.pretrain_network_g": "part.pth", "path.strict_load_g": False, "train.optim_g.lr": 1e-30}
    assert launcher.train(train_options(tiny_rain, **part)) == 0
    log = capfd.readouterr().err
    assert f"Loaded {len(start)} of {len(start) + 1} tensors of SLDNet from part.pth" in log
    assert "WARNING: part.pth lacks 1 of them, such as conv13.weight; these keep their initial values." in log
    trained = launcher.weights("net_g_latest", key="params_ema")
    assert all(torch.allclose(trained[name], value) for name, value in start.items())


def test_option_files_that_are_none(refuses, launcher, tiny_rain, capfd, monkeypatch):
    refuses("name: [1, 2", "options.yml", "line 1", "not valid YAML")
    refuses("- a\n- b\n", "options.yml: not an option file")
    refuses("", "options.yml: not an option file")
    refuses(b"\xff\xfe\x00\x80", "not UTF-8 text")
    refuses("name: a\nname", "not valid YAML")
    twice = yaml.safe_dump(train_options(tiny_rain)) + "scale: 1\n"
    refuses(twice, f"options.yml: line {twice.count(chr(10))}: scale appears twice")
    from csd_plugin import train

    monkeypatch.setattr(sys, "argv", ["train", "-opt", "missing.yml"])
    assert train.main() == 2
    assert capfd.readouterr().err == "error: missing.yml does not exist; check the path\n"
    monkeypatch.setattr(sys, "argv", ["train", "-opt", "."])
    assert train.main() == 2
    assert capfd.readouterr().err == "error: .: is a directory; check the path\n"


# As `python -m csd_plugin.JOB`, then what has been imported by its end.
MODULE = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print(end.code, *({"torch", "basicsr", "cv2"} & set(sys.modules)))
"""


@pytest.mark.parametrize("job", ["train", "test"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "options.yml does not exist; check the path"),
        ("name: [1, 2", 'the option file is not valid YAML: while parsing a flow sequence in "options.yml", line 1'),
        ("x" * 2**20 + "x", "options.yml: more than 1 MB of YAML"),
    ],
    ids=["missing", "no YAML", "too long"],  # pytest puts the id into the environment, which has limits
)
def test_a_file_that_cannot_be_read_is_said_before_slow_imports(job, text, message, tmp_path):
    if text:
        (tmp_path / "options.yml").write_text(text)
    run = subprocess.run(
        [sys.executable, "-c", MODULE, f"csd_plugin.{job}", "-opt", "options.yml"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.stdout == "2\n"
    assert run.stderr.startswith(f"error: {message}") and run.stderr.count("\n") == 1


def test_the_line_is_in_the_summary_of_torchrun(tmp_path, monkeypatch, capfd):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    from csd_plugin import train

    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    monkeypatch.setattr(sys, "argv", ["train", "-opt", "missing.yml"])
    assert train.main() == 2
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(file))
    assert "missing.yml does not exist; check the path" in str(ChildFailedError("train", {0: failure}))


def test_mistakes_of_form_and_of_what_is_named_are_one_list(launcher, tiny_rain, capfd):
    wrong = {
        "train.ema_decya": 0.5,
        "datasets.train.dataroot": "nowhere",
        "path.pretrain_network_g": "gone.pth",
        "train.optim_g.type": "Adan",
    }
    assert launcher.train(train_options(tiny_rain, **wrong)) == 2
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "error: options.yml: 4 problems" and len(lines) == 5
    for words in ("train.ema_decya is unknown", "nowhere does not exist", "gone.pth does not exist", "'Adan'"):
        assert [line for line in lines if words in line and line.startswith("options.yml: line ")]
    assert launcher.written() == []


def test_a_list_of_mistakes_of_what_the_toolbox_needs_first(launcher, tiny_rain, capfd):
    wrong = {"num_gpu": "all", "name": 3, "train.optim_g.lr": -1.0}
    text = yaml.safe_dump(train_options(tiny_rain, **wrong)) + "logger: {print_freq: 1}\n"
    assert launcher.train(text) == 2
    error = capfd.readouterr().err
    for words in ("num_gpu is 'all'", "name is 3", "logger appears twice in its section", "train.optim_g.lr is -1.0"):
        assert words in error


def test_option_files_run_no_code(refuses, launcher, tiny_rain):
    for tag in ("!!python/object/apply:os.system", "!!python/object/new:os.system"):
        options = yaml.safe_dump(train_options(tiny_rain)) + f"evil: {tag} ['touch ran']\n"
        refuses(options, "not valid YAML", "python/object")
    assert not (launcher.folder / "ran").exists()


@pytest.mark.parametrize("section", ["name", "num_gpu", "datasets", "network_g", "path", "train", "logger"])
def test_missing_sections(refuses, tiny_rain, section):
    refuses(changed(train_options(tiny_rain), {section: ...}), f"{section} is missing")


def test_missing_sections_of_a_test(refuses, tiny_rain, tmp_path_factory):
    network = tmp_path_factory.mktemp("network") / "net.pth"
    torch.save(SLDNet(preset="student2", num_feat=4).state_dict(), network)
    refuses(changed(scoring_options(tiny_rain, network), {"val": ...}), "val is missing", job="test")
    refuses(changed(scoring_options(tiny_rain, network), {"val": {}}), "val.save_img is missing", job="test")


COSINE = {"type": "CosineAnnealingRestartLR", "restart_weights": [1]}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_type": "VideoDerainModl"}, ["model_type: 'VideoDerainModl'", "did you mean VideoDerainModel"]),
        ({"datasets.train.type": "PairedVideoDataste"}, ["datasets.train.type", "did you mean PairedVideoDataset"]),
        ({"network_g.type": "SLDnet"}, ["network_g.type", "did you mean SLDNet"]),
        ({"network_g.preset": "student4"}, ["unknown preset 'student4'", "student3"]),
        ({"network_g.num_feats": 8}, ["network_g.num_feats", "did you mean num_feat"]),
        ({"network_g.num_frame": 5}, ["reducing"]),
        ({"train.pixel_opt.type": "PyramidSSIMLos"}, ["train.pixel_opt.type", "did you mean PyramidSSIMLoss"]),
        ({"train.optim_g.type": "Adm"}, ["train.optim_g.type", "'Adm'", "try Adam"]),
        ({"train.optim_g": {"type": "LBFGS", "lr": 1e-3}}, ["train.optim_g: LBFGS", "closure", "Adam"]),
        ({"train.optim_g": {"type": "SparseAdam", "lr": 1e-3}}, ["train.optim_g: SparseAdam", "dense", "Adam"]),
        ({"train.optim_g": {"type": "Muon", "lr": 1e-3}}, ["train.optim_g", "2D"]),
        ({"train.optim_g.beta": 0.9}, ["train.optim_g.beta is unknown; did you mean betas"]),
        ({"train.scheduler.type": "StepLR"}, ["train.scheduler.type", "did you mean MultiStepLR"]),
        ({"train.scheduler.gama": 0.5}, ["train.scheduler.gama is unknown; did you mean gamma"]),
        ({"train.scheduler.milestones": ...}, ["train.scheduler", "'milestones'"]),
        ({"train.scheduler": {**COSINE, "periods": 2}}, ["train.scheduler.periods is 2: input should be a valid list"]),
        ({"train.scheduler": {**COSINE, "periods": [1, 1]}}, ["train.scheduler", "the same length"]),
        ({"train.scheduler": {**COSINE, "periods": [1]}}, ["periods end at iteration 1, but train.total_iter is 2"]),
        ({"train.total_iter": 2.5}, ["train.total_iter", "multiple of 1"]),
        ({"rows": {}}, ["a matrix, not an option file", "csd table"]),
        ({"include": ["table4.yml"]}, ["a matrix, not an option file", "csd table"]),
        ({"datasets.train.persistent_workers": True}, ["persistent_workers", "num_worker_per_gpu"]),
        ({"datasets.train.prefetch_mode": "cuda"}, ["prefetch_mode"]),
        (
            {"train.total_iter": 2, "datasets.train.batch_size_per_gpu": 9},
            ["dataset_enlarge_ratio to 18", "after 0 of 2"],
        ),
    ],
    ids=str,
)
def test_options_of_another_world(refuses, tiny_rain, changes, words):
    refuses(changed(train_options(tiny_rain), changes), *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"manual_seed": "abc"}, ["manual_seed is 'abc': input should be a valid integer"]),
        ({"manual_seed": -1}, ["manual_seed is -1", "greater than or equal to 0"]),
        ({"num_gpu": -1}, ["num_gpu is -1"]),
        ({"network_g.num_feat": 10**6}, ["network_g.num_feat is 1000000", "less than or equal to 1024"]),
        ({"datasets.train.num_worker_per_gpu": 10**6}, ["num_worker_per_gpu is 1000000"]),
        ({"datasets.train.scale_range": [1, 1e30]}, ["datasets.train.scale_range.1 is 1e+30"]),
        ({"train.grad_clip": math.inf}, ["train.grad_clip is inf", "finite number"]),
        ({"train.total_iter": 1e30}, ["train.total_iter is 1e+30"]),
        ({"train.scheduler.milestones": [1.5]}, ["train.scheduler.milestones.0 is 1.5", "multiple of 1"]),
        ({"train.scheduler.gamma": "abc"}, ["train.scheduler.gamma is 'abc'"]),
        ({"train.scheduler": {**COSINE, "periods": [0]}}, ["train.scheduler.periods.0 is 0"]),
        ({"train.optim_g.eps": math.inf}, ["train.optim_g.eps is inf: give a finite number"]),
        ({"train.optim_g.eps": 2**63}, ["train.optim_g.eps is too large"]),
        ({"train.optim_g.betas": []}, ["train.optim_g.betas is []", "at least 2 items"]),
        ({"train.optim_g.weight_decay": True}, ["train.optim_g.weight_decay is True: input should be a valid number"]),
        ({"train.optim_g": {"type": "SGD", "lr": 0.1, "momentum": 1e30}}, ["train.optim_g.momentum is 1e+30"]),
        ({"train.pixel_opt.loss_weight": math.nan}, ["train.pixel_opt.loss_weight is nan"]),
        ({"train.pixel_opt.scale_weights": []}, ["scale_weights is empty and l1_weight 0"]),
        ({"logger.print_freq": 0.5}, ["logger.print_freq is 0.5"]),
    ],
    ids=str,
)
def test_numbers_that_cannot_be_meant(refuses, tiny_rain, changes, words):
    """The others of every section are tried by tools/fuzz_numbers.py."""
    refuses(changed(train_options(tiny_rain), changes), *words)


def test_loader_processes_need_shared_memory(refuses, tiny_rain, monkeypatch):
    def refused():
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(workers, "Lock", refused)
    options = train_options(tiny_rain, **{"datasets.train.num_worker_per_gpu": 1})
    refuses(options, "cannot be used (Read-only file system)", "or set datasets.train.num_worker_per_gpu: 0")


def test_names_that_the_toolbox_cannot_write_are_said_before_the_run(refuses, tiny_rain):
    words = ("name=a\\udcff: the name is not valid UTF-8", "rename it")
    refuses(train_options(tiny_rain), *words, flags=("--force_yml", "name=a\udcff"))


def test_memory_that_runs_out_is_one_line(launcher, tiny_rain, monkeypatch, capfd):
    def build_model(opt):
        return torch.empty(2**48)

    monkeypatch.setattr(importlib.import_module("basicsr.train"), "build_model", build_model)
    assert launcher.train(train_options(tiny_rain)) == 2
    [line] = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert line.startswith("error: not enough memory (") and line.endswith("smaller frames, batches or networks")


# As `python -m csd_plugin.train`, with loader processes that a signal ends.
ENDED = """
import os, sys
from csd_plugin import train
from csd_plugin.data.datasets.training_clips import TrainingDataset

number, items, usual = int(sys.argv.pop()), [], TrainingDataset.__getitems__


def ended_in_time(self, places):
    items.extend(places)
    if len(items) > 8:
        os.kill(os.getpid(), number)
    return usual(self, places)


TrainingDataset.__getitems__ = ended_in_time
sys.exit(train.main())
"""


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGBUS, "a file of the data set was cut short"), (signal.SIGKILL, "memory")]
)
def test_a_loader_that_is_ended_from_outside_is_one_line(tmp_path, tiny_rain, number, words):
    changes = {"num_worker_per_gpu": 1, "dataset_enlarge_ratio": 50}
    changes = {f"datasets.train.{key}": value for key, value in changes.items()}
    options = changed(train_options(tiny_rain), changes | {"train.total_iter": 100})
    (tmp_path / "options.yml").write_text(yaml.safe_dump(options))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = warm.python("-c", ENDED, "-opt", "options.yml", int(number), cwd=tmp_path, environment=environment)
    assert run.returncode == 2
    [line] = [line for line in run.stderr.splitlines() if "error: " in line]
    assert "error: a process that loads data has ended" in line and line.endswith("continues the training")
    assert words in line or "something else" in line  # torch may notice before it hears which signal it was


def test_a_loader_that_is_gone_before_torch_knows_is_told_too():
    """Its socket is closed, from which torch was to take a tensor: which of the two comes first is chance."""
    from csd_plugin.errors import lost_loader, users_line

    code = "def rebuild():\n    raise ConnectionResetError(104, 'Connection reset by peer')"
    for module, lost in (("torch.multiprocessing.reductions", True), ("urllib.request", False)):
        scope = {"__name__": module}
        exec(code, scope)
        with pytest.raises(ConnectionResetError) as caught:
            scope["rebuild"]()
        assert lost_loader(caught.value).startswith("a process that loads data has ended") == lost
        assert bool(users_line(caught.value)) == lost


def raises(error):
    def __init__(self):
        raise error

    return __init__


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("small"), "KeyError: 'small'; check its values"),
        (IndexError("list index out of range"), "IndexError: list index out of range; check its values"),
        (AttributeError("None has no such thing"), "None has no such thing; check its values"),
        (ImportError("No module named 'mamba_ssm'"), "No module named 'mamba_ssm'; install what it needs"),
        (NotImplementedError(), "NotImplementedError; check its values"),
        (RuntimeError("of two\nlines"), "of two; check its values"),
        (CSDError("give it less"), "give it less"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_what_constructors_raise(refuses, tiny_rain, tiny_teacher, monkeypatch, error, words):
    from basicsr.utils.registry import ARCH_REGISTRY

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "Own", type("Own", (torch.nn.Module,), {"__init__": raises(error)}))
    line = refuses(train_options(tiny_rain, network_g={"type": "Own"}), f"network_g: {words}")
    assert line.endswith(words)
    monkeypatch.setitem(OBJECTIVES._rows, "Own", type("Own", (Objective,), {"__init__": raises(error)}))
    objective = {"type": "Own", "weights": {"own": 0.1}}
    options = distill_options(tiny_rain, tiny_teacher, **{"train.distill_opt": objective})
    assert refuses(options, f"train.distill_opt: {words}").endswith(words)


def test_distillation_options_that_do_not_go_together(refuses, tiny_rain, tiny_teacher):
    options = distill_options(tiny_rain, tiny_teacher)
    refuses(changed(options, {"train.distill_opt.multi_scale": False}), "cross_scale needs multi_scale")
    refuses(changed(options, {"train.distill_opt.weights": {"spatial": 0.1}}), "'temporal' has no weight")
    misspelt = {"spatial": 0.1, "temporal": 0.1, "tempral": 0.1}
    refuses(changed(options, {"train.distill_opt.weights": misspelt}), "'tempral'", "did you mean temporal")


def test_validation_options_are_checked_before_the_training(refuses, tiny_rain):
    options = train_options(tiny_rain, val={"val_freq": 2, "save_img": False})
    metric = {"psnr": {"type": "calculate_psnrr", "crop_border": 0}}
    refuses(changed(options, {"val.metrics": metric}), "val.metrics.psnr.type", "did you mean calculate_psnr")
    metric = {"mine": {"type": "calculate_lpips", "weights": "none.pth", "better": "lower"}}
    refuses(changed(options, {"val.metrics": metric}), "val.metrics.mine", "none.pth does not exist")
    refuses(changed(options, {"val.baseline": "none.json"}), "val.baseline", "none.json", "test that network first")


def test_the_entry_of_a_checkpoint_is_named_and_no_slip_takes_another(refuses, launcher, capfd, tiny_rain):
    """The toolbox takes `params` where the file lacks what the options name."""
    start = SLDNet(preset="student2", num_feat=4).state_dict()
    torch.save({"params": start, "params_ema": start}, launcher.folder / "both.pth")
    torch.save({"params": start}, launcher.folder / "one.pth")
    both = {"path.pretrain_network_g": "both.pth", "path.param_key_g": "params_emma"}
    refuses(train_options(tiny_rain, **both), "path.pretrain_network_g", "both.pth has no entry 'params_emma'")
    one = {"path.pretrain_network_g": "one.pth", "path.param_key_g": "params_ema"}
    assert launcher.train(train_options(tiny_rain, **one)) == 0
    assert "tensors of SLDNet from one.pth (params)" in capfd.readouterr().err


SLIPS = {
    "train.total_iter=2": "train.total_iter=2: separate keys by colons: train:total_iter=2",
    "datasets.train.dataroot=x": "datasets.train.dataroot=x: separate keys by colons: datasets:train:dataroot=x",
    "train:optim_g.lr=1": "train:optim_g.lr=1: separate keys by colons: train:optim_g:lr=1",
    "network_g.preset=tiny": "network_g.preset=tiny: separate keys by colons: network_g:preset=tiny",
    "train:optim_g:train.lr=2": "train:optim_g:train.lr=2: separate keys by colons",
    "total_iter=3": "total_iter=3: total_iter is a key of train; give train:total_iter=3",
    "print_freq=3": "print_freq=3: print_freq is a key of logger; give logger:print_freq=3",
    'train:"x=3': 'train:"x=3 is not of the form section:key=value',
    "train::x=3": "train::x=3 is not of the form section:key=value",
    "train:scheduler:milestones=[4, 8": "[4, 8 is not a list",
    "name=007": "name is 7, not a string",
    "name=~": "name is None, not a string",
    "datasets=3": "datasets is a section: give its keys one by one",
    "logger=~": "logger is a section",
}
"""Change -> what is said of it."""


@pytest.mark.parametrize(
    "text, value",
    [
        ("-1", -1),
        ("007", 7),
        ("1e-4", 1e-4),
        ("-.5E2", -50.0),
        ("!!float 1e-4", 1e-4),
        ("3.", 3.0),
        ("true", True),
        ("~", None),
        ("None", None),
        ("[t1, t2]", ["t1", "t2"]),
        ("[0.8, 1e-1, -3]", [0.8, 0.1, -3]),
        ("['a b', \"c\", ~, none, true, '1']", ["a b", "c", None, None, True, "1"]),
        ("[[1, 2], []]", [[1, 2], []]),
        ("e-4", "e-4"),
        ("1.2.3", "1.2.3"),
        ("clips/a", "clips/a"),
    ],
)
def test_forced_values_are_what_they_are_in_a_file(text, value):
    compat.prepare_imports()
    theirs = importlib.import_module("basicsr.utils.options")._postprocess_yml_value
    found = force_yml.reader(theirs)(text)
    assert found == value and type(found) is type(value)


WANDB = {"logger.wandb": {"project": "rain", "resume_id": None}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (WANDB, "logger.wandb: it copies TensorBoard's log; set logger.use_tb_logger to true"),
        (
            WANDB | {"logger.use_tb_logger": True},
            "logger.wandb: wandb is not installed; pip install wandb, or leave it",
        ),
        ({"logger.use_tb_logger": True}, "logger.use_tb_logger: tensorboard is not installed; pip install tensorboard"),
    ],
)
def test_boards_that_are_not_there(refuses, launcher, tiny_rain, monkeypatch, changes, words):
    missing = "tensorboard" if changes.keys() == {"logger.use_tb_logger"} else "wandb"
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name))
    refuses(train_options(tiny_rain, **changes), words)
    assert launcher.train(train_options(tiny_rain, **changes), "--debug") == 0  # where the toolbox uses neither


def test_values_forced_from_the_command_line(refuses, launcher, tiny_rain):
    options = train_options(tiny_rain)
    refuses(options, "--force_yml", "trian", flags=["--force_yml", "trian:ema_decay=0.5"])
    for change in ("train:ema_decay", "name=a=b"):
        refuses(options, f"--force_yml: {change} is not of the form section:key=value", flags=["--force_yml", change])
    refuses(options, "--force_yml", flags=["--force_yml", "train:ema_decay=!!floatx"])
    code = "train:scheduler:milestones=[__import__('os').getpid()]"  # which the toolbox would run
    refuses(options, "train.scheduler.milestones.0", "__import__", flags=["--force_yml", code])
    for change, message in SLIPS.items():
        refuses(options, f"--force_yml: {message}", flags=["--force_yml", change])
    refuses(options, "--force_yml: train.ema_deca is unknown", flags=["--force_yml", "train:ema_deca=0.5"])
    section = "train:pixel_opt={type: PyramidSSIMLoss}"
    refuses(options, "takes no sections, only single keys of them", flags=["--force_yml", section])
    assert launcher.train(options, "--force_yml", "train:ema_decay=0.5", "name=forced") == 0
    assert launcher.models[-1].ema_decay == 0.5
    assert (launcher.folder / "experiments/forced").is_dir()


def test_debug_shortens_what_is_not_forced(launcher, tiny_rain):
    options = train_options(tiny_rain, val={"val_freq": 9, "save_img": False}, **{"train.total_iter": 4})
    options["datasets"]["val"] = scored_set(tiny_rain)
    forced = ["val:val_freq=3", "logger:save_checkpoint_freq=2"]
    assert launcher.train(options, "--debug", "--force_yml", *forced) == 0
    experiment = launcher.folder / "experiments/debug_run"
    assert {path.name for path in experiment.glob("training_states/*")} == {"2.state", "4.state"}
    assert {path.name for path in experiment.glob("metrics/*.json")} == {"rain_3.json", "rain_4.json"}
    assert launcher.train(options, "--debug", "--force_yml", "name=short") == 0
    assert launcher.models[-1].opt["val"]["val_freq"] == 8


def test_debug_without_validation(launcher, tiny_rain):
    options = train_options(tiny_rain, val={"val_freq": 1, "save_img": False})
    options["datasets"]["val"] = scored_set(tiny_rain)
    assert launcher.train(options, "--debug", "--force_yml", "val=~") == 0
    assert not (launcher.folder / "experiments/debug_run/metrics").exists()


def test_processes_that_nobody_started(refuses, tiny_rain, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    refuses(train_options(tiny_rain), "--launcher pytorch", "torchrun", flags=["--launcher", "pytorch"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpus_that_are_not_there(refuses, tiny_rain):
    refuses(train_options(tiny_rain, num_gpu=1), "num_gpu is 1", "use 0")


def test_states_that_cannot_be_resumed(refuses, launcher, tiny_rain, tiny_teacher):
    def resume(path):
        return train_options(tiny_rain, **{"path.resume_state": path})

    refuses(resume("9.state"), "path.resume_state", "9.state", "does not exist")
    (launcher.folder / "8.state").write_bytes(b"junk")
    refuses(resume("8.state"), "path.resume_state", "8.state", "damaged")
    refuses(resume(str(tiny_teacher)), "not a training state", "training_states")


def test_a_state_of_another_run(launcher, tiny_rain, tiny_teacher, capfd):
    assert launcher.train(train_options(tiny_rain)) == 0
    options = distill_options(
        tiny_rain, tiny_teacher, **{"path.resume_state": "experiments/run/training_states/2.state"}
    )
    stopped(launcher, capfd, options, "2.state", "belongs to another run")


# ---------------------------------------------------------------------- found on the way
@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_frame_stops_the_run(launcher, tiny_rain, tmp_path_factory, capfd, workers):
    data = write_ntu_rain(tmp_path_factory.mktemp("cut"), 9, 30, 40, ".jpg", {f"{TRAIN}/t1": ("GT", "Rain_01")})
    frame = data / TRAIN / "t1_Rain_01/00005.jpg"
    frame.write_bytes(frame.read_bytes()[:-200])
    options = train_options(data, **{"datasets.train.num_worker_per_gpu": workers})
    stopped(launcher, capfd, options, str(frame), "ends early", "restore the file")
    assert half_written(launcher.folder) == []


def test_a_truncated_frame_stops_a_test(launcher, tiny_rain, tmp_path_factory, capfd):
    data = write_ntu_rain(tmp_path_factory.mktemp("cut"), 3, 30, 40, ".jpg", {f"{TEST}/a1": ("GT", "Rain")})
    frame = data / TEST / "a1_GT/00002.jpg"
    frame.write_bytes(frame.read_bytes()[:-200])
    torch.save(SLDNet(preset="student2", num_feat=4).state_dict(), "net.pth")
    stopped(launcher, capfd, scoring_options(data, Path("net.pth")), str(frame), "ends early", job="test")
    assert half_written(launcher.folder / "results") == []


def test_a_loss_that_is_not_finite_stops_the_run(launcher, tiny_rain, capfd, monkeypatch):
    stopped(
        launcher,
        capfd,
        train_options(tiny_rain, **{"train.optim_g.lr": 1e30, "train.total_iter": 3, "train.skip_limit": 0}),
        *["iteration 2", "l_recon not finite", "t", "lower train.optim_g.lr"],
    )
    network = SLDNet(preset="student2", num_feat=4)
    torch.nn.init.constant_(network.conv5.bias, float("nan"))
    torch.save(network.state_dict(), "nan.pth")
    options = train_options(tiny_rain, name="nan", **{"path.pretrain_network_g": "nan.pth"})
    stopped(
        launcher, capfd, options, "pretrain_network_g", "nan.pth: its weight conv5.bias holds NaN", "another checkpoint"
    )
    monkeypatch.setattr("csd_plugin.archs.checkpoint._check_values", lambda *_: None)  # as if it had come later
    stopped(launcher, capfd, options, "iteration 1", "conv5.bias is not finite", "earlier checkpoint")
    assert half_written(launcher.folder / "experiments") == []


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step(launcher, tiny_rain, capfd, monkeypatch):
    from csd_plugin.losses.ssim import PyramidSSIMLoss

    original = PyramidSSIMLoss.forward

    def forward(self, output, gt):  # in training; what is tried before has other sizes
        return (output - output).abs().sum().sqrt() if output.shape[-1] == 24 else original(self, output, gt)

    monkeypatch.setattr(PyramidSSIMLoss, "forward", forward)
    options = train_options(tiny_rain, **{"train.grad_clip": 1.0, "train.skip_limit": 0})
    stopped(launcher, capfd, options, "iteration 1", "grad_norm not finite", "although the loss is", "autocast off")
    assert all(p.isfinite().all() for p in launcher.models[-1].net_g.parameters())


def test_an_interrupted_run_promises_nothing_where_nothing_is_saved(launcher, tiny_rain, capfd, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.Adam, "step", interrupt)
    assert launcher.train(train_options(tiny_rain)) == 130
    assert capfd.readouterr().err.endswith("error: interrupted\n")


def test_a_disk_that_fills_up_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    from csd_plugin.models.checkpoints import save_atomically

    path = tmp_path / "net_g_latest.pth"
    save_atomically({"params": {"w": torch.ones(2)}}, path)

    def fail(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CSDError, match=r"net_g_latest\.pth: cannot be written .No space left"):
        save_atomically({"params": {"w": torch.zeros(2)}}, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert torch.load(path, weights_only=True)["params"]["w"].tolist() == [1, 1]


# ---------------------------------------------------------------------- as typed
def typed(
    folder: Path, *arguments: str, options: dict | None = None, **environment: str
) -> subprocess.CompletedProcess:
    if options is not None:
        (folder / "options.yml").write_text(yaml.safe_dump(options, sort_keys=False))
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment
    return warm.python("-m", *arguments, "-opt", "options.yml", cwd=folder, environment=environment)


def test_a_mistake_as_typed(tmp_path, tiny_rain):
    run = typed(tmp_path, "csd_plugin.train", options=train_options(tiny_rain, **{"train.total_iters": 3}))
    assert run.returncode == 2
    assert run.stderr == "error: options.yml: line 38: train.total_iters is unknown; did you mean total_iter?\n"
    assert [path.name for path in tmp_path.iterdir()] == ["options.yml"]


def test_a_wrong_root_as_typed(tmp_path):
    torch.save(SLDNet(preset="student2", num_feat=4).state_dict(), tmp_path / "net.pth")
    run = typed(tmp_path, "csd_plugin.test", options=scoring_options(tmp_path / "rain", Path("net.pth")))
    assert run.returncode == 2
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1
    assert "rain does not exist: give the folder that holds the data set" in run.stderr
    assert not (tmp_path / "results").exists()


TWO_PROCESSES = """
import sys
import torch
from torch import distributed
from csd_plugin import train
import basicsr.train
from csd_plugin.distill.objective import build_objective

models = []
build_model = basicsr.train.build_model
basicsr.train.build_model = lambda opt: models.append(build_model(opt)) or models[-1]
assert train.main() == 0
model = models[0]


def agree(tensors):
    mine = torch.cat([tensor.detach().flatten() for tensor in tensors])
    all_of_them = [torch.empty_like(mine) for _ in range(2)]
    distributed.all_gather(all_of_them, mine)
    return torch.equal(*all_of_them)


assert not agree([model.lq]), "both saw the same clips"
assert agree(model.net_g.parameters()) and agree(model.net_g_ema.parameters()), "the students differ"
assert len(model.teachers) == 2
assert all(agree(teacher.objective.parameters()) for teacher in model.teachers), "the cells differ"
frozen = build_objective({"type": "CSD", "hidden": 4, "cells": "frozen"})
assert not agree(frozen.parameters())
assert agree(model._place_objective(frozen).parameters()), "the frozen cells differ"


def gradients(monitor):
    # of one step, exchanged between the processes
    model.distiller.monitor = monitor
    model.optimizer_g.zero_grad()
    model.distiller._examined = 0  # the first step was looked at in training already
    losses, scalars = model.compute_losses(1)
    assert any(name.startswith("health/") for name in scalars) == (monitor is not None)
    sum(losses.values()).backward()
    return [p.grad.clone() for p in model.optimized_parameters()]


measured = gradients(model.distiller.monitor)
assert agree(measured), "gradients differ"
assert all(torch.equal(a, b) for a, b in zip(measured, gradients(None))), "measuring changes the step"
print("agreed", flush=True)
"""


def test_two_processes_train_one_student(tmp_path, tiny_rain, tiny_teacher):
    """By gloo, with two teachers, which rest in the second step: gradients are synchronised, one process writes,
    both validate."""
    options = distill_options(tiny_rain, tiny_teacher, val={"val_freq": 2, "save_img": False})
    options |= {"network_t2": options["network_t"]}
    options["path"]["pretrain_network_t2"] = options["path"]["pretrain_network_t"]
    for term in ("spatial", "temporal"):
        options["train"]["distill_opt"]["weights"][term] = {"schedule": "stop_at", "start": 0.1, "iters": 1}
    options["datasets"]["val"] = scored_set(tiny_rain)
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    (tmp_path / "options.yml").write_text(yaml.safe_dump(options, sort_keys=False))
    for process in begin_two(tmp_path, "two.py", "--launcher", "pytorch", "-opt", "options.yml"):
        out, error = process.communicate()
        assert process.returncode == 0, error[-3000:]
        assert out.count("agreed") == 1
    experiment = tmp_path / "experiments/run"
    assert {path.name for path in (experiment / "models").iterdir()} == {
        *("net_g_2.pth", "net_g_latest.pth", "objective_2.pth", "objective_latest.pth")
    }
    assert not any(name.startswith("module.") for name in torch.load(experiment / "models/net_g_2.pth")["params"])
    scored = (experiment / "metrics/rain_2.csv").read_text()
    assert "a1" in scored and "b1" in scored


def test_two_processes_train_the_student_of_one(tmp_path, tiny_rain, tiny_teacher, launcher):
    """With half of the batch each, in two parts: the same clips and crops, cells and average too, to rounding."""
    options = distill_options(tiny_rain, tiny_teacher, **{"train.total_iter": 3})
    options["train"]["optim_g"] = {"type": "SGD", "lr": 0.003}  # Adam makes steps of rounding errors
    options["datasets"]["train"]["batch_size_per_gpu"] = 4
    assert launcher.train(options) == 0
    options["datasets"]["train"]["batch_size_per_gpu"] = 2
    options["train"]["accumulate"] = 2
    run = two_processes(tmp_path, options)
    assert run.returncode == 0, run.stderr[-3000:]
    for file, keys in {"net_g_latest.pth": ("params", "params_ema"), "objective_latest.pth": None}.items():
        one, two = (torch.load(f / "experiments/run/models" / file) for f in (launcher.folder, tmp_path))
        for key in keys or one:
            for name, weight in one[key].items():
                torch.testing.assert_close(two[key][name], weight, rtol=1e-4, atol=1e-6)

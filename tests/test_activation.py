"""One line in somebody's own train.py: our files are checked and resumed as by our launchers, others are left alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
import warm
import yaml
from toolbox import changed, equal, train_options

from csd_plugin import activation

ROOT = Path(__file__).resolve().parents[1]
OWN = """
import csd_plugin
csd_plugin.activate()
csd_plugin.activate()
from os import path
from basicsr.train import train_pipeline
if __name__ == "__main__":
    train_pipeline(path.dirname(path.abspath(__file__)))
"""
# The toolbox first, with the names bound as a fork's script binds them.
FORK = """
from csd_plugin import compat
compat.prepare_imports()  # a torchvision without its compiled part
from basicsr.utils.options import parse_options
from basicsr.train import load_resume_state
import csd_plugin
csd_plugin.activate()
opt, args = parse_options(".", is_train=True)
print("resumed", load_resume_state(opt))
"""


@pytest.fixture
def own(tmp_path):
    """own(options or text, *flags, script=OWN) -> the finished process of a train.py in tmp_path."""

    def run(options, *flags, script=OWN):
        (tmp_path / "train.py").write_text(script)
        text = yaml.safe_dump(options, sort_keys=False) if isinstance(options, dict) else options
        (tmp_path / "run.yml").write_text(text)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return warm.python("train.py", "-opt", "run.yml", *flags, cwd=tmp_path, environment=environment)

    return run


def test_an_own_script_trains_and_resumes_as_our_launcher_does(own, launcher, tiny_rain, tmp_path):
    options = train_options(tiny_rain)
    assert own(options).returncode == 0
    run = own(changed(options, {"train.total_iter": 4}), "--auto_resume")
    assert run.returncode == 0, run.stderr[-2000:]
    assert "Resuming training from epoch" in run.stdout + run.stderr

    assert launcher.train(changed(options, {"train.total_iter": 4})) == 0
    mine = torch.load(tmp_path / "experiments/run/models/net_g_latest.pth", weights_only=True)
    assert equal(mine["params"], launcher.weights("net_g_latest"))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"train.total_iters": 3}, "train.total_iters is unknown; did you mean total_iter?"),
        ({"datasets.train.dataroot": "nowhere"}, "data root nowhere does not exist"),
        ({"path.pretrain_network_g": "nowhere.pth"}, "nowhere.pth"),
        ("model_type: VideoDerainModel\nname: [\n", "not valid YAML"),
        ("model_type: VideoDerainModel\nname: !!python/object/apply:os.system ['touch hacked']\n", "not valid YAML"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(own, tiny_rain, tmp_path, fault, words):
    run = own(fault if isinstance(fault, str) else train_options(tiny_rain, **fault))
    assert run.returncode == 2
    lines = run.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ") and words in lines[-1] and "Traceback" not in run.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.yml", "train.py"]


def test_a_script_that_has_bound_the_names_before(own, tiny_rain):
    run = own(train_options(tiny_rain), script=FORK)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "resumed None" in run.stdout
    wrong = own(train_options(tiny_rain, **{"train.total_iters": 3}), script=FORK)
    assert wrong.returncode == 2 and "did you mean total_iter?" in wrong.stderr


OTHERS = """
import copy
import sys
from csd_plugin import compat
compat.prepare_imports()
import basicsr.train
from basicsr.utils import options
before = options.parse_options(".", True)[0]
their_loader, their_dist, their_resume = options.ordered_yaml, options.init_dist, basicsr.train.load_resume_state
import csd_plugin
csd_plugin.activate()
assert options.parse_options(".", True)[0] == before
assert before["mine"] == (1, 2)
assert (options.ordered_yaml, options.init_dist) == (their_loader, their_dist)
assert basicsr.train.load_resume_state is their_resume
print("as before")
"""


def test_files_for_other_models_are_read_as_before(own):
    """Their YAML may even ask for Python's own types."""
    text = (
        "name: sr\nmodel_type: SRModel\nscale: 4\nnum_gpu: 0\nmanual_seed: 1\nmine: !!python/tuple [1, 2]\n"
        "datasets: {train: {name: t, type: PairedImageDataset}}\npath: {}\nlogger: {}\nunknwon: 1\n"
    )
    run = own(text, script=OTHERS)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "as before" in run.stdout


OURS = "VideoDerainModel"


@pytest.mark.parametrize(
    ("text", "model_type"),
    [
        (f"name: a\nmodel_type: {OURS}  # stage 1\n", OURS),
        (f"network_g:\n  model_type: theirs\nmodel_type: {OURS}\n", OURS),
        (f"network_g:\n  model_type: {OURS}\nmodel_type: SRModel\n", "SRModel"),
        (f"# model_type: SRModel\n'model_type': !!str {OURS}\n", OURS),
        (f"name: &m {OURS}\nmodel_type: *m\n", OURS),
        (f"base: &b {{model_type: {OURS}}}\n<<: *b\n", OURS),
        (f'{{"name": "a",\n "model_type": "{OURS}"}}', OURS),
        (f"model_type: {OURS}\nmodel_type: SRModel\n", "SRModel"),  # the toolbox takes the last
        (f"mine: !!python/object/apply:os.mkdir [hacked]\nother: !mine 1\nmodel_type: {OURS}\n", OURS),
        (f"model_type: {OURS}\nname: [\n", OURS),  # no valid YAML
        (f"model_type: {OURS}\nname: 2026-13-41\n", OURS),  # no valid date
        (f"model_type: {OURS}\nname: {'[' * 5000}\n", OURS),
        ("name: a\n", "None"),
        ("- model_type\n", ""),
        ("", ""),
    ],
)
def test_what_a_file_gives_as_its_model(text, model_type, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert activation._model_type(text) == model_type
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "ours"),
    [
        ([], True),
        (["--force_yml", "name=b", "model_type=SRModel"], False),
        (["--force_yml", "model_type=SRModel", " model_type = DistillModel"], True),
    ],
)
def test_the_file_is_ours_as_its_editor_has_written_it(flags, ours, tmp_path, monkeypatch):
    """Some editors write a mark of Unicode first."""
    (tmp_path / "run.yml").write_text(f"model_type: {OURS}\r\nname: a\r\n", encoding="utf-8-sig")
    monkeypatch.setattr(sys, "argv", ["train.py", "-opt", str(tmp_path / "run.yml"), *flags])
    activation.registration.install()
    assert activation._is_ours() is ours


AGAIN = "    train_pipeline(path.dirname(path.abspath(__file__)))\n"


def test_a_notebook_trains_again_what_it_has_trained(own, tiny_rain, tmp_path):
    run = own(train_options(tiny_rain), script=OWN + AGAIN)
    assert run.returncode == 0, run.stderr[-2000:]
    assert len(list((tmp_path / "experiments").glob("run*"))) == 2  # the first one was put aside


# Prints numbers after the toolbox's own seeding, and keeps the function that the loader's processes get.
KEEPS_SEEDS = """
import pickle, random
from csd_plugin import activate, compat
compat.prepare_imports()
import numpy as np
from basicsr import data
theirs = data.worker_init_fn
activate()
loader = data.build_dataloader(
    [1], {"phase": "train", "num_worker_per_gpu": 2, "batch_size_per_gpu": 1}, num_gpu=0, seed=5
)
with open("seeds.pickle", "wb") as file:
    pickle.dump(loader.worker_init_fn, file)
theirs(1, num_workers=2, rank=0, seed=5)
print(random.random(), np.random.rand())
"""
SEEDS = """
import pickle, random, sys
import numpy as np
sys.modules["basicsr"] = None
with open("seeds.pickle", "rb") as file:
    pickle.load(file)(1)
print(random.random(), np.random.rand())
"""


def test_a_process_that_is_not_forked_is_seeded_without_the_toolbox(own):
    """As on Windows, macOS and Python 3.14: the toolbox may not be importable there before it is repaired."""
    theirs, ours = own({}, script=KEEPS_SEEDS), own({}, script=SEEDS)
    assert (theirs.returncode, ours.returncode) == (0, 0), theirs.stderr + ours.stderr
    assert theirs.stdout.splitlines()[-1] == ours.stdout.strip()

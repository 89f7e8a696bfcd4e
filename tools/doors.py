"""Tries every way of using the plugin in training scripts that are not ours, on every kind of tree; prints a table.

    python tools/doors.py                            trees made from the installed BasicSR
    python tools/doors.py ~/BasicSR ~/Real-ESRGAN    also copies of these checkouts
    python tools/doors.py --door "csd link"          only this way

A door is `csd_plugin.activate()` in train.py, `csd link PATH` or `csd link --hook`. A tree is BasicSR itself or a
project built on it. Everything is a copy in a temporary folder with its own environment. Each pair trains a tiny
network on tiny clips, validates, resumes, tests, gets faulty option files, and is undone. Takes a few minutes; not for
Windows.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from csd_plugin.link.trees import find_tree  # noqa: E402

DOORS = ("activate()", "csd link", "csd link --hook")
LINE = "import csd_plugin\n\ncsd_plugin.activate()\n"


@dataclass
class Tree:
    """A training project on disk.

    root: where it is run. toolbox: the folder that holds its basicsr. scripts: its train.py and test.py.
    environment: variables for its commands.
    """

    name: str
    root: Path
    toolbox: Path
    scripts: dict[str, Path]
    python: Path
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """A command of this tree's Python."""
        given = self.environment.get("PYTHONPATH")
        folders = [str(self.toolbox), str(self.root), *([given] if given else [])]
        return subprocess.run(
            [self.python, *command],
            cwd=self.root,
            env={**self.environment, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )


def make_python(folder: Path) -> Path:
    """An environment with the packages of this one and this checkout, and its own site-packages."""
    venv.create(folder, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    # with what their .pth files do: Python 3.12 has its distutils from one of setuptools
    lines = [f"import site; site.addsitedir({path!r})" for path in [*packages, str(ROOT)]]
    (own / "a_paths.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return python


def released(folder: Path, python: Path) -> Tree:
    """A copy of the installed BasicSR."""
    spec = importlib.util.find_spec("basicsr")
    if spec is None or spec.origin is None:
        raise SystemExit("error: no BasicSR is installed: python -m csd_plugin.install_basicsr")
    return _toolbox("BasicSR, as installed", Path(spec.origin).parent, folder, python)


def checked_out(folder: Path, python: Path, checkout: Path) -> Tree:
    """A copy of a checkout of BasicSR, a fork, or a project built on it, which gets the installed BasicSR."""
    found = find_tree(checkout)
    package = found.package.relative_to(checkout.resolve())  # '.' where archs, data and models lie next to train.py
    name = f"the checkout {checkout.name}"
    if found.toolbox:
        tree = _toolbox(name, found.package, folder, python)
    else:
        shutil.copytree(checkout, folder, ignore=shutil.ignore_patterns(".git", "__pycache__", *_OUTPUTS))
        scripts = _scripts_of(folder / package, folder)
        tree = Tree(name, folder, _toolbox_next_to(folder, python), scripts, python)
    version = folder / package / "version.py"
    if (version.parent / "__init__.py").exists() and not version.exists():  # its setup.py makes it
        version.write_text("__version__ = '0'\n__gitsha__ = 'unknown'\n", encoding="utf-8")
    return tree


def _scripts_of(*folders: Path) -> dict[str, Path]:
    """The train.py of a project, and a test.py made from it if there is none."""
    home = next((folder for folder in folders if (folder / "train.py").is_file()), None)
    if home is None:
        raise SystemExit(f"error: {folders[-1]}: no train.py next to the models or above them")
    scripts = {job: home / f"{job}.py" for job in ("train", "test")}
    if not scripts["test"].exists():
        text = scripts["train"].read_text(encoding="utf-8")
        scripts["test"].write_text(
            text.replace("basicsr.train", "basicsr.test").replace("train_pipeline", "test_pipeline"), encoding="utf-8"
        )
    return scripts


def _toolbox_next_to(folder: Path, python: Path) -> Path:
    return released(folder.with_name(f"{folder.name}_toolbox"), python).root


def _toolbox(name: str, package: Path, folder: Path, python: Path) -> Tree:
    shutil.copytree(package, folder / "basicsr", ignore=shutil.ignore_patterns("__pycache__", "csd_*.py"))
    scripts = {job: folder / "basicsr" / f"{job}.py" for job in ("train", "test")}
    return Tree(name, folder, folder, scripts, python)


def example_project(folder: Path, python: Path) -> Tree:
    """Packages archs, data and models next to train.py, as in BasicSR-examples."""
    return _project("in the pattern of BasicSR-examples", folder, python, "", "")


def packaged_project(folder: Path, python: Path) -> Tree:
    """One package that holds archs, data, models and train.py, as in Real-ESRGAN."""
    return _project("in the pattern of Real-ESRGAN", folder, python, "restorer", "restorer.")


def _project(name: str, folder: Path, python: Path, package: str, prefix: str) -> Tree:
    toolbox = _toolbox_next_to(folder, python)
    inside = folder / package
    for room in ("archs", "data", "models"):
        (inside / room).mkdir(parents=True)
        (inside / room / "__init__.py").write_text(_SCAN.format(ending=f"_{room[:-1]}.py"), encoding="utf-8")
    if package:
        (inside / "__init__.py").write_text("from .archs import *\nfrom .models import *\n", encoding="utf-8")
    (inside / "archs" / "own_arch.py").write_text(_OWN_ARCH, encoding="utf-8")
    (inside / "models" / "own_model.py").write_text(_OWN_MODEL, encoding="utf-8")
    scripts = {}
    for job in ("train", "test"):
        scripts[job] = inside / f"{job}.py"
        scripts[job].write_text(
            _SCRIPT.format(prefix=prefix, job=job, above=len(prefix.split(".")) - 1), encoding="utf-8"
        )
    return Tree(name, folder, toolbox, scripts, python)


_OUTPUTS = ("datasets", "experiments", "results", "tb_logger")
_SCAN = """import importlib
from pathlib import Path

for file in sorted(Path(__file__).parent.glob("*_*.py")):
    if file.name.endswith("{ending}"):
        importlib.import_module(f"{{__name__}}.{{file.stem}}")
"""
_OWN_ARCH = """from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.utils.registry import ARCH_REGISTRY


@ARCH_REGISTRY.register()
class OwnNet(RRDBNet):
    pass
"""
_OWN_MODEL = """from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import MODEL_REGISTRY


@MODEL_REGISTRY.register()
class OwnModel(SRModel):
    pass
"""
_SCRIPT = """from pathlib import Path

from basicsr.{job} import {job}_pipeline

import {prefix}archs
import {prefix}data
import {prefix}models

if __name__ == "__main__":
    {job}_pipeline(str(Path(__file__).resolve().parents[{above}]))
"""


def open_door(tree: Tree, door: str) -> None:
    """Use the plugin in the tree by one of DOORS."""
    if door == "activate()":
        for script in tree.scripts.values():
            script.write_text(LINE + script.read_text(encoding="utf-8"), encoding="utf-8")
        return
    for arguments in _linked(tree, door):
        tree.run("-m", "csd_plugin", "link", *arguments)


def close_door(tree: Tree, door: str) -> list[str]:
    """Undo it with `csd link`; what each command printed. The line of `activate()` stays."""
    if door == "activate()":
        return []
    return [tree.run("-m", "csd_plugin", "link", *arguments, "--undo").stdout for arguments in _linked(tree, door)]


def _linked(tree: Tree, door: str) -> list[list[str | Path]]:
    """The arguments of `csd link`, one list per command."""
    if door == "csd link --hook":
        return [["--hook"]]
    # for a project, also the BasicSR that it imports: 1.4.2 needs it, and says so
    return [[tree.toolbox]] if tree.root == tree.toolbox else [[tree.toolbox], [tree.root]]


def sources(tree: Tree) -> dict[Path, bytes]:
    """All Python files in the tree and its toolbox."""
    files = {file for root in (tree.root, tree.toolbox) for file in root.rglob("*.py*") if file.is_file()}
    return {file: file.read_bytes() for file in files if file.suffix == ".py" or file.name.startswith("csd_")}


def write_clips(root: Path) -> Path:
    """A data set in NTURain's layout: noise with streaks, nine frames of 40x32 in each clip."""
    rng = np.random.default_rng(0)
    for split, rain in (("Training", "t1_Rain_01"), ("Testing", "a1_Rain")):
        for number in range(1, 10):
            clean = cv2.GaussianBlur(rng.integers(0, 200, (32, 40, 3), np.uint8), (0, 0), 2)
            rainy = clean.copy()
            rainy[4:20, rng.integers(0, 40, 5)] += 50
            for clip, frame in ((f"{rain.partition('_')[0]}_GT", clean), (rain, rainy)):
                folder = root / f"Dataset_{split}_Synthetic" / clip
                folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / f"{number:05d}.png"), frame)
    return root


def train_options(data: Path) -> dict[str, Any]:
    """A narrow student for two iterations, validated after the second."""
    scored = {"name": "rain", "type": "PairedVideoTestDataset", "dataroot": str(data), "split": "test", "num_frame": 3}
    return {
        "name": "run",
        "model_type": "VideoDerainModel",
        "scale": 1,
        "num_gpu": 0,
        "manual_seed": 0,
        "datasets": {
            "train": {
                "name": "rain",
                "type": "PairedVideoDataset",
                "dataroot": str(data),
                "num_frame": 5,
                "num_target": 1,
                "gt_size": 24,
                "num_worker_per_gpu": 0,
                "batch_size_per_gpu": 1,
            },
            "val": {**scored, "frame_range": [1, 2]},
        },
        "network_g": {"type": "SLDNet", "preset": "student2", "num_feat": 4},
        "path": {"pretrain_network_g": None},
        "train": {
            "total_iter": 2,
            "optim_g": {"type": "Adam", "lr": 0.001},
            "scheduler": {"type": "MultiStepLR", "milestones": [1], "gamma": 0.5},
            "pixel_opt": {"type": "PyramidSSIMLoss"},
        },
        "val": {"val_freq": 2, "save_img": False},
        "logger": {"print_freq": 1, "save_checkpoint_freq": 2, "use_tb_logger": False},
    }


def test_options(data: Path, checkpoint: Path) -> dict[str, Any]:
    """The same network over the test clip."""
    options = train_options(data)
    options |= {"name": "row", "datasets": {"test_1": options["datasets"]["val"]}}
    options["path"] = {"pretrain_network_g": str(checkpoint)}
    options["val"] = {"save_img": False, "suffix": None}
    return {key: value for key, value in options.items() if key not in ("train", "logger")}


test_options.__test__ = False  # type: ignore[attr-defined]  # for pytest

CHANGES: dict[str, dict[str, Any]] = {
    "a mistyped key": {"train.total_iters": 3},
    "a mistyped key of the network": {"network_g.num_feats": 4},
    "a mistyped key of the data set": {"datasets.train.gt_sizes": 24},
    "a mistyped model": {"model_type": "VideoDerrainModel"},
    "an unknown network": {"network_g.type": "SLDNett"},
    "an unknown data set": {"datasets.train.type": "PairedVideoDataSet"},
    "an unknown loss": {"train.pixel_opt.type": "SSIM"},
    "an unknown optimizer": {"train.optim_g.type": "Adamm"},
    "a data root that does not exist": {"datasets.train.dataroot": "nowhere"},
    "a window longer than the clips": {"datasets.train.num_frame": 99},
    "a checkpoint that does not exist": {"path.pretrain_network_g": "nowhere.pth"},
    "a rate that YAML reads as text": {"train.optim_g.lr": "1e-3"},
    "a batch of no clips": {"datasets.train.batch_size_per_gpu": 0},
    "an epoch that ends early": {"datasets.train.batch_size_per_gpu": 7},
    "no teacher": {"model_type": "DistillModel"},
}


def faulty_files(folder: Path, data: Path) -> dict[str, Path]:
    """Option files with one mistake each, by description."""
    texts = {}
    for fault, changes in CHANGES.items():
        options = deepcopy(train_options(data))
        for path, value in changes.items():
            *sections, key = path.split(".")
            section = options
            for name in sections:
                section = section[name]
            section[key] = value
        texts[fault] = yaml.safe_dump(options, sort_keys=False)
    whole = yaml.safe_dump(train_options(data), sort_keys=False)
    texts["a key given twice"] = whole.replace("  total_iter: 2\n", "  total_iter: 2\n  total_iter: 3\n")
    texts["invalid YAML"] = whole + "more: [\n"
    texts["YAML that runs code"] = whole + "more: !!python/object/apply:os.mkdir [hacked]\n"
    files = {}
    for number, (fault, text) in enumerate(texts.items()):
        files[fault] = folder / f"fault_{number}.yml"
        files[fault].write_text(text, encoding="utf-8")
    return files


@dataclass
class Job:
    """A command of a tree: a script, its option file and flags, and its outcome once it has run."""

    script: Path
    options: Path
    flags: tuple[str, ...] = ()
    status: int | None = None
    said: str = ""

    def last_line(self) -> str:
        return (self.said.strip().splitlines() or [f"exit status {self.status}"])[-1]


# Runs each script as the main program, in a fork of a process that has the toolbox already: its import takes longest.
_FORKS = """
import atexit, json, os, runpy, sys
door, jobs = json.loads(sys.argv[1])
exec(door)
import basicsr.train, basicsr.test
for script, output, *arguments in jobs:
    child = os.fork()
    if not child:
        os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 1)
        os.dup2(1, 2)
        sys.argv, sys.path[0], code = [script, *arguments], os.path.dirname(script), 0
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            code = 1
            sys.excepthook(*sys.exc_info())
        atexit._run_exitfuncs()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def run_jobs(tree: Tree, jobs: list[Job]) -> None:
    """Run them one after the other; a job that could not start has no status."""
    opened = LINE if LINE in tree.scripts["train"].read_text(encoding="utf-8") else ""
    outputs = [tree.root / f"job_{number}.out" for number in range(len(jobs))]
    commands = [
        [str(job.script), str(output), "-opt", str(job.options), *job.flags]
        for job, output in zip(jobs, outputs, strict=True)
    ]
    run = tree.run("-c", _FORKS, json.dumps([opened, commands]))
    for job, output, status in zip_longest(jobs, outputs, run.stdout.split()):
        job.status = None if status is None else int(status)
        job.said = run.stderr if status is None else output.read_text(encoding="utf-8", errors="replace")


def run_pair(tree: Tree, data: Path, faults: Mapping[str, Path]) -> dict[str, str]:
    """The outcomes of training, validation, resume, test and each faulty file: '' or what went wrong."""
    experiment = tree.root / "experiments/run"
    files = {"run": train_options(data), "longer": train_options(data)}
    files["longer"]["train"]["total_iter"] = 4
    files["row"] = test_options(data, experiment / "models/net_g_2.pth")
    for name, content in files.items():
        (tree.root / f"{name}.yml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    train = Job(tree.scripts["train"], tree.root / "run.yml")
    resume = Job(tree.scripts["train"], tree.root / "longer.yml", ("--auto_resume",))
    test = Job(tree.scripts["test"], tree.root / "row.yml")
    faulty = {fault: Job(tree.scripts["train"], file) for fault, file in faults.items()}
    run_jobs(tree, [train, resume, test, *faulty.values()])

    came = {
        "train": _unless((experiment / "models/net_g_2.pth").is_file(), train),
        "validate": _unless("psnr" in train.said.lower(), train),
        "resume": _unless("Resuming training" in resume.said and (experiment / "models/net_g_4.pth").is_file(), resume),
        "test": _unless((tree.root / "results/row/rain.json").is_file(), test),
    }
    for fault, job in faulty.items():
        errors = [line for line in job.said.splitlines() if line.startswith("error: ")]
        right = job.status == 2 and len(errors) == 1 and "Traceback" not in job.said
        came[fault] = "" if right else job.last_line()
    written = {path.name for path in experiment.parent.iterdir()} | {path.name for path in tree.root.glob("hacked")}
    if faults and written != {"run"}:
        came["(all faulty files)"] = f"wrote {', '.join(sorted(written - {'run'}))}"
    return came


def _unless(right: bool, job: Job) -> str:
    return "" if right and job.status == 0 else job.last_line()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkouts",
        metavar="CHECKOUT",
        type=Path,
        nargs="*",
        help="checkout of BasicSR, a fork, or a project built on it",
    )
    parser.add_argument("--door", choices=DOORS, action="append", help="only this way; may be repeated")
    args = parser.parse_args()
    makers: list[Callable[..., Tree]] = [released, example_project, packaged_project]
    makers += [partial(checked_out, checkout=checkout) for checkout in args.checkouts]

    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        data = write_clips(base / "clips")
        (base / "faults").mkdir()
        faults = faulty_files(base / "faults", data)
        python = make_python(base / "python")
        print(f"| tree | door | train | validate | resume | test | {len(faults)} faulty files | undone |")
        print("|---|---|---|---|---|---|---|---|")
        for number, maker in enumerate(makers):
            for door in args.door or DOORS:
                tree = maker(base / f"tree_{number}_{DOORS.index(door)}", python)
                before = sources(tree)
                open_door(tree, door)
                came = run_pair(tree, data, faults)
                close_door(tree, door)
                undone = "" if door == "activate()" else "yes" if sources(tree) == before else "no"
                cells = ["fails" if came[job] else "works" for job in ("train", "validate", "resume", "test")]
                wrong = {what: problem for what, problem in came.items() if problem}
                cells += [f"{len(faults) - len(wrong.keys() & faults)} in one line", undone]
                failed += len(wrong) + (undone == "no")
                print(f"| {tree.name} | `{door}` | {' | '.join(cells)} |", flush=True)
                for what, problem in wrong.items():
                    print(f"{tree.name}, {door}: {what}: {problem}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Give every number of every command line and option file wrong values, and check that none ends in a traceback.

    python tools/fuzz_numbers.py                     all cases
    python tools/fuzz_numbers.py --count 50 --seed 1  some of them

The numbers are found, not listed: flags by walking through the parsers, keys by the fields of the sections and the
signatures of what they build. Every case changes one number of a command or option file that works on tiny clips. It
must end within a minute, with status 0, or with status 2 and one line of error. The exit status is 1 if a case
failed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import logging
import math
import os
import random
import signal
import sys
import tempfile
import traceback
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TEXTS = ("0", "-1", "-3.5", "1e30", "nan", "inf", "", "abc", "2147483647", "1/0", "9" * 5000)
VALUES: tuple[Any, ...] = (0, -1, -3.5, 1e30, 10**30, 2**31 - 1, math.nan, math.inf, -math.inf, "", "abc", True, [], {})
SIZES = ("0x0", "-1x5", "99999x99999", "640", "x", "nanx1")
SECONDS = 60
REFUSED, DONE, FAILED = "refused", "done", "FAILED"


@dataclass(frozen=True)
class Case:
    """what: for people. run: does it in the current folder and returns the exit status."""

    what: str
    run: Callable[[], Any]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, help="number of cases, chosen at random (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases with this text in their description")
    parser.add_argument("--verbose", action="store_true", help="print the result of every case")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, inside(folder):
        return fuzz(args.count, args.seed, args.only, args.verbose)


def fuzz(count: int | None, seed: int, only: str, verbose: bool) -> int:
    import torch
    from tqdm import tqdm

    torch.set_num_threads(1)
    make_files()
    cases = [case for case in (*command_lines(), *option_files(), *matrices()) if only in case.what]
    if count is not None:
        cases = random.Random(seed).sample(cases, min(count, len(cases)))
    outcomes: Counter[str] = Counter()
    for case in tqdm(cases, desc="fuzz", unit="case", disable=None):
        outcome, said = judge(case)
        outcomes[outcome] += 1
        if outcome == FAILED or verbose:
            print(f"{outcome:<8} {case.what}: {said.strip()}", file=sys.stderr, flush=True)
    print(", ".join(f"{outcomes[outcome]} {outcome}" for outcome in (DONE, REFUSED, FAILED)))
    return 1 if outcomes[FAILED] else 0


def judge(case: Case) -> tuple[str, str]:
    """(outcome, the line of error, or what went wrong)."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), time_limit():
            status = case.run()
    except SystemExit as ended:  # argparse
        status = ended.code
    except BaseException as error:  # whichever it is, a user would have seen its traceback
        if isinstance(error, KeyboardInterrupt):
            raise
        return FAILED, traceback.format_exc()
    lines = [line for line in said.getvalue().splitlines() if "error: " in line]
    if "Traceback" in said.getvalue():
        return FAILED, said.getvalue()
    if status == 0:
        return DONE, ""
    if case.what.endswith("unchanged"):
        return FAILED, f"what is changed does not run itself: {said.getvalue()}"
    return (REFUSED, lines[0]) if status == 2 and len(lines) == 1 else (FAILED, f"status {status}: {said.getvalue()}")


@contextlib.contextmanager
def inside(folder: str) -> Iterator[None]:
    """With another current folder."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """TimeoutError after `SECONDS`, where the system has alarms."""

    def late(*_: object) -> None:
        raise TimeoutError(f"it took more than {SECONDS} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- what everything runs on --------------------------------------------------------------------------------------

TRAIN, TEST = "set/Dataset_Training_Synthetic", "set/Dataset_Testing_Synthetic"


def make_files() -> None:
    """A data set of clips of eight frames, a checkpoint and an option file, in the current folder."""
    import cv2
    import numpy as np
    import torch
    import yaml

    from csd_plugin.archs.sldnet import SLDNet

    rng = np.random.default_rng(0)
    for folder in ("t1_GT", "t1_Rain_01", "t2_GT", "t2_Rain_01"):
        write_clip(Path(TRAIN, folder), rng, cv2)
    for folder in ("a1_GT", "a1_Rain"):
        write_clip(Path(TEST, folder), rng, cv2)
    torch.manual_seed(0)
    for preset in ("student2", "teacher"):
        torch.save({"params": SLDNet(preset=preset, num_feat=4).state_dict()}, f"{preset}.pth")
    Path("train.yml").write_text(yaml.safe_dump(training()))


def write_clip(folder: Path, rng: Any, cv2: Any) -> None:
    folder.mkdir(parents=True)
    for number in range(1, 9):
        cv2.imwrite(str(folder / f"{number:05d}.png"), rng.integers(0, 256, (30, 40, 3), "uint8"))


# --- command lines ------------------------------------------------------------------------------------------------

CLIP = ["--clip", f"{TEST}/a1_Rain", "--truth", f"{TEST}/a1_GT"]
#: A command line of every job that takes numbers, which ends in a moment; `OUT` becomes a name that is not there.
COMMANDS: dict[str, list[str]] = {
    "data": ["set", "--jobs", "1"],
    "prepare": ["set", "OUT", "--lmdb", "source", "--verify", "--jobs", "1"],
    "rain": [f"{TRAIN}/t1_GT", "OUT"],
    "adapt": [
        *(f"{TEST}/a1_Rain", "--teacher", "teacher.pth", "--student", "student2.pth", "--out", "OUT.pth"),
        *("--frames", "8", "--minutes", "0.01"),
    ],
    "derain": [f"{TEST}/a1_Rain", "OUT", "--model", "student2.pth", "--device", "cpu"],
    "inspect": ["train.yml"],
    "score": [f"{TEST}/a1_Rain", "--truth", f"{TEST}/a1_GT"],
    "table": ["matrix.yml", "--dry-run"],
    "reproduce": ["matrix.yml", "--clean", TRAIN, "--validation", TEST, "--dry-run"],
    "export": ["student2.pth", "OUT.onnx"],
    "figure crops": [*CLIP, "--out", "OUT.png"],
    "figure errors": [*CLIP, "--models", "student2.pth", "--out", "OUT.png"],
    "figure features": [*CLIP, "--models", "student2.pth", "--out", "OUT.png"],
    "figure slice": [*CLIP, "--out", "OUT.png"],
    "figure video": [*CLIP, "--out", "OUT.mkv"],
    "bench infer": ["--networks", "student2.pth", "--backends", "torch", "--sizes", "16x16", "--rounds", "1"],
    "bench step": [
        *("--student-width", "3", "--teacher-width", "3"),
        *("--batch", "1", "--size", "16", "--num-target", "1", "--rounds", "1"),
    ],
    "bench realtime": ["--networks", "student2.pth", "--sizes", "32x32", "--frames", "3"],
    "bench growth": ["--network", "student2.pth", "--size", "16x16", "--frames", "1", "--steps", "1"],
    "bench data": [
        *("set", "--num-frame", "3", "--gt-size", "8", "--batch-size", "1"),
        *("--rounds", "1", "--seconds", "0.01"),
    ],
}


def command_lines() -> Iterator[Case]:
    from csd_plugin.cli import main as csd

    for job, action in numeric_flags():
        for number, text in enumerate(SIZES if takes_sizes(action) else TEXTS):
            flag = max(action.option_strings, key=len)
            values = [text, "0"] if action.nargs == 2 else [text]

            def run(job: str = job, flag: str = flag, values: list[str] = values, number: int = number) -> int:
                out = f"{job.replace(' ', '_')}{flag}{number}"
                line = [word.replace("OUT", out) for word in COMMANDS[job]]
                return csd([*job.split(), *line, *([f"{flag}={values[0]}"] if len(values) == 1 else [flag, *values])])

            yield Case(f"csd {job} {flag} {text[:20]!r}", run)


def numeric_flags() -> Iterator[tuple[str, argparse.Action]]:
    """(job, flag) of every flag of every job that takes numbers or sizes."""
    for name, parser in parsers():
        for action in parser._actions:
            if action.option_strings and (takes_sizes(action) or takes_numbers(action)):
                yield name, action


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The parsers of all jobs, and of their kinds: ('figure crops', parser)."""
    from csd_plugin.cli import JOBS

    for job in JOBS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"csd_plugin.cli.{job}").add_arguments(parser)
        kinds = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        yield from ((f"{job} {kind}", inner) for action in kinds for kind, inner in action.choices.items())
        if not kinds:
            yield job, parser


def takes_numbers(action: argparse.Action) -> bool:
    if not callable(action.type):
        return False
    for text in ("1", "20"):
        with contextlib.suppress(argparse.ArgumentTypeError, ValueError, TypeError):
            return isinstance(action.type(text), int | float | Fraction)
    return False


def takes_sizes(action: argparse.Action) -> bool:
    return "WxH" in str(action.metavar)


# --- option files -------------------------------------------------------------------------------------------------


def training(**changes: Any) -> dict[str, Any]:
    """Options of one training step, with every section that holds numbers."""
    options = {
        "name": "run",
        "model_type": "VideoDerainModel",
        "scale": 1,
        "num_gpu": 0,
        "manual_seed": 3,
        "datasets": {
            "train": {
                "name": "train",
                "type": "PairedVideoDataset",
                "dataroot": "set",
                "num_frame": 6,
                "num_target": 2,
                "gt_size": 12,
                "num_worker_per_gpu": 0,
                "batch_size_per_gpu": 1,
            },
            "val": {
                "name": "val",
                "type": "PairedVideoTestDataset",
                "dataroot": "set",
                "num_frame": 3,
                "frame_range": [1, 3],
            },
        },
        "network_g": {"type": "SLDNet", "preset": "student2", "num_feat": 4},
        "path": {},
        "train": {
            "ema_decay": 0.9,
            "optim_g": {"type": "Adam", "lr": 0.001, "betas": [0.9, 0.99], "weight_decay": 0, "eps": 1e-8},
            "scheduler": {"type": "MultiStepLR", "milestones": [1], "gamma": 0.5},
            "total_iter": 1,
            "pixel_opt": {"type": "PyramidSSIMLoss"},
        },
        "val": {"save_img": False, "val_freq": 1, "pbar": False},
        "logger": {"print_freq": 1, "save_checkpoint_freq": 1, "use_tb_logger": False},
    }
    return changed(options, changes)


def bases() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, job, options) of runs that together have all our sections."""
    from csd_plugin.archs import NETWORKS
    from csd_plugin.distill import OBJECTIVES

    data = "datasets.train"
    yield "training", "train", training()
    cosine = {"type": "CosineAnnealingRestartLR", "periods": [1], "restart_weights": [1], "eta_min": 1e-6}
    restarts = {"type": "MultiStepRestartLR", "milestones": [1], "restarts": [0], "restart_weights": [1]}
    yield "cosine", "train", training(**{"train.scheduler": cosine})
    yield "restarts", "train", training(**{"train.scheduler": restarts})
    yield "SGD", "train", training(**{"train.optim_g": {"type": "SGD", "lr": 0.1, "momentum": 0.9}})
    yield "resident", "train", training(**{f"{data}.type": "ResidentVideoDataset"})
    rendered = {f"{data}.type": "RenderedRainDataset", f"{data}.quality": [90, 95]}
    yield "rendered", "train", training(**rendered)
    smallest = {
        "PReNet": {"num_stage": 1, "num_feat": 4},
        "S2VD": {"num_feat": 4, "num_block": 1},
        "HalfNet": {"preset": "tiny", "num_feat": 4, "num_pair": 1},
    }
    for name in NETWORKS.keys() - {"SLDNet"}:
        network = {"network_g": {"type": name, **smallest.get(name, {})}, "datasets.val": ..., "val": ...}
        yield name, "train", training(**network, **{f"{data}.num_frame": 8})
    teacher = {
        "model_type": "DistillModel",
        "network_t": {"type": "SLDNet", "preset": "teacher", "num_feat": 4},
        "interface_t": {"layout": "window", "num_frame": None},
        "path.pretrain_network_t": "teacher.pth",
        f"{data}.num_frame": 8,
        "datasets.val": ...,
        "val": ...,
    }
    schedule = {"schedule": "linear", "start": 0.1, "end": 0.0, "iters": 2}
    for method, cls in OBJECTIVES.items():
        if method == "Combined":  # whose numbers are those of the others
            continue
        weights = {term: schedule if not number else 0.1 for number, term in enumerate(cls().terms)}
        distill = {"type": method, "weights": weights, "teachers": {"t": 1.0}}
        yield method, "train", training(**teacher | {"train.distill_opt": distill})
    test = {"datasets": {"test_1": {**training()["datasets"]["val"], "name": "test"}}, "train": ..., "logger": ...}
    yield "test", "test", training(**test | {"val": {"save_img": False}, "path.pretrain_network_g": "student2.pth"})


def option_files() -> Iterator[Case]:
    """Every number of every section, changed in the first run that has it."""
    seen: set[str] = set()
    for base, job, options in bases():
        yield Case(f"{base}: unchanged", lambda job=job, options=options: launch(job, options))
        for path in numbers_of(options):
            key = f"{path} {section_type(options, path)}"
            if key in seen:
                continue
            seen.add(key)
            for value in VALUES:
                yield Case(
                    f"{base}: {path} = {str(value)[:20]!r}",
                    lambda job=job, options=options, path=path, value=value: launch(
                        job, changed(options, {path: value})
                    ),
                )


def section_type(options: Mapping[str, Any], path: str) -> str:
    """The `type` of the section that the key is in."""
    section: Any = options
    for name in path.split(".")[:-1]:
        inner = section[int(name)] if isinstance(section, list) else section.get(name)
        if not isinstance(inner, dict):
            break
        section = inner
    return str(section.get("type", ""))


def numbers_of(options: Mapping[str, Any]) -> list[str]:
    """Paths of all keys that take numbers: those that are there, and those that their sections may have."""
    from csd_plugin.archs import NETWORKS
    from csd_plugin.data.datasets import DATASETS
    from csd_plugin.losses import LOSSES
    from csd_plugin.options import sections

    paths = dict.fromkeys(_there(options, ""))
    training_ = options.get("train") or {}
    known: dict[str, Any] = {"": sections.RunSection, **sections.SECTIONS}
    known |= {"train.optim_g": sections.OptimizerSection, "train.scheduler": sections.SchedulerSection}
    for key, content in options["datasets"].items():
        known[f"datasets.{key}"] = sections.dataset_section(DATASETS[content["type"]])
    for key in ("network_g", "network_t"):
        if key in options and options[key]["type"] in NETWORKS:
            known[key] = sections.section_of(NETWORKS[options[key]["type"]])
    if training_:
        known["train.pixel_opt"] = sections.section_of(LOSSES["PyramidSSIMLoss"])
    if "distill_opt" in training_:
        known["train.distill_opt"] = sections.objective_section(training_["distill_opt"]["type"])
    for where, section in known.items():
        if where and _value(options, where) is None:
            continue
        for name, field in section.model_fields.items():
            if _is_number(field.annotation):
                paths[f"{where}.{name}".lstrip(".")] = None
    return [path for path in paths if not path.endswith(".scale")]  # the toolbox sets it


def _there(content: Any, where: str) -> Iterator[str]:
    for name, value in content.items() if isinstance(content, Mapping) else enumerate(content):
        path = f"{where}.{name}".lstrip(".")
        if isinstance(value, Mapping | list):
            yield from _there(value, path)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path


def _is_number(annotation: Any) -> bool:
    """Whether a field takes a number, alone or in a list."""
    if annotation in (int, float):
        return True
    if typing.get_origin(annotation) in (typing.Literal, dict):
        return False
    inner = typing.get_args(annotation) if not isinstance(annotation, types.GenericAlias) else annotation.__args__
    return any(_is_number(part) for part in inner)


def _value(options: Any, path: str) -> Any:
    for name in path.split("."):
        options = options.get(name) if isinstance(options, Mapping) else None
    return options


def changed(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with `section.key` or `section.list.0` replaced; `...` removes the key."""
    result = copy.deepcopy(dict(options))
    for path, value in changes.items():
        *sections, key = path.split(".")
        section: Any = result
        for name in sections:
            section = section[int(name)] if isinstance(section, list) else section.setdefault(name, {})
        if value is ...:
            section.pop(key, None)
        else:
            section[int(key) if isinstance(section, list) else key] = copy.deepcopy(value)
    return result


def launch(job: str, options: Mapping[str, Any]) -> int:
    """`python -m csd_plugin.JOB` in this process and a folder of its own."""
    import yaml

    module = importlib.import_module(f"csd_plugin.{job}")
    argv, here = sys.argv, Path.cwd()
    with tempfile.TemporaryDirectory(dir=here) as folder, inside(folder):
        for name in ("set", "student2.pth", "teacher.pth"):
            Path(name).symlink_to(here / name)
        Path("options.yml").write_text(yaml.safe_dump(dict(options), sort_keys=False))
        sys.argv = [job, "-opt", "options.yml"]
        forget_log()
        try:
            return module.main()
        finally:
            forget_log()
            sys.argv = argv


def forget_log() -> None:
    """The toolbox sets its log up once in a process, and would keep the first run's file."""
    from basicsr.utils import logger

    logger.initialized_logger.clear()
    for handler in list(logging.getLogger("basicsr").handlers):
        logging.getLogger("basicsr").removeHandler(handler)
        handler.close()


# --- matrix files -------------------------------------------------------------------------------------------------

MATRIX: dict[str, Any] = {
    "name": "m",
    "runs": "m",
    "base": "train.yml",
    "seeds": [0],
    "set": {"train.total_iter": 1},
    "rows": {"a": {"seeds": [0], "published": {"psnr": 30.0, "ssim": 0.9}, "set": {"train.ema_decay": 0.5}}},
}


def matrices() -> Iterator[Case]:
    import yaml

    from csd_plugin.cli import main as csd

    Path("matrix.yml").write_text(yaml.safe_dump(MATRIX))
    for path in _there(MATRIX, ""):
        if ".set." in f".{path}":
            continue  # a key of an option file, with a dot in its name
        for number, value in enumerate(VALUES):

            def run(path: str = path, value: Any = value, number: int = number) -> int:
                file = Path(f"matrix_{path}_{number}.yml")
                file.write_text(yaml.safe_dump(changed(MATRIX, {path: value})))
                return csd(["table", str(file), "--dry-run"])

            yield Case(f"matrix: {path} = {str(value)[:20]!r}", run)


if __name__ == "__main__":
    sys.exit(main())

"""Completes a matrix: trains missing runs, resumes interrupted ones, tests and scores, and keeps the rest.

The option files of a run are kept in `results/RUNS_runs/options/RUN.yml`, so that it can also be started by hand. The
run itself is where users of the toolbox look for it, in experiments/RUN and results/RUN.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout
from tqdm import tqdm

from csd_plugin import limited_yaml, plain
from csd_plugin.atomic import write_text
from csd_plugin.data.datasets.paired_video import PairedVideoTestDataset
from csd_plugin.data.layout import SPLITS
from csd_plugin.digests import file_digest, text_digest
from csd_plugin.errors import CSDError
from csd_plugin.lab.matrix import Frames, RainyInput, Run
from csd_plugin.lab.processes import environment, training
from csd_plugin.lifeline import ENDING, endings_interrupt, lifeline
from csd_plugin.metrics import results
from csd_plugin.metrics.image_quality import enlarged
from csd_plugin.metrics.protocols import to_uint8
from csd_plugin.metrics.scores import ClipScores, Scores
from csd_plugin.metrics.scoring import score_folders
from csd_plugin.records import Log
from csd_plugin.stopping import STOPPING

_SIGNALS = (signal.SIGINT, *ENDING)
_INTERRUPTED = tuple(status for number in _SIGNALS for status in (128 + number, -number))
"""Exit statuses of a process stopped by a signal, whether it ended itself or was killed."""
_STOPPED = re.compile(rf"(WARNING: |^error: .*: )({'|'.join(one.name for one in _SIGNALS)})(: stopped after|$)")
"""What such a training prints; torchrun, which starts several processes, has its own exit status."""

_LOADED = {"param_key_g": "params", "strict_load_g": True}
"""How to load weights: keys of `path`, with the toolbox's defaults."""

State = Literal["done", "trained", "interrupted", "missing"]


class Workspace:
    """The files that all matrix files with the same `runs` share, below the current folder."""

    def __init__(self, runs: str) -> None:
        self.folder = Path("results", f"{runs}_runs")

    def options(self, run: Run, job: str) -> Path:
        return self.folder / "options" / f"{run.name}{'' if job == 'train' else '_test'}.yml"

    def log(self, run: Run) -> Path:
        return self.folder / "logs" / f"{run.name}.log"

    def starts(self, run: Run) -> Path:
        """The digests of the checkpoints from which its training started."""
        return self.folder / "starts" / f"{run.name}.json"

    def lock(self, run: Run) -> FileLock:
        """The lock of whoever works on the run."""
        path = self.folder / "locks" / f"{run.name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)

    @property
    def plan(self) -> Path:
        return self.folder / "plan.json"


def state(run: Run) -> State:
    """The state of a run, judging by its files."""
    if run.options is not None:
        left = left_behind(run.name)
        if left != "trained":
            return left
    if run.test is None or not _untested(run):
        return "done"
    return "trained"


def _untested(run: Run) -> list[str]:
    """Its test sets without a result, or with one from another set, network or frames."""
    before = _read_tested(run)
    return [
        name
        for name, made_by in _tested_by(run).items()
        if not _result_file(run, name).is_file() or before.get(name, made_by) != made_by
    ]


def _tested_file(run: Run) -> Path:
    return Path("results", run.name, "tested.json")


def _read_tested(run: Run) -> dict[str, str]:
    """What the results were made with, by test set; empty for results that this program has not made."""
    try:
        content = plain.parse_json(plain.read_text(_tested_file(run)))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _tested_by(run: Run) -> dict[str, str]:
    """A digest, for each test set, of everything its result depends on, except the data set's own frames."""
    test = run.test or {}
    parts: list[Any] = [{key: test.get(key) for key in ("network_g", "interface_g", "val")}]
    paths = test.get("path", {})
    weights = paths.get("pretrain_network_g")
    if weights and Path(weights).is_file():
        parts.append(file_digest(Path(weights)))
        loaded = {key: paths.get(key, default) for key, default in _LOADED.items()}
        if loaded != _LOADED | {
            "param_key_g": "params_ema"
        }:  # otherwise as in earlier versions, whose results stay valid
            parts.append(loaded)
    if isinstance(run.source, Frames):
        files = sorted(file for file in Path(run.source.frames).rglob("*") if file.is_file())
        parts += [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return {
        content["name"]: text_digest(json.dumps(_plain([*parts, content]), sort_keys=True, default=str))
        for content in test.get("datasets", {}).values()
    }


def left_behind(name: str) -> Literal["trained", "interrupted", "missing"]:
    """The state of the training of this name, judging by its files."""
    folder = Path("experiments", name)
    if (folder / "models" / "net_g_latest.pth").is_file():
        return "trained"
    return "interrupted" if any((folder / "training_states").glob("*.state")) else "missing"


def result_files(run: Run) -> list[Path]:
    """The files to which the test pipeline writes the scores of each test set."""
    sets = (run.test or {}).get("datasets", {})
    return [_result_file(run, content["name"]) for content in sets.values()]


def _result_file(run: Run, dataset: str) -> Path:
    return Path("results", run.name, f"{dataset}.json")


def begins_with(run: Run) -> list[Path]:
    """The checkpoints from which its training starts, the student's and the teachers'."""
    paths = run.options["path"] if run.options else {}
    return [Path(value) for key, value in paths.items() if key.startswith("pretrain_network") and value]


def with_dependents(names: Collection[str], runs: Iterable[Run]) -> set[str]:
    """The runs of these names and all that start from them, directly or not; `runs` in the order of `runs_of`."""
    found: set[str] = set()
    files: set[Path] = set()
    for run in runs:
        if run.name in names or files.intersection(begins_with(run)):
            found.add(run.name)
            files.add(run.checkpoint)
    return found


def check_unchanged(runs: Iterable[Run], space: Workspace) -> None:
    """Raise CSDError if a run was begun with options or weights that differ from the matrix's current ones."""
    for run in runs:
        file = space.options(run, "train")
        if run.options is None or not file.is_file() or left_behind(run.name) == "missing":
            continue
        before = limited_yaml.read_yaml(file)
        different = _difference(before, run.options)
        if different:
            raise CSDError(
                f"the row {run.row} was trained with {different}; --retrain {run.row} trains it again, "
                f"or change the matrix back"
            )
        if space.starts(run).is_file():
            began = _read_starts(space.starts(run))
            for start in begins_with(run):
                if start.is_file() and began.get(str(start), "") != file_digest(start):
                    raise CSDError(
                        f"the row {run.row} began with {start}, which has changed since; --retrain {run.row} trains it "
                        f"again"
                    )


def _read_starts(file: Path) -> dict[str, str]:
    try:
        began = plain.parse_json(plain.read_text(file))
    except (OSError, ValueError) as error:
        raise CSDError(f"{file} is damaged ({error}); remove it if the start is still the same") from error
    if not isinstance(began, dict):
        raise CSDError(f"{file} is damaged; remove it if the start is still the same")
    return began


def perform(runs: Mapping[str, Run], space: Workspace, processes: int = 1) -> None:
    """Train and test everything that is not done yet, in order.

    The next call resumes an interrupted training from its last saved state. Several commands may work on the same runs.

    Args:
        processes: per training, on this machine.

    Raises:
        CSDError: a training or test failed; finished ones are kept.
        KeyboardInterrupt: one was stopped by a signal, or this process by Ctrl-C.
    """
    waiting = [run for run in runs.values() if state(run) != "done"]
    shown = "{desc}: {n_fmt}/{total_fmt} [{elapsed}{postfix}]"  # without time left: runs differ
    with endings_interrupt(), tqdm(total=len(waiting), desc="runs", bar_format=shown, disable=None) as bar:
        for run in waiting:
            with _alone(run, space, bar):
                bar.set_postfix_str(run.name)
                _complete(run, space, bar, processes)
            bar.update()


def forget(runs: Sequence[Run], space: Workspace) -> None:
    """Rename the experiments and results of runs, so that they are done again; nothing is deleted.

    Raises CSDError, and changes nothing, if another command is working on one of them.
    """
    with ExitStack() as locks:
        for run in runs:
            try:
                locks.enter_context(space.lock(run).acquire(blocking=False))
            except Timeout as error:
                raise CSDError(
                    f"{run.name} cannot be done again: another command is working on it; wait until it ends"
                ) from error
        for run in runs:
            for folder in (Path("experiments", run.name), Path("results", run.name)):
                if folder.exists():
                    _put_aside(folder)


def _put_aside(folder: Path) -> None:
    number = 1
    while (aside := folder.with_name(f"{folder.name}_before{number}")).exists():
        number += 1
    folder.rename(aside)


def score_frames(run: Run) -> None:
    """Score existing frames on each test set of a run, into results/RUN, like the test pipeline.

    Raises:
        CSDError: frames or truth are missing, or do not match.
    """
    assert run.test is not None
    for given in run.test["datasets"].values():
        content = {**given, "num_frame": 1, "scale": run.test.get("scale", 1)}  # as the toolbox adds it
        scores = _given(Path(run.source.frames), content) if isinstance(run.source, Frames) else _rainy(content)
        results.write(
            Path("results", run.name), content["name"], scores, {"network": run.row, "dataset": content["name"]}
        )


@contextmanager
def _alone(run: Run, space: Workspace, bar: tqdm) -> Iterator[None]:
    """Let only one of the processes that share runs work on this run; the others wait, and then find it done."""
    lock = space.lock(run)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        bar.set_postfix_str(f"{run.name}: waiting for another process")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _complete(run: Run, space: Workspace, bar: tqdm, processes: int) -> None:
    """Do the parts of training and testing a run that are not done yet."""
    if run.options is not None and not run.checkpoint.is_file():
        if left_behind(run.name) == "missing":
            digests = {str(start): file_digest(start) for start in begins_with(run) if start.is_file()}
            _write(space.starts(run), json.dumps(digests, indent=1) + "\n")
        _launch("train", run, run.options, space, bar, processes)
    if state(run) == "trained":
        assert run.test is not None
        made_by = _tested_by(run)
        if isinstance(run.source, RainyInput | Frames):
            score_frames(run)
        else:
            _launch("test", run, run.test, space, bar)
        _write(_tested_file(run), json.dumps(_read_tested(run) | made_by, indent=1) + "\n")


def _launch(job: str, run: Run, options: dict[str, Any], space: Workspace, bar: tqdm, processes: int = 1) -> None:
    """Run `python -m csd_plugin.JOB`; its progress goes to the bar, all its output to the log."""
    file, log = space.options(run, job), space.log(run)
    _write(file, yaml.safe_dump(_plain(options), sort_keys=False, allow_unicode=True))
    if job == "train":
        command = training(file, options, processes)
    else:
        command = [sys.executable, "-m", f"csd_plugin.{job}", "-opt", str(file)]
    error, stopped = "", False
    with (
        Log(log) as sink,
        lifeline(environment(processes)) as line_to_us,
        subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=0,  # a terminal's Ctrl-C must only come from us, as after a second signal it would not save
            **line_to_us,
        ) as process,
    ):
        assert process.stderr is not None
        try:
            for line in process.stderr:
                sink.write(line)
                progress = re.search(r"iter:\s*([\d,]+).*?eta: ([\d:, day]+)", line)
                if progress:
                    bar.set_postfix_str(
                        f"{run.name}, iteration {progress[1].strip(',')}, {progress[2].strip(' ,')} left"
                    )
                elif line.startswith("error:"):
                    error = line.removeprefix("error:").strip()
                elif error and line.startswith(f"{file}: "):  # one of several problems
                    error += "\n" + line.strip()
                stopped = stopped or bool(_STOPPED.search(line))
        except KeyboardInterrupt:
            _stop(process, sink)
            raise
    if process.returncode in _INTERRUPTED or (process.returncode and stopped):
        raise KeyboardInterrupt(f"{job} of {run.name}")
    if process.returncode:
        raise CSDError(f"{job} of {run.name} failed: {error or f'status {process.returncode}'} (log: {log})")


def _stop(process: subprocess.Popen[str], sink: Log) -> None:
    """Let a training end its step and save; a second Ctrl-C ends it at once."""
    assert process.stderr is not None
    for _ in range(2):
        process.terminate()  # not SIGINT, which background processes ignore
        with suppress(KeyboardInterrupt):
            for line in process.stderr:  # its output until it ends
                sink.write(line)
                if line.startswith(STOPPING):
                    tqdm.write(STOPPING, file=sys.stderr)
            break
    process.wait()


def _rainy(content: Mapping[str, Any]) -> Scores:
    """Scores of the input; in super-resolution, of the input enlarged."""
    dataset = PairedVideoTestDataset(content)
    scores = Scores()
    for item in (dataset[index] for index in range(len(dataset))):
        if "gt" not in item:
            raise CSDError(f"the test set {content['name']} has no ground truth, so it cannot be scored; leave it out")
        frame, truth = to_uint8(item["lq"][0]), to_uint8(item["gt"])
        scores.add(item["folder"], Path(item["lq_path"]).stem, enlarged(frame, truth.shape), truth)
    return scores


def _given(folder: Path, content: Mapping[str, Any]) -> Scores:
    """Scores of the frames in the folder that belong to the test set: its clips, and its part of each."""
    dataset = PairedVideoTestDataset(content)
    wanted: dict[str, list[int]] = {}
    for number, frame in dataset.samples:
        wanted.setdefault(dataset.sequences[number].name, []).append(frame)
    every = score_folders(folder, _truth_of(content), clips=list(wanted))
    missing = wanted.keys() - every.clips.keys()
    if missing:
        raise CSDError(f"{folder} has no frames of {', '.join(sorted(missing))}")
    return Scores({name: _part(every.clips[name], frames) for name, frames in wanted.items()})


def _truth_of(content: Mapping[str, Any]) -> Path:
    """The folder with the clean frames of a test set."""
    if content.get("dataroot"):
        return Path(content["dataroot"]) / SPLITS[content.get("split") or "test"]
    if not content.get("dataroot_gt"):
        raise CSDError(f"the test set {content['name']} has no ground truth to score frames against; give dataroot_gt")
    return Path(content["dataroot_gt"])


def _part(clip: ClipScores, frames: Iterable[int]) -> ClipScores:
    names = list(clip.frames)
    return ClipScores({names[i]: clip.frames[names[i]] for i in frames})


def _difference(before: Any, now: Any, where: str = "") -> str:
    """The first key in which two options differ, `key: before instead of now`; empty if none does."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(key for key in now if key not in before)]:
            different = _difference(before.get(key), now.get(key), f"{where}.{key}".lstrip("."))
            if different:
                return different
        return ""
    return "" if _plain(before) == _plain(now) else f"{where} = {before!r} instead of {now!r}"


def _plain(value: Any) -> Any:
    """The value as YAML stores it, with lists for tuples."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else deepcopy(value)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)

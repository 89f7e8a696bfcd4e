"""The work of `gpu_slice.sh`: selects clips to take along; checks, renders, measures, trains in turns, tests."""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MATRIX = ROOT / "options/matrix/gpu_slice.yml"
VALIDATION = ("davis_bmx-trees", "davis_cows", "udacity_solidWhiteRight")
VALIDATION_FRAMES = 28  # the test looks at frames 11 to 25, in windows of 7
LEAST_FRAMES = 9  # of a training clip, which `num_frame` asks for
DATA, MEASURED = Path("datasets/rain_clips"), Path("measured.json")
TRAINING, VALIDATING = "Dataset_Training_Synthetic", "Dataset_Testing_Synthetic"
VERSIONS = 10  # of the rain on a training clip
JPEG_QUALITIES = (75, 95, 85)  # by version, in turns; validation clips have the first
SAVED_EVERY = 60.0  # seconds at most
START_UP = 20.0  # seconds of a training before its first step
LEAST_TURN = 1.0  # seconds
LONGEST_END = 45.0  # seconds for saving and testing
TAR_ENTRY, TAR_END = 512, 20480  # bytes: of a header, and to which contents are filled up; at a tar's end
MARGIN = 10.0  # seconds after --seconds, when all that is left is ended
CONTEXT_GIB = 1.0  # of a GPU's memory, that a process takes for itself
#: Processes are forks of one that has imported these and has touched no GPU: so many of them begin at once.
PROCESSES = multiprocessing.get_context("forkserver")
PRELOADED = ("csd_plugin.train", "csd_plugin.test", "csd_plugin.models.probe", "csd_plugin.data.rain.renderer")
#: how a training ends that has not failed: by its clock, or told to, with or without having saved, or killed
ENDED = (0, 128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL)
#: `--measure`: ways to compute a step, the last one that of the trainings
WAYS: dict[str, dict[str, Any]] = {
    "launched": {"train.cuda_graph": False, "train.optim_g.fused": False},
    "compiled": {"train.cuda_graph": False, "train.optim_g.fused": False, "train.compile": True},
    "as a graph": {},
}
#: `--cpu`: what a rehearsal without a GPU changes, so that some steps fit
SMALL = {
    "num_gpu": 0,
    "train.cuda_graph": False,
    "datasets.train.gt_size": 32,
    "datasets.train.num_frame": 7,
    "datasets.train.num_target": 1,
    "datasets.train.batch_size_per_gpu": 1,
    "logger.print_freq": 5,
}
SMALL_WIDTH = 4
SMALL_CLIPS, SMALL_FRAMES = 4, 14


class SliceError(RuntimeError):
    """An error with one line for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    jobs = parser.add_subparsers(dest="job", required=True)
    pack = jobs.add_parser("pack-clips")
    pack.add_argument("source", type=Path)
    pack.add_argument("target", type=Path)
    pack.add_argument("--bytes", type=int, required=True, help="that all of them may take in a tar file")
    run = jobs.add_parser("run")
    run.add_argument("--seconds", type=float, default=540, help="time for everything (default 540)")
    run.add_argument("--out", type=Path, default=Path("slice"), help="output folder (default slice)")
    run.add_argument(
        "--clips", type=Path, default=ROOT / "clips", help="clean clips, with train/ and validation/ (default: packed)"
    )
    run.add_argument("--before", type=Path, default=ROOT / "before", help="weights to start from (default: packed)")
    run.add_argument(
        "--networks",
        nargs="+",
        type=row_and_share,
        metavar="ROW[=SHARE]",
        help="rows of options/matrix/gpu_slice.yml, and how much of the time each gets beside the others (default all, "
        "and 1)",
    )
    run.add_argument(
        "--measure",
        action="store_true",
        help="only measure, without rain and training: each network's step launched, compiled and as a graph",
    )
    run.add_argument("--cpu", action="store_true", help="rehearse without a GPU: narrow networks, small crops")
    args = parser.parse_args(argv)
    try:
        if args.job == "pack-clips":
            print(pack_clips(args.source, args.target, args.bytes))
        else:
            run_slice(args)
    except (SliceError, ValueError) as error:  # CSDError is a ValueError
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def row_and_share(text: str) -> tuple[str, float]:
    """'teacher=3' -> ('teacher', 3.0). Raises argparse.ArgumentTypeError."""
    row, equals, share = text.partition("=")
    try:
        number = float(share) if equals else 1.0
    except ValueError:
        number = 0.0
    if not row or not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: give ROW or ROW=SHARE, a share above 0")
    return row, number


# ---------------------------------------------------------------------- clips
def pack_clips(source: Path, target: Path, room: int) -> str:
    """Copy the first frames of each clip: for validation, those that the test needs; of others, as many as fit."""
    clips = {folder.name: sorted(folder.iterdir()) for folder in sorted(source.iterdir()) if folder.is_dir()}
    missing = [name for name in VALIDATION if name not in clips]
    if missing:
        raise SliceError(f"{source} lacks the validation clip {missing[0]}")
    left = room - TAR_END - TAR_ENTRY * (len(clips) + 3)  # folders
    for name in VALIDATION:
        frames = clips.pop(name)[:VALIDATION_FRAMES]
        left -= packed_size(frames)
        copy_frames(frames, target / "validation" / name)
    if not clips:
        raise SliceError(f"{source} has no clips to train on, beside those for validation")
    count = max(map(len, clips.values()))
    while count >= LEAST_FRAMES and sum(packed_size(clip[:count]) for clip in clips.values()) > left:
        count -= 1
    if count < LEAST_FRAMES:
        raise SliceError(f"{source}: {LEAST_FRAMES} frames of every clip do not fit into {max(left, 0) // 1000} KB")
    for name, frames in clips.items():
        copy_frames(frames[:count], target / "train" / name)
    return f"{len(clips)} clips to train on, their first {count} frames; {len(VALIDATION)} to validate on"


def packed_size(frames: Iterable[Path]) -> int:
    """Bytes in a tar file."""
    return sum(TAR_ENTRY * (1 - -frame.stat().st_size // TAR_ENTRY) for frame in frames)


def copy_frames(frames: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for frame in frames:
        shutil.copyfile(frame, folder / frame.name)


# ---------------------------------------------------------------------- a slice
@dataclass(frozen=True)
class Deadlines:
    """The end of each part, by `time.monotonic()`. What is not done by then is left out, and the table says so.

    Every part ends by the clock of this process, which stops the others: a slow machine gets less done, not later.
    Start-up, which has been measured by then, comes off first.

    Args:
        ready: when start-up was over.
        end: of it all.
    """

    ready: float
    end: float

    def _at(self, share: float) -> float:
        return self.ready + share * max(self.end - self.ready, 0.0)

    @property
    def rendered(self) -> float:
        return self._at(0.2)

    @property
    def measured(self) -> float:
        return self._at(0.35)

    def _before_end(self, share: float) -> float:
        """The share for what follows the trainings, which takes no longer in long slices."""
        end = self._at(1.0)
        return end - share * min(end - self._at(0.8), LONGEST_END)

    @property
    def trained(self) -> float:
        """When trainings have ended by themselves, or are told to end, which makes them save."""
        return self._before_end(1.0)

    @property
    def saved(self) -> float:
        """When trainings that are still running are killed."""
        return self._before_end(0.6)

    @property
    def tested(self) -> float:
        return self._before_end(0.2)

    @property
    def saves_every(self) -> float:
        """Seconds between two saves of a training."""
        return min(SAVED_EVERY, self._at(0.1) - self.ready)


@dataclass
class Network:
    """options, test: contents of option files. start: weights that it starts from. share: of the time, beside those of
    the others. step: seconds. memory: GiB at most, 0 on a CPU. before: iterations of earlier slices in this folder."""

    row: str
    name: str
    options: dict[str, Any]
    test: dict[str, Any]
    start: Path | None = None
    share: float = 1.0
    step: float = 0.0
    memory: float = 0.0
    before: int = 0
    note: str = ""

    @property
    def folder(self) -> Path:
        return Path("experiments", self.name)

    @property
    def newest(self) -> Path | None:
        """The weights that were saved last: a training that is stopped saves them by iteration alone."""
        saved = self.folder.glob("models/net_g_*.pth")
        return max(saved, key=lambda file: file.stat().st_mtime_ns, default=None)

    @property
    def states(self) -> list[Path]:
        """The states from which a training can be resumed, oldest first."""
        return sorted(self.folder.glob("training_states/*.state"), key=lambda file: int(file.stem))

    @property
    def steps(self) -> int:
        """Iterations whose weights are on the disk."""
        return int(self.states[-1].stem) if self.states else 0


def run_slice(args: argparse.Namespace) -> None:
    began = began_at()
    end = began + args.seconds
    clips, before = args.clips.resolve(), args.before.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    os.chdir(args.out)
    Path("table.md").unlink(missing_ok=True)
    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, max(end + MARGIN - time.monotonic(), 0.1))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by way of `finally`
    PROCESSES.set_forkserver_preload(list(PRELOADED))
    importlib.import_module("multiprocessing.forkserver").ensure_running()  # it imports beside this process
    try:
        networks = elsewhere(plan, args.networks, before, args.cpu)
        deadlines = Deadlines(time.monotonic(), end)
        say(f"ready after {deadlines.ready - began:.0f} s")
        write_table(networks, args.seconds, "not begun")
        room = elsewhere(check_machine, args.cpu)
        ways = WAYS if args.measure and not args.cpu else {"": {}}
        measuring = start_measuring(networks, args.cpu, ways)  # needs the GPU, and rain the processors
        if not args.measure:
            render_rain(clips, args.cpu, deadlines.rendered)
        end_measuring(measuring, networks, deadlines.tested if args.measure else deadlines.measured)
        if not args.measure:
            train(networks, room, deadlines)
            elsewhere(keep_weights, networks)
            write_table(networks, args.seconds)  # scores come later
            test(networks, deadlines.tested)
        print(elsewhere(write_table, networks, args.seconds), flush=True)
    finally:
        end_children()
    say(f"all of it took {time.monotonic() - began:.1f} of {args.seconds:g} s")


def began_at() -> float:
    """When the command began, by `time.monotonic()`, as told by the shell script, which installs packages first."""
    return time.monotonic() - max(time.time() - float(os.environ.get("GPU_SLICE_BEGAN", "inf")), 0.0)


def give_up(*_: object) -> None:
    """After the last moment: stop everything. What was saved and written by then stays."""
    end_children()
    table = Path("table.md")
    print(table.read_text() if table.is_file() else "nothing was begun", flush=True)
    os.write(2, f"error: not done {MARGIN:g} s after --seconds; what is saved so far is in the table\n".encode())
    os._exit(3)


def end_children() -> None:
    """End children that are still running when this process ends, and the process that forks them."""
    stop(multiprocessing.active_children(), time.monotonic() + 2)
    server = getattr(importlib.import_module("multiprocessing.forkserver"), "_forkserver", None)
    number = getattr(server, "_forkserver_pid", None)  # which looks for its starter's end only when it has imported
    if number is not None:
        os.kill(number, signal.SIGKILL)


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def check_machine(cpu: bool) -> float:
    """GiB of the GPU's memory that are free. Raises SliceError where something is missing."""
    import torch

    say(f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} processors")
    free = shutil.disk_usage(".").free / 2**30
    if free < 2:
        raise SliceError(f"{free:.1f} GiB of disk are free; 2 are needed")
    if torch.cuda.is_available():
        facts = torch.cuda.get_device_properties(0)
        cudnn = torch.backends.cudnn.version()
        say(f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, cuDNN {cudnn}")
        return torch.cuda.mem_get_info()[0] / 2**30
    if not cpu:
        raise SliceError("torch finds no GPU; --cpu rehearses without one")
    say("no GPU: a rehearsal with narrow networks, whose weights are useless")
    return float("inf")


# ---------------------------------------------------------------------- rain
def render_rain(clips: Path, cpu: bool, until: float) -> None:
    """The rain of `csd reproduce`, as far as time goes: several versions of a training clip, one of others.

    Not by `csd rain`, which reads videos too: PyAV's wheel would take half of what may travel.
    Raises SliceError where not even one training clip gets done.
    """
    began = time.monotonic()
    tasks = [task for task in rain_tasks(clips, cpu) if not task.target.is_dir()]
    workers = min(max((os.cpu_count() or 1) - 1, 1), len(tasks))  # one measures
    done = 0
    with PROCESSES.Pool(max(workers, 1)) as pool:  # which ends with the block, whatever is left
        results = pool.imap_unordered(rain_on, tasks)
        try:
            for _ in tasks:
                results.next(max(until - time.monotonic(), 0.01))  # type: ignore[attr-defined]
                done += 1
        except multiprocessing.TimeoutError:
            pass
    training = complete(DATA / TRAINING)
    seconds = time.monotonic() - began
    say(f"rain rendered on {done} of {len(tasks)} clips in {seconds:.0f} s" if tasks else "all clips have their rain")
    if not training:
        raise SliceError(f"no training clip was rendered in {seconds:.0f} s; give more --seconds")


@dataclass(frozen=True)
class Rain:
    """clip: its clean frames, of which `frames` count. target: the folder of rainy ones, beside the clean `truth`."""

    clip: Path
    target: Path
    truth: Path
    frames: int | None
    seed: int
    version: int


def rain_tasks(clips: Path, cpu: bool) -> list[Rain]:
    """Validation first, then a first version of every training clip, then the others. Raises SliceError."""
    tasks = []
    for part, split, versions, seed in (("validation", VALIDATING, 1, 1000), ("train", TRAINING, VERSIONS, 0)):
        if not (clips / part).is_dir():
            raise SliceError(f"{clips} has no folder {part}; pack clips, or give --clips")
        folders = sorted((clips / part).iterdir())[: SMALL_CLIPS if cpu else None]
        for version in range(1, 2 if cpu else versions + 1):
            for clip in folders:
                name = f"{clip.name}_Rain_{version:02d}" if versions > 1 else f"{clip.name}_Rain"
                folder, frames = DATA / split, SMALL_FRAMES if cpu else None
                tasks.append(Rain(clip, folder / name, folder / f"{clip.name}_GT", frames, seed, version))
    return tasks


def rain_on(task: Rain) -> None:
    """A folder of rainy frames and, with the first version and before them, the clean ones next to it."""
    import cv2

    from csd_plugin.data.rain import PRESETS
    from csd_plugin.data.rain.renderer import clip_renderer

    cv2.setNumThreads(1)
    files = sorted(task.clip.iterdir())[: task.frames]
    if task.version == 1 and not task.truth.is_dir():
        with draft_of(task.truth) as draft:
            for number, file in enumerate(files):
                shutil.copyfile(file, draft / f"{number + 1:05d}{file.suffix.lower()}")
    rain, quality = None, JPEG_QUALITIES[(task.version - 1) % len(JPEG_QUALITIES)]
    with draft_of(task.target) as draft:
        for number, file in enumerate(files):
            frame = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
            rain = rain or clip_renderer(PRESETS["nturain"], task.seed, task.clip.name, task.version, frame)
            rainy = cv2.cvtColor(rain.render(frame, number), cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(draft / f"{number + 1:05d}.jpg"), rainy, [cv2.IMWRITE_JPEG_QUALITY, quality])


@contextmanager
def draft_of(folder: Path) -> Iterator[Path]:
    """A folder that gets its name when it is complete."""
    draft = folder.with_name(f".{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    yield draft
    draft.rename(folder)


def complete(split: Path) -> list[str]:
    """Remove what is half rendered: drafts, and truth without rain. Returns the clips that are left."""
    rainy = {folder.name.split("_Rain")[0] for folder in split.glob("[!.]*_Rain*")}
    for folder in split.glob("*"):
        if folder.name.startswith(".") or folder.name.removesuffix("_GT") not in {*rainy, folder.name}:
            shutil.rmtree(folder)
    return sorted(rainy)


# ---------------------------------------------------------------------- networks
def plan(rows: Sequence[tuple[str, float]] | None, before: Path, cpu: bool) -> list[Network]:
    """The networks of the matrix, starting from the weights of the slice before where it left any."""
    shares = dict(rows or ())
    if len(shares) < len(rows or ()):
        raise SliceError("--networks names a row twice")
    from csd_plugin.lab.matrix import changed, read_matrix, runs_of

    networks = []
    for run in runs_of(read_matrix(MATRIX), MATRIX, list(shares) or None).values():
        assert run.options is not None and run.test is not None
        options, test = run.options, changed(run.test, {"num_gpu": int(not cpu)})
        if cpu:
            options = changed(options, SMALL | {"network_g.num_feat": SMALL_WIDTH})
            test = changed(test, {"network_g.num_feat": SMALL_WIDTH, "datasets.test_1.frame_range": [7, 7]})
        start = start_of(run.row, before, cpu)
        if start is not None:
            options = changed(options, {"path.pretrain_network_g": str(start), "path.param_key_g": "params"})
        network = Network(run.row, run.name, options, test, start, shares.get(run.row, 1.0))
        network.before = network.steps
        say(f"{run.row}: from {(network.states or [start])[-1] or 'the beginning'}")
        networks.append(network)
    return networks


def start_of(row: str, before: Path, cpu: bool) -> Path | None:
    """The weights of the slice before, else those that ship, which narrow networks cannot take; None: neither."""
    shipped = [] if cpu else [ROOT / "csd_plugin/weights" / f"{row}.pth"]
    return next((file for file in (before / f"{row}.pth", *shipped) if file.is_file()), None)


# ---------------------------------------------------------------------- measuring
def start_measuring(networks: Sequence[Network], cpu: bool, ways: Mapping[str, dict[str, Any]]) -> Any:
    """A process that writes seconds and memory of a step of each network to MEASURED. ways: as WAYS."""
    from csd_plugin.lab.matrix import changed

    MEASURED.unlink(missing_ok=True)
    given = [(one.row, way, changed(one.options, change)) for one in networks for way, change in ways.items()]
    return start(measure_all, given, cpu, MEASURED.resolve(), log=None)


def end_measuring(child: Any, networks: Sequence[Network], until: float) -> None:
    """Take over what it has found by then; what it has not got to is noted."""
    wait([child], until)
    stop([child], until)
    found = json.loads(MEASURED.read_text()) if MEASURED.is_file() else {}
    for network in networks:
        facts = found.get(network.row, {"note": "left out: not measured in time"})
        network.step, network.memory = facts.get("step", 0.0), facts.get("memory", 0.0)
        network.note = facts.get("note", "")
        if network.note:
            say(f"{network.row} {network.note}")


def measure_all(given: Sequence[tuple[str, str, dict[str, Any]]], cpu: bool, file: Path) -> None:
    """Into the file, network by network: step (s), memory (GiB), or a note of what failed; of several ways, the last.

    Args:
        given: row, way, and the options of a training.
    """
    import torch

    from csd_plugin.atomic import write_text
    from csd_plugin.bench.measure import MatrixRate
    from csd_plugin.errors import first_line

    device = torch.device("cpu" if cpu else "cuda:0")
    torch.backends.cudnn.benchmark = True  # as trainings have
    if cpu:
        torch.set_num_threads(1)  # as trainings have
    rate = MatrixRate(device, torch.float32 if cpu else torch.bfloat16).measure()
    say(f"matrix products: {2 * rate / 1e12:.2f} TFLOP/s in {'fp32' if cpu else 'bf16'}")
    found: dict[str, dict[str, Any]] = {}
    for row, way, options in given:
        title = f"{row}, {way}" if way else row
        try:
            found[row] = measure_one(title, options, device, rate)
        except (RuntimeError, ValueError) as error:  # too little memory, for one
            found[row] = {"note": f"left out: measuring it failed: {first_line(error)}"}
            say(f"{title}: {first_line(error)}")
        write_text(file, json.dumps(found))


def measure_one(title: str, options: Mapping[str, Any], device: Any, rate: float) -> dict[str, Any]:
    """Of the forward pass and the whole step also the share of the device's own rate, as a line."""
    import torch

    from csd_plugin.archs.interface import run_network
    from csd_plugin.bench.measure import finished, seconds
    from csd_plugin.bench.operations import operations
    from csd_plugin.models.probe import Probe

    on_gpu, times = device.type == "cuda", 10 if device.type == "cuda" else 2
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    probe = Probe(options)
    model, step = probe.model, finished(probe.step, device)
    step()
    took = min(seconds(step) for _ in range(times))
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else 0.0
    useful = operations(model.net_g, model.num_frame).useful * model.gt.numel() / 3

    def forward() -> None:
        with torch.no_grad():
            interface = model.interface_of(model.net_g)
            run_network(model.net_g, model.lq, model.gt.shape[1], interface, autocast=model.autocast_dtype)

    once = finished(forward, device)
    once()
    ahead = min(seconds(once) for _ in range(times))
    say(
        f"{title}: step {1e3 * took:.1f} ms ({3 * useful / took / rate:.1%} of matrix products), forward "
        f"{1e3 * ahead:.1f} ms ({useful / ahead / rate:.1%}), {memory:.1f} GiB"
    )
    return {"step": took, "memory": memory}


# ---------------------------------------------------------------------- processes
def start(target: Callable[..., None], *arguments: Any, log: Path | None) -> Any:
    """A process that has imported everything already. log: the file for its output; None: this process's output."""
    child = PROCESSES.Process(target=in_child, args=(target, arguments, log))
    child.start()
    return child


def elsewhere(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function, called in such a process, as this one must not import anything slow."""
    with PROCESSES.Pool(1) as pool:
        return pool.apply(function, arguments)


def in_child(target: Callable[..., None], arguments: Sequence[Any], log: Path | None) -> None:
    if log is not None:
        with log.open("a", encoding="utf-8") as sink:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
    multiprocessing.set_start_method("fork", force=True)  # a loader's workers would import everything anew
    threading.Thread(target=end_with_parent, daemon=True).start()
    target(*arguments)


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def launch(job: str, network: Network, options: Mapping[str, Any]) -> Any:
    """`csd_plugin.train` or `.test` of this network, with one thread: on a busy machine several wait for each other."""
    import yaml

    file, log = Path("options", f"{network.row}_{job}.yml"), Path("logs", f"{network.row}.log")
    for path in (file, log):
        path.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(dict(options), sort_keys=False), encoding="utf-8")
    return start(launched, job, str(file), time.monotonic(), log=log.resolve())


def launched(job: str, file: str, began: float) -> None:
    import torch

    torch.set_num_threads(1)
    module = importlib.import_module(f"csd_plugin.{job}")
    trains = job == "train"
    sys.argv = [f"csd_plugin.{job}", "-opt", file, *(["--auto_resume"] if trains else [])]
    sys.exit(module.main(began) if trains else module.main())


def wait(children: Iterable[Any], until: float) -> None:
    """Wait for all children, but not beyond this time."""
    for child in children:
        child.join(max(until - time.monotonic(), 0.0))


def stop(children: Iterable[Any], until: float) -> list[Any]:
    """Tell children that are still running to end, and kill them at `until`. Returns those that had to be told."""
    late = [child for child in children if child.is_alive()]
    for child in late:
        child.terminate()
    wait(late, until)
    for child in late:
        child.kill()
        child.join()
    return late


# ---------------------------------------------------------------------- training
def train(networks: Sequence[Network], room: float, deadlines: Deadlines) -> None:
    """One after the other, each in a process; they end by the clock, or are stopped.

    Beside each other they would share the GPU in slices of time, and lose some: measured on an H200, three together
    (teacher, large, realtime) kept it busy for 60 % of the time, with steps that took two to three times as
    long as alone. Only the start of the next one, which hardly needs it, is beside the training before.
    """
    began = time.monotonic()
    if all(network.note for network in networks):
        return
    chosen = fitting([one for one in networks if not one.note], room, elsewhere(resident_memory))
    spent = elsewhere(seconds_before, chosen)
    children: dict[str, Any] = {}
    turn_begins = began
    for place, network in enumerate(chosen):
        turn = (deadlines.trained - turn_begins) * network.share / sum(one.share for one in chosen[place:])
        if turn < LEAST_TURN:
            network.note = "not begun: no time was left"
            continue
        turn_ends = turn_begins + turn
        network.options["train"]["max_seconds"] = round(spent[network.row] + turn_ends - time.monotonic(), 1)
        every = deadlines.saves_every / network.step
        network.options["logger"]["save_checkpoint_freq"] = max(1, round(every))
        child = children[network.row] = launch("train", network, network.options)
        ahead = 0.0 if network is chosen[-1] else min(START_UP, turn / 2)
        child.join(max(turn_ends - ahead - time.monotonic(), 0.0))
        turn_begins = turn_ends if child.is_alive() else time.monotonic()
    wait(children.values(), deadlines.trained)
    late = stop(children.values(), deadlines.saved)
    for network in chosen:
        if network.row in children:
            child = children[network.row]
            network.note = how_it_ended(network, child.exitcode, child in late)
    ended = "; ".join(f"{one.row} {one.steps - one.before:,}" for one in chosen)
    say(f"{len(children)} networks trained for {time.monotonic() - began:.0f} s; steps: {ended}")


def how_it_ended(network: Network, status: int, late: bool) -> str:
    """Of a training: nothing where it did so by its clock. late: it was told to, or killed."""
    if status not in ENDED or (status == -signal.SIGKILL and not late):
        return f"training failed with status {status}: {last_error(network)}"
    if network.steps == network.before:
        return "not begun: its first step was not done in time" if late else "no step was saved"
    if status == -signal.SIGKILL:
        return f"killed: it took longer to end; weights of its last save, step {network.steps:,}"
    return "stopped: its step at the end took longer than those before" if late else ""


def seconds_before(networks: Sequence[Network]) -> dict[str, float]:
    """By row, those that a training has had which is resumed, as its clock counts them."""
    import torch

    newest = {network.row: network.states[-1] for network in networks if network.states}
    had = {row: float(torch.load(state, map_location="cpu")["seconds"]) for row, state in newest.items()}
    return {network.row: had.get(network.row, 0.0) for network in networks}


def resident_memory() -> float:
    """GiB of the training clips, which each process keeps decoded on the GPU."""
    import cv2

    total = 0
    for clip in (DATA / TRAINING).iterdir():
        frames = sorted(clip.iterdir())
        total += len(frames) * cv2.imread(str(frames[0])).nbytes
    return total / 2**30


def fitting(networks: Sequence[Network], room: float, resident: float) -> list[Network]:
    """Those for which the GPU has room, also while the one before ends; a process needs some for itself and clips."""
    chosen: list[Network] = []
    before = 0.0
    for network in networks:
        needed = 1.2 * network.memory + resident + CONTEXT_GIB
        if before + needed <= room:
            chosen.append(network)
            before = needed
        else:
            beside = f" beside the {before:.1f} of {chosen[-1].row}" if chosen else ""
            network.note = f"left out: needs {needed:.1f} GiB{beside}, the GPU has {room:.1f}"
            say(f"{network.row} {network.note}")
    return chosen


def last_error(network: Network) -> str:
    lines = Path("logs", f"{network.row}.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.startswith("error:")), lines[-1] if lines else "no output")


# ---------------------------------------------------------------------- results
def test(networks: Sequence[Network], until: float) -> None:
    """Those that have weights, on whole frames of the validation clips; as many at once as there are processors."""
    for network in networks:  # scores of earlier slices are not those of these weights
        result_of(network).unlink(missing_ok=True)
    waiting = [network for network in networks if network.newest is not None]
    if not (DATA / VALIDATING).is_dir():
        waiting = []
    running: dict[str, tuple[Network, Any]] = {}
    at_once = os.cpu_count() or 1
    while (waiting or running) and time.monotonic() < until:
        while waiting and len(running) < at_once:
            network = waiting.pop(0)
            options = network.test | {"path": network.test["path"] | {"pretrain_network_g": str(network.newest)}}
            running[network.row] = network, launch("test", network, options)
        for row, (network, child) in list(running.items()):
            child.join(0.02)
            if child.exitcode is not None:
                del running[row]
                if child.exitcode:
                    add_note(network, f"test failed: {last_error(network)}")
    for network, child in running.values():
        child.kill()
        child.join()
        add_note(network, "not tested: no time was left")
    for network in waiting:
        add_note(network, "not tested: no time was left")


def result_of(network: Network) -> Path:
    return Path("results", network.name, "validation.json")


def add_note(network: Network, note: str) -> None:
    network.note = "; ".join(filter(None, (network.note, note)))


def keep_weights(networks: Sequence[Network]) -> None:
    """By row, for the next slice too. A network that has not trained keeps those that it would have started from.

    Those that are there already, of a slice before in this folder, stay until the new ones are whole.
    """
    import torch

    from csd_plugin.atomic import remove_drafts, replacing

    Path("weights").mkdir(exist_ok=True)
    remove_drafts(Path("weights"))  # they would travel, too
    for network in networks:
        kept = Path("weights", f"{network.row}.pth")
        if network.newest is not None:
            weights = torch.load(network.newest, map_location="cpu", weights_only=True)
            with replacing(kept) as draft:
                torch.save({"params": weights.get("params_ema", weights["params"])}, draft)
        elif network.start is not None:
            with replacing(kept) as draft:
                shutil.copyfile(network.start, draft)


def write_table(networks: Sequence[Network], length: float, note: str = "") -> str:
    """`table.md`; returns it. note: for networks that have none."""
    from csd_plugin.atomic import write_text

    lines = [
        f"A slice of {length:g} s; PSNR in dB / SSIM of the luma on {', '.join(VALIDATION)}.",
        "",
        "| network | steps | of this slice | ms of a step alone | validation | |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for network in networks:
        score, results = "-", result_of(network)
        if results.is_file():
            from csd_plugin.metrics.results import load_results

            found = load_results(results).scores.summary()
            score = f"{found['nturain_y/psnr']:.2f} / {found['nturain_y/ssim']:.4f}"
        alone, steps = f"{1e3 * network.step:.1f}" if network.step else "-", network.steps
        new = steps - network.before
        lines.append(f"| {network.row} | {steps:,} | {new:,} | {alone} | {score} | {network.note or note} |")
    text = "\n".join(lines)
    write_text(Path("table.md"), text + "\n")
    return text


if __name__ == "__main__":
    sys.exit(main())

"""Make every write of every command fail, one at a time, and check that nothing is left half written or lost.

    python tools/full_disk.py
    python tools/full_disk.py --only train derain --errors ENOSPC --each 3

Every command first runs on small files without a fault, which gives the places where it writes: each file, and what is
done to it (open, write, rename, mkdir, link, sync, size). Then it runs again for each place, in a folder like the first
one, on a disk that is full (ENOSPC) or forbidden (EACCES) from there on, or fails there (EIO). The command must end
with status 2 and one line that names a file, or say what it has done without and have all its results. Final names must
hold complete results or the earlier ones, and the same command on a good disk must then give the same results as
without faults. The exit status is 1 if a check fails. Needs Linux 5.5 or newer on x86-64; see tests/faults.py.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import importlib
import itertools
import json
import os
import random
import re
import shutil
import sys
import tempfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from faults import OPEN, RENAME, SYNC, WRITE, Disk, Ended, Write, run_on, why_not  # noqa: E402

REFUSED, WITHOUT, UNTOLD, TRACEBACK, HALF, LOST, STUCK = OUTCOMES = (
    "a line", "did without", "not told", "traceback", "half written", "lost", "stuck"
)  # fmt: skip
GOOD = (REFUSED, WITHOUT)
ERRORS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EACCES")}
FRAMES = (9, 14)
"""Of a clip of the data set, and of the other."""
_VIDEO = r"\.(mkv|mp4)$"  # the container names itself and the time
_TICK = 0.08
"""Seconds that pass, for `csd adapt`, from one look at the clock to the next."""
_DRAFT = re.compile(r"\.part(\.\w+)?$")


@dataclass(frozen=True)
class Command:
    """A command line, in a folder with the files in `in`.

    Attributes:
        before: command lines whose results are there already; they must stay, or be replaced as a whole.
        again: what is added to complete a run that was cut off, and the file from which such a run goes on.
        varies: pattern of files that are not the same in two runs: they must be readable.
        grows: pattern of what may be there unfinished, under a name that says so, or as a log.
        skipped: pattern of places that other commands have shown.
    """

    line: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    again: tuple[str, str] | None = None
    varies: str = r"\Z.\A"
    grows: str = r"\Z.\A"
    skipped: str = r"\Z.\A"


def _commands() -> dict[str, Command]:
    net, other, frames = ("--model", "in/net.pth"), ("--model", "in/other.pth"), "in/frames"
    to_folder, to_video = ("derain", frames, "out/clean"), ("derain", "in/clip.mp4", "out/clean.mp4")
    to_rain = ("rain", frames, "out/rainy.mp4")
    to_score = ("score", frames, "--out", "out/s.json", "--truth")
    prepare, one_job = ("prepare", "in/data", "out/data"), ("--jobs", "1")
    store = {"grows": r"\.lmdb\.partial/", "varies": r"\.mdb$"}
    adapt = ("adapt", frames, "--teacher", "in/half.pth", "--student", "in/half2.pth", "--out", "out/g.pth")
    bench = ("bench", "infer", "--networks", "in/net.pth", "--sizes", "32x24", "--rounds", "1", "--json", "out/b.json")
    crops = ("figure", "crops", "--clip", frames, "--truth", "in/truth", "--models", "in/net.pth", "--out", "out/c.pdf")
    movie = ("figure", "video", "--clip", frames, "--models", "in/net.pth", "--out", "out/v.mp4")
    log = r"\.log$|tb_logger/"
    of_run = r"training_states/|models/|visualization/|metrics/|_archived_"
    table = r"results/table/|results/.*\.(json|csv|md|html|tex)$"
    return {
        "derain to a folder": Command((*to_folder, *net), again=("--resume", "out/clean")),
        "derain over a folder": Command((*to_folder, *net, "--overwrite"), before=((*to_folder, *other),)),
        "derain to mkv": Command(("derain", frames, "out/clean.mkv", *net), varies=_VIDEO),
        "derain over mp4": Command((*to_video, *net, "--overwrite"), before=((*to_video, *other),), varies=_VIDEO),
        "prepare a folder": Command((*prepare, *one_job)),
        "prepare an archive": Command(("prepare", "in/data.zip", "out/data", *one_job)),
        "prepare videos": Command(("prepare", "in/videos", "out/data", "--split", "test", "--jobs", "2")),
        "prepare a store": Command((*prepare, "--lmdb", "png", "--verify", *one_job), **store),
        "prepare for basicsr": Command((*prepare, "--lmdb", "source", "--for", "basicsr", *one_job), **store),
        "data": Command(("data", "in/data", "--html", "out/r.html", "--json", "out/r.json", *one_job)),
        "rain": Command(("rain", frames, "out/rainy", *one_job)),
        "rain over a video": Command(
            (*to_rain, "--overwrite"), before=((*to_rain, "--preset", "light"),), varies=_VIDEO
        ),
        "rain on a sheet": Command(("rain", frames, "--contact-sheet", "out/sheet.png")),
        "score": Command((*to_score, "in/truth"), before=((*to_score, frames),)),
        "figure": Command(crops, varies=r"\.pdf$"),
        "figure of a video": Command(movie, varies=_VIDEO),
        "export to onnx": Command(("export", "in/half.pth", "out/n.onnx")),
        "export over pt2": Command(
            ("export", "in/half.pth", "out/n.pt2"), before=(("export", "in/half2.pth", "out/n.pt2"),), varies=r"\.pt2$"
        ),
        "export to int8": Command(
            ("export", "in/half.pth", "out/n.onnx", "--int8", "--calibrate", frames), varies=r"\.onnx$"
        ),
        "adapt": Command(
            (*adapt, "--minutes", "0.02", "--device", "cpu"), again=("--resume", "out/g.cache/g.state"),
            varies=r"g\.pth|g_report|\.state$",
            grows=r"g\.cache/",
        ),
        "link": Command(("link", "out/tree/basicsr"), before=(("copy the toolbox",),)),
        "bench": Command(bench, varies=r"out/b\."),
        "table": Command(("table", "in/matrix.yml", "--no-train"), before=(("table", "in/matrix.yml"),), varies=table),
        "table with training": Command(
            ("table", "in/matrix.yml"), varies=rf"{table}|\.yml$", grows=rf"{log}|{of_run}|\.txt$",
            skipped=r"(models|training_states|visualization|metrics|tb_logger)\b|experiments/.*\.(log|yml)$",
        ),
        "test": Command(
            ("csd_plugin.test", "-opt", "in/test.yml"), grows=rf"{log}|_archived_", varies=r"\.json$|\.yml$"
        ),
        "train": Command(
            ("csd_plugin.train", "-opt", "in/train.yml", "--auto_resume"), grows=rf"{log}|{of_run}", varies=r"\.yml$"
        ),
    }  # fmt: skip


class World:
    """A folder in which commands run: `in` has what they read, and everything else is theirs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder / "world", folder / "log"
        self.given = self.folder / "in"
        self.given.mkdir(parents=True)
        _make_inputs(self.given)
        self.inputs = contents(self.given)
        self._kept = folder / "kept"

    def reset(self, command: Command) -> dict[str, str]:
        """As before the command; the results that are there then."""
        for path in self.folder.iterdir():
            if path != self.given:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        kept = self._kept / hashlib.sha256(repr(command.before).encode()).hexdigest()[:8]
        if kept.exists():
            shutil.copytree(kept, self.folder, dirs_exist_ok=True, symlinks=True)
        else:
            for name in ("out", "tmp"):
                (self.folder / name).mkdir()
            for line in command.before:
                ended = self.run(line, Disk())
                if ended.status:
                    raise RuntimeError(f"{line}: {ended.said}")
            shutil.rmtree(self.folder / "tmp")
            (self.folder / "tmp").mkdir()
            shutil.copytree(
                self.folder, kept, ignore=lambda folder, _: ["in"] if folder == str(self.folder) else [], symlinks=True
            )
        return self.results()

    def run(self, line: Sequence[str], disk: Disk) -> Ended:
        return run_on(disk, partial(_start, self.folder, line), self.folder, self.log)

    def results(self) -> dict[str, str]:
        """What lies in the folder and was not given: path -> digest."""
        return {name: digest for name, digest in contents(self.folder).items() if not name.startswith(("in/", "tmp/"))}


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _start(folder: Path, line: Sequence[str]) -> int:
    """In the process of a command."""
    os.chdir(folder)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
    os.environ |= {"PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(folder.parent)}
    if line[0] == "copy the toolbox":
        basicsr = importlib.import_module("basicsr")
        shutil.copytree(Path(basicsr.__file__).parent, "out/tree/basicsr", ignore=shutil.ignore_patterns("__pycache__"))
        return 0
    if line[0] == "adapt":  # its saves follow the clock: here the same number in every run
        importlib.import_module("csd_plugin.adapt.learning").perf_counter = itertools.count(0, _TICK).__next__
    if line[0].startswith("csd_plugin."):
        sys.argv = list(line)
        return importlib.import_module(line[0]).main()
    return importlib.import_module("csd_plugin.cli").main(line)


def _make_inputs(given: Path) -> None:
    import torch
    import yaml
    from synthetic import TEST, TRAIN, moving_scene, rain_on, write_image, write_ntu_rain
    from toolbox import STUDENT, distill_options, scored_set, scoring_options, train_options

    from csd_plugin.archs.halfnet import HalfNet
    from csd_plugin.archs.prenet import PReNet
    from csd_plugin.archs.sldnet import SLDNet
    from csd_plugin.cli import main as csd

    scene = moving_scene(14, 48, 56, 0)
    for name, clip in (("truth", scene), ("frames", rain_on(scene, 1))):
        for number, frame in enumerate(clip, 1):
            write_image(given / name / f"{number:05d}.png", frame)
    clips = {f"{TRAIN}/t1": ("GT", "Rain_01"), f"{TEST}/a1": ("GT", "Rain")}
    data = write_ntu_rain(given / "data", frames=9, height=30, width=40, clips=clips)
    with zipfile.ZipFile(given / "data.zip", "w") as archive:
        for path in sorted(data.rglob("*.png")):
            archive.write(path, path.relative_to(data))
    for name in ("net", "other"):
        torch.manual_seed(len(name))
        torch.save({"params": PReNet(num_feat=4).state_dict()}, given / f"{name}.pth")
    for name in ("half", "half2"):
        torch.manual_seed(len(name))
        torch.save({"params": HalfNet(preset="tiny", num_feat=4).state_dict()}, given / f"{name}.pth")
    torch.manual_seed(1)
    for name, network in (
        ("teacher", SLDNet(preset="teacher", num_feat=4)),
        ("student", SLDNet(preset="student2", num_feat=4)),
    ):
        torch.save({"params_ema": network.state_dict()}, given / f"{name}.pth")
    for name in ("a1_GT", "a1_Rain"):
        (given / "videos").mkdir(exist_ok=True)
        csd(
            [
                "derain",
                str(data / TEST / name),
                str(given / "videos" / f"{name}.mkv"),
                "--model",
                str(given / "net.pth"),
            ]
        )
    shutil.copy(given / "videos/a1_GT.mkv", given / "clip.mkv")
    csd(["derain", str(given / "frames"), str(given / "clip.mp4"), "--model", str(given / "net.pth")])

    logger = {"print_freq": 1, "save_checkpoint_freq": 2, "keep_checkpoints": 2, "use_tb_logger": True}
    train = distill_options(
        Path("in/data"), Path("in/teacher.pth"),
        **{"train.total_iter": 4, "datasets.val": scored_set(Path("in/data")), "logger": logger,
           "val": {"val_freq": 2, "save_img": True, "pbar": False}},
    )  # fmt: skip
    test = scoring_options(Path("in/data"), Path("in/student.pth"), **{"val.save_img": True})
    row = {"base": "row.yml", "set": {"train.total_iter": 1}}
    matrix = {"name": "table", "runs": "r", "test": "test.yml", "rows": {"input": {"input": True}, "one": row}}
    rows = train_options(Path("in/data"), network_g=dict(STUDENT))
    for name, content in {"train": train, "test": test, "matrix": matrix, "row": rows}.items():
        (given / f"{name}.yml").write_text(yaml.safe_dump(content, sort_keys=False))


@dataclass
class Reference:
    """A command on a good disk: what it writes, in order, and its results."""

    earlier: dict[str, str]
    writes: list[Write]
    results: dict[str, str]
    status: int
    """0, or what a command says of the machine by it."""


def refer(world: World, command: Command) -> Reference:
    """Raises RuntimeError where the command fails by itself."""
    earlier = world.reset(command)
    ended = world.run(command.line, Disk())
    if ended.status not in (0, 1) or "Traceback" in ended.said:
        raise RuntimeError(f"{command.line} fails without a fault: {ended.said}")
    return Reference(earlier, ended.disk.asked, world.results(), ended.status)


def places(reference: Reference, command: Command, each: int, rng: random.Random) -> list[Write]:
    """The first write of every kind, the last, and others by chance, `each` in all."""
    by_kind: dict[tuple[str, str], list[Write]] = defaultdict(list)
    for write in reference.writes:
        if not re.search(command.skipped, write.place):
            by_kind[write.kind].append(write)
    chosen = []
    for writes in by_kind.values():
        wanted = [writes[0], *writes[1:][-1:], *rng.sample(writes[1:-1], min(max(each - 2, 0), len(writes[1:-1])))]
        chosen += wanted[:each]
    return chosen


def can_give(error: str, write: Write) -> bool:
    """Whether a disk answers so to this call."""
    return write.operation in {
        "ENOSPC": (OPEN, WRITE, RENAME, "mkdir", "link", SYNC, "size"),
        "EIO": (OPEN, WRITE, RENAME, "mkdir", SYNC),
    }.get(error, (OPEN, RENAME, "mkdir", "link"))


def judge(world: World, command: Command, reference: Reference, write: Write, error: int) -> tuple[str, str]:
    """(outcome, what is wrong)."""
    world.reset(command)
    ended = world.run(command.line, Disk((write.kind, write.number), error))
    if ended.disk.failed is None:
        return UNTOLD, f"the write never came: {ended.said}"
    outcome = _outcome(world, command, reference, ended)
    if outcome[0] not in GOOD:
        return outcome
    if ended.status == reference.status:
        return outcome
    flag, state = command.again or ("", "")
    goes_on = bool(flag) and (world.folder / state).exists()
    repeated = world.run([*command.line, flag] if goes_on else command.line, Disk())
    if repeated.status != reference.status:
        return STUCK, f"{ended.said}\nand then on a good disk: {repeated.said}"
    other = _difference(world.results(), reference.results, command)
    return (STUCK, f"{ended.said}\nand then on a good disk: {other}") if other else outcome


def _outcome(world: World, command: Command, reference: Reference, ended: Ended) -> tuple[str, str]:
    said, results = ended.said, world.results()
    lines = [line for line in said.splitlines() if re.search(r"\berror: ", line)]
    if "Traceback" in said or ended.status not in (reference.status, 2):
        return TRACEBACK, f"status {ended.status}: {said}"
    if contents(world.given) != world.inputs:
        return LOST, f"an input has changed: {said}"
    gone = reference.earlier.keys() - results.keys()
    if gone:
        return LOST, f"{sorted(gone)} are gone: {said}"
    for name, digest in results.items():
        if digest in (reference.earlier.get(name), reference.results.get(name)) or re.search(command.grows, name):
            continue
        if not (re.search(command.varies, name) and is_readable(world.folder / name)):
            return HALF, f"{name}: {said}"
    if drafts := [name for name in results if _DRAFT.search(name)]:
        return HALF, f"{drafts}: {said}"
    if ended.status == reference.status:
        other = _difference(results, reference.results, command)
        lost = re.search(command.grows, write_of(ended).place) and "warning: " not in said
        if other or lost:
            return UNTOLD, f"{other or 'a lost log'}, status {ended.status}: {said}"
        return WITHOUT, said
    if len(lines) != 1 or not _names_a_file(lines[0], ended):
        return UNTOLD, f"{len(lines)} lines of error: {said}"
    return REFUSED, lines[0]


def write_of(ended: Ended) -> Write:
    """The one that failed."""
    assert ended.disk.failed is not None
    return ended.disk.failed


def _names_a_file(line: str, ended: Ended) -> bool:
    """Whether it has a file or folder that a person finds the place by."""
    parts = {part for part in write_of(ended).place.split("/") if part not in ("out", "tmp")}
    return bool(re.search(r"\b(out|tmp|in|experiments|results)/|/tmp\b|csd_plugin_locks", line)) or any(
        part.strip(".#") and re.sub(r"\.#\.part.*", "", part).strip(".#") in re.sub(r"\d+", "#", line) for part in parts
    )


def _difference(results: dict[str, str], wanted: dict[str, str], command: Command) -> str:
    """The first file that is missing, too many, or another."""
    loose = f"{command.varies}|{command.grows}"
    grows = command.grows
    for name in sorted(results.keys() ^ wanted.keys()):
        plain = re.sub(r"\d{6,}", "#", name)
        if not re.search(grows, name) and plain not in {re.sub(r"\d{6,}", "#", other) for other in wanted}:
            return f"{name} is {'there' if name in results else 'missing'}"
    changed = [
        name for name in results.keys() & wanted.keys() if results[name] != wanted[name] and not re.search(loose, name)
    ]
    return f"{min(changed)} is another" if changed else ""


def is_readable(path: Path) -> bool:
    """Whether a file that is not the same twice is whole."""
    import torch
    import yaml

    readers: dict[str, Callable[[Path], Any]] = {
        ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
        ".yml": lambda path: yaml.safe_load(path.read_text(encoding="utf-8")),
        ".pth": lambda path: torch.load(path, weights_only=True),
        ".state": lambda path: torch.load(path, weights_only=True),
        ".mkv": _frames_of,
        ".mp4": _frames_of,
        ".pt2": lambda path: zipfile.ZipFile(path).testzip() is None or 1 / 0,
        ".onnx": lambda path: importlib.import_module("onnx").checker.check_model(str(path)),
    }
    try:
        readers.get(path.suffix, lambda path: path.stat().st_size or 1 / 0)(path)
    except Exception as error:  # whichever it is, the file is not whole
        print(f"{path}: {error}", file=sys.stderr)
        return False
    return True


def _frames_of(path: Path) -> None:
    import av

    with av.open(str(path)) as container:
        assert len(list(container.decode(video=0))) in FRAMES


def warm_up() -> None:
    """Import what the commands do, once for all the processes."""
    import torch

    from csd_plugin import compat, registration

    torch.set_num_threads(1)
    registration.install()
    compat.repair_launch()
    exporting = ("onnx", "onnxruntime", "onnxruntime.quantization", "torch.onnx", "torch.export")
    for module in ("csd_plugin.train", "csd_plugin.test", "basicsr.train", "basicsr.test", "av", "lmdb", *exporting):
        importlib.import_module(module)
    for job in (
        "adapt",
        "bench",
        "data",
        "derain",
        "export",
        "figure",
        "inspect",
        "link",
        "prepare",
        "rain",
        "score",
        "table",
    ):
        importlib.import_module(f"csd_plugin.cli.{job}")


def _row(name: str, found: Counter[str], width: int) -> str:
    return f"{name:<{width}}" + "".join(f"{found[outcome]:>14}" for outcome in OUTCOMES)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="COMMAND", help="commands whose names begin so")
    parser.add_argument("--errors", nargs="+", choices=ERRORS, default=list(ERRORS))
    parser.add_argument(
        "--each", type=int, default=2, metavar="N", help="writes of each place (default 2: first, last)"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="only N of all, at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for the files (default: a temporary one)")
    args = parser.parse_args(argv)
    if reason := why_not():
        print(f"cannot be done here: {reason}", file=sys.stderr)
        return 2
    rng = random.Random(args.seed)
    commands = {
        name: command for name, command in _commands().items() if not args.only or name.startswith(tuple(args.only))
    }
    warm_up()
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        world = World(Path(work))
        counts = {name: Counter[str]() for name in commands}
        cases = []
        for name, command in commands.items():
            reference = refer(world, command)
            found = places(reference, command, args.each, rng)
            print(
                f"{name}: {len(reference.writes)} writes, {len({w.kind for w in reference.writes})} places", flush=True
            )
            cases += [
                (name, reference, write, error) for error in args.errors for write in found if can_give(error, write)
            ]
        if args.sample is not None:
            cases = rng.sample(cases, min(args.sample, len(cases)))
        width = max(map(len, counts))
        print(f"{'':<{width}}" + "".join(f"{outcome:>14}" for outcome in OUTCOMES))
        for name in commands:
            for reference, write, error in (rest for of, *rest in cases if of == name):
                outcome, said = judge(world, commands[name], reference, write, ERRORS[error])
                counts[name][outcome] += 1
                if outcome not in GOOD:
                    print(f"{name}, {error} at {write}: {outcome}: {said[-1500:]}", file=sys.stderr, flush=True)
            print(_row(name, counts[name], width), flush=True)
    print(_row("all", sum(counts.values(), Counter()), width))
    return 0 if all(set(found) <= set(GOOD) for found in counts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

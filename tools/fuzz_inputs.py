"""Damage archives, frames, meta_info.txt and lists of clips at random, and check that every damage is noticed.

    python tools/fuzz_inputs.py --count 200 --seed 0

Every case changes one valid file and reads it by `csd prepare`, the data sets or the check of a store. The result must
be the same as for the unchanged file, or an error of one line. A traceback is a failure, and so is a file outside the
target folder. JPEGs and lists of clips have no checksums: a changed one that reads as another picture, or as other
clips, is counted as `undetectable`. For JPEGs, the checksums of a store must report the change. The exit status is 1 if
a case failed.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import sys
import tarfile
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from csd_plugin.errors import CSDError  # noqa: E402

# What needs torch is imported where it is used: the processes of `verify_store` import this file too.

IDENTICAL, REFUSED, UNDETECTABLE, FAILED = OUTCOMES = ("accepted, identical", "refused", "undetectable", "FAILED")
SPLIT = "Dataset_Testing_Synthetic"
CLIPS, NUM_FRAME, HEIGHT, WIDTH = ("a1_GT", "a1_Rain", "b1_GT", "b1_Rain"), 3, 16, 24
CLIMB = "../../../"


class Fault(Exception):
    """A changed file was read as if it were good, or something was written that should not be."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="number of cases (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the random changes (default 0)")
    parser.add_argument("--work", type=Path, help="folder for the files (default: a temporary one)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        return fuzz(args.count, args.seed, Path(work))


def fuzz(count: int, seed: int, work: Path) -> int:
    from tqdm import tqdm

    subjects = make_subjects(work)
    outcomes: dict[str, Counter[str]] = {kind: Counter() for kind in subjects}
    for number in tqdm(range(count), desc="fuzz", unit="file", disable=None):
        kind = list(subjects)[number % len(subjects)]
        outcome, reason = judge(subjects[kind], random.Random(f"{seed}/{number}"))
        outcomes[kind][outcome] += 1
        if outcome == FAILED:
            print(f"case {number} of seed {seed}, {kind}: {reason}", file=sys.stderr)
    print_table(outcomes)
    return 1 if any(counts[FAILED] for counts in outcomes.values()) else 0


def judge(subject: Callable[[random.Random], str], rng: random.Random) -> tuple[str, str]:
    """Run one case; its outcome and, if it failed, the reason."""
    with captured() as said:
        try:
            outcome, reason = subject(rng), ""
        except CSDError as error:
            outcome, reason = (FAILED, f"an error of several lines: {error}") if "\n" in str(error) else (REFUSED, "")
        except Fault as error:
            outcome, reason = FAILED, str(error)
        except Exception:  # a user would have seen its traceback
            outcome, reason = FAILED, traceback.format_exc()
    if outcome != FAILED and "Traceback" in "".join(said):
        return FAILED, "".join(said)
    return outcome, reason


@contextmanager
def captured() -> Iterator[list[str]]:
    """Inside, collect what is written to standard error, also by C libraries and other processes.

    The list is filled at the end.
    """
    said: list[str] = []
    python, saved = io.StringIO(), os.dup(2)
    with tempfile.TemporaryFile() as others:
        os.dup2(others.fileno(), 2)
        try:
            with redirect_stderr(python):
                yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            others.seek(0)
            said += [python.getvalue(), others.read().decode(errors="replace")]


def print_table(outcomes: dict[str, Counter[str]]) -> None:
    rows = [*outcomes.items(), ("all", sum(outcomes.values(), Counter()))]
    print(f"{'':<14}" + "".join(f"{outcome:>21}" for outcome in OUTCOMES))
    for kind, counts in rows:
        print(f"{kind:<14}" + "".join(f"{counts[outcome]:>21}" for outcome in OUTCOMES))


# --- damage -------------------------------------------------------------------------------------------------------


def mutate(data: bytes, rng: random.Random) -> bytes:
    """The data after one random change: bits are flipped, the end is cut off, or bytes are inserted, zeroed or deleted.

    The result always differs from the data.
    """
    while True:
        at, length = rng.randrange(len(data)), rng.randint(1, 16)
        kind = rng.choice(("flip", "cut", "insert", "zero", "delete"))
        if kind == "flip":
            changed = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            found = bytes(changed)
        elif kind == "cut":
            found = data[:at]
        elif kind == "insert":
            found = data[:at] + rng.randbytes(length) + data[at:]
        elif kind == "zero":
            found = data[:at] + bytes(len(data[at : at + length])) + data[at + length :]
        else:
            found = data[:at] + data[at + length :]
        if found != data:
            return found


# --- what is damaged ----------------------------------------------------------------------------------------------


def make_subjects(work: Path) -> dict[str, Callable[[random.Random], str]]:
    """Kind of file -> a function that changes such a file at random and reads it.

    The functions return an outcome, or raise Fault or CSDError.
    """
    frames = make_frames()
    makers: dict[str, Callable[[str], bytes]] = {
        "zip": lambda prefix: make_zip(prefix, frames),
        "tar.gz": lambda prefix: make_tar(prefix, frames),
        **rar_makers(frames),
    }
    subjects: dict[str, Callable[[random.Random], str]] = {
        kind: Archives(work / kind, make, frames) for kind, make in makers.items()
    }
    return subjects | {
        "jpeg": Jpegs(work / "jpeg", frames),
        "meta_info.txt": MetaInfo(work / "meta", frames),
        "clips": ClipLists(work / "clips", frames),
    }


def make_frames() -> dict[str, bytes]:
    """Path in the data set -> a JPEG file. Each holds another smooth random picture."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    frames = {}
    for clip in CLIPS:
        for number in range(1, NUM_FRAME + 1):
            image = cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), (0, 0), 1.5)
            frames[f"{SPLIT}/{clip}/{number:05d}.jpg"] = cv2.imencode(".jpg", image)[1].tobytes()
    return frames


def make_zip(prefix: str, frames: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in frames.items():
            archive.writestr(prefix + name, data)
    return file.getvalue()


def make_tar(prefix: str, frames: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in frames.items():
            entry = tarfile.TarInfo(prefix + name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def rar_makers(frames: dict[str, bytes]) -> dict[str, Callable[[str], bytes]]:
    """The functions that make RAR archives; none if RAR archives cannot be read here, or the tests are not here."""
    from csd_plugin.data.archives import rar_libraries

    sys.path.insert(0, str(ROOT / "tests"))
    try:
        from rar_files import RarEntry, rar4, rar5

        rar_libraries()
    except (ImportError, CSDError) as error:
        print(f"RAR archives are left out: {error}", file=sys.stderr)
        return {}
    finally:
        sys.path.pop(0)

    def make(write: Callable[[list[Any]], bytes]) -> Callable[[str], bytes]:
        return lambda prefix: write([RarEntry(prefix + name, data) for name, data in frames.items()])

    return {"rar 4": make(rar4), "rar 5": make(rar5)}


class Archives:
    """Archives of the whole data set, read by `csd prepare`.

    One in ten is undamaged, but the names in it lead out of the target folder (`../`).
    """

    def __init__(self, work: Path, make: Callable[[str], bytes], frames: dict[str, bytes]) -> None:
        self.work, self.frames = work, frames
        self.whole, self.climbing = make(""), make(CLIMB)
        self.out = work / "one" / "two" / "out"
        self.archive = work / "downloads" / "archive.zip"  # the content shows the kind
        write_file(self.archive, self.whole)
        self.out.parent.mkdir(parents=True)
        expect(self._prepare() == IDENTICAL, "the unchanged archive is refused")

    def __call__(self, rng: random.Random) -> str:
        self.archive.write_bytes(self.climbing if rng.random() < 0.1 else mutate(self.whole, rng))
        return self._prepare()

    def _prepare(self) -> str:
        shutil.rmtree(self.out, ignore_errors=True)
        before = read_tree(self.work)
        status = call_prepare(self.archive, self.out)
        written = read_tree(self.out)
        after = {path: data for path, data in read_tree(self.work).items() if self.out not in (path, *path.parents)}
        expect(after == before, "a file outside the target folder was written or changed")
        found = {path.relative_to(self.out).as_posix(): data for path, data in written.items() if data is not None}
        if status == 0:
            expect(found == self.frames, "the written frames differ from the packed ones")
            return IDENTICAL
        whole_clips = {name.rpartition("/")[0] for name in found}
        filled = {parent for path, data in written.items() if data is not None for parent in path.parents}
        expect(not {path for path, data in written.items() if data is None} - filled, "an empty folder is left")
        expect(
            found == {name: data for name, data in self.frames.items() if name.rpartition("/")[0] in whole_clips},
            "an incomplete clip, or wrong frames, are left in the target folder",
        )
        return REFUSED


class Jpegs:
    """A frame in a folder, read by both data sets and `csd prepare`, and compared with the checksums of a store."""

    def __init__(self, work: Path, frames: dict[str, bytes]) -> None:
        from csd_plugin.data.stores.build import build_store

        self.work, self.root, self.frames = work, work / "data", frames
        write_tree(self.root, frames)
        self.store = work / "data.lmdb"
        build_store(self.root, self.store)
        self.whole = read_frames(self.root)

    def __call__(self, rng: random.Random) -> str:
        from csd_plugin.data.stores.verify import verify_store

        name = rng.choice(list(self.frames))
        file = self.root / name
        file.write_bytes(mutate(self.frames[name], rng))
        try:
            problems = {(problem.kind, problem.key) for problem in verify_store(self.store, self.root)}
            expect(problems == {("changed", name)}, f"{name} was changed, but the store's check reports {problems}")
            self._prepare()
            read_training_clips(self.root)
            same = read_frames(self.root) == self.whole
        finally:
            file.write_bytes(self.frames[name])
        return IDENTICAL if same else UNDETECTABLE

    def _prepare(self) -> None:
        """`csd prepare` must copy frames unchanged, or leave their clip out."""
        out = self.work / "prepared"
        shutil.rmtree(out, ignore_errors=True)
        call_prepare(self.root, out)
        for path, data in read_tree(out).items():
            expect(data is None or data == (self.root / path.relative_to(out)).read_bytes(), f"{path} is no exact copy")


class MetaInfo:
    """meta_info.txt of a store. BasicSR needs it, our reader does not; `verify_store` must report every change."""

    def __init__(self, work: Path, frames: dict[str, bytes]) -> None:
        from csd_plugin.data.stores.build import build_store

        write_tree(work / "data", frames)
        self.store = work / "data.lmdb"
        build_store(work / "data", self.store)
        self.file = self.store / "meta_info.txt"
        self.text = self.file.read_bytes()
        self.whole = read_frames(self.store)

    def __call__(self, rng: random.Random) -> str:
        from csd_plugin.data.stores.verify import verify_store

        self.file.write_bytes(mutate(self.text, rng))
        expect(read_frames(self.store) == self.whole, "the store's frames have changed")
        problems = verify_store(self.store)
        expect(not any("\n" in str(problem) for problem in problems), "verify_store reports a problem in several lines")
        if problems:
            return REFUSED
        expect(self._lines() == self.text.decode().splitlines(), "verify_store accepts a changed meta_info.txt")
        return IDENTICAL

    def _lines(self) -> list[str]:
        """The lines as BasicSR reads them."""
        with self.file.open(encoding="utf-8") as file:
            return [line.rstrip("\n") for line in file]


class ClipLists:
    """The list file of the option `clips`: exactly the clips that it names are read, or there is an error."""

    def __init__(self, work: Path, frames: dict[str, bytes]) -> None:
        self.root, self.file = work / "data", work / "clips.txt"
        write_tree(self.root, frames)
        self.text = b"# to be scored\na1  # with truth\nb1_Rain\n"
        self.file.write_bytes(self.text)
        self.whole = self._read()

    def __call__(self, rng: random.Random) -> str:
        self.file.write_bytes(mutate(self.text, rng))
        clips = self._read()
        lines = (line.partition("#")[0].strip() for line in self.file.read_text(encoding="utf-8-sig").splitlines())
        named = [line for line in lines if line]
        expect(
            bool(named) and not set(named) - {"a1", "a1_Rain", "b1", "b1_Rain"},
            f"a list of unknown clips, or of none, was accepted: {named}",
        )
        expect(
            clips == sorted({name.removesuffix("_Rain") for name in named}),
            f"the list names {named}, but {clips} were read",
        )
        return IDENTICAL if clips == self.whole else UNDETECTABLE

    def _read(self) -> list[str]:
        from csd_plugin.data.datasets.paired_video import PairedVideoTestDataset

        dataset = PairedVideoTestDataset({"dataroot": str(self.root), "clips": str(self.file), "num_frame": 1})
        return [sequence.name for sequence in dataset.sequences]


# --- helpers -------------------------------------------------------------------------------------------------


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Fault(otherwise)


def call_prepare(source: Path, out: Path) -> int:
    """The exit status of `csd prepare`: 0, or 2 with a message that names the file. Raises Fault for anything else."""
    from csd_plugin.cli import main as csd

    with redirect_stderr(io.StringIO()) as stderr, redirect_stdout(io.StringIO()):
        status = csd(["prepare", str(source), str(out), "--jobs", "1"])
    said = stderr.getvalue()
    expect(status in (0, 2), f"exit status {status}")
    expect(("csd prepare: error: " in said) == (status == 2), f"exit status {status}, but the message is {said!r}")
    expect(status == 0 or str(source) in said, f"the message does not name the file: {said!r}")
    return status


def read_frames(root: Path) -> list[tuple[str, bytes, bytes]]:
    """Key, rainy pixels and clean pixels of each frame."""
    from csd_plugin.data.datasets.paired_video import PairedVideoTestDataset

    dataset = PairedVideoTestDataset({"dataroot": str(root), "num_frame": 1})
    items = (dataset[i] for i in range(len(dataset)))
    return [(item["lq_path"], item["lq"].numpy().tobytes(), item["gt"].numpy().tobytes()) for item in items]


def read_training_clips(root: Path) -> None:
    from csd_plugin.data.datasets.paired_video import PairedVideoDataset

    sizes = {"num_frame": NUM_FRAME, "num_target": NUM_FRAME, "gt_size": HEIGHT}
    dataset = PairedVideoDataset({"dataroot": str(root), "split": "test", **sizes})
    for i in range(len(dataset)):
        dataset[i]


def write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_tree(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        write_file(root / name, data)


def read_tree(root: Path) -> dict[Path, bytes | None]:
    """Everything below a folder: path -> content; None for folders."""
    return {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


if __name__ == "__main__":
    sys.exit(main())

"""Run a distillation for an hour, and check that its memory, open files, threads and processes do not grow.

    python tools/soak_training.py --minutes 60

The networks are tiny, so there are thousands of iterations, validations and checkpoints. Every minute, the training and
its loader processes are measured together and a line is printed. The first quarter of the time is not judged, as caches
fill then. The exit status is 1 if the last quarter needs more than the second one, and 2 if the training fails. Linux
only.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

MOST_GROWTH = 0.02
"""The share by which memory may grow from the second quarter to the last."""
LOOKS = 12
"""Measurements per sample, which has the highest of each value, as loader processes come and go."""


@dataclass(frozen=True)
class Sample:
    """A measurement of a process and all processes below it."""

    minute: float
    iteration: int
    megabytes: float
    files: int
    threads: int
    processes: int


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="length of the training (default 60)")
    parser.add_argument("--every", type=float, default=60, help="seconds between two samples (default 60)")
    parser.add_argument("--work", type=Path, help="folder for the files (default: a temporary one)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        try:
            samples = watch(Path(work), args.minutes, args.every)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    grown = judge(samples)
    for line in grown:
        print(line, file=sys.stderr)
    if not grown:
        print("nothing has grown")
    return 1 if grown else 0


def watch(folder: Path, minutes: float, every: float) -> list[Sample]:
    """Train, and print a sample every so many seconds. Raises RuntimeError if the training fails."""
    (folder / "options.yml").write_text(make_options(folder, minutes * 60))
    process = subprocess.Popen(
        [sys.executable, "-m", "csd_plugin.train", "-opt", "options.yml"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=(folder / "stderr").open("w"),
        start_new_session=True,
    )
    print("".join(f"{field.name:>12}" for field in fields(Sample)), flush=True)
    began, samples = time.monotonic(), []
    try:
        while process.poll() is None:
            looks = [look(process.pid) for _ in range(LOOKS) if time.sleep(every / LOOKS) is None]
            if process.poll() is None:
                most = (max(column) for column in zip(*looks, strict=True))
                samples.append(Sample((time.monotonic() - began) / 60, iteration_of(folder), *most))
                print("".join(f"{value:>12.4g}" for value in astuple(samples[-1])), flush=True)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise RuntimeError(f"the training failed; the end of its output:\n{(folder / 'stderr').read_text()[-2000:]}")
    return samples


def make_options(folder: Path, seconds: float) -> str:
    import yaml
    from toolbox import write_distillation

    changes = {
        "train.total_iter": int(100 * seconds),  # more than fit into the time
        "train.max_seconds": seconds,
        "val.val_freq": 50,
        "val.save_img": True,
        "logger": {"print_freq": 10, "save_checkpoint_freq": 100, "keep_checkpoints": 3, "use_tb_logger": True},
    }
    return yaml.safe_dump(write_distillation(folder, **changes), sort_keys=False)


def look(pid: int) -> tuple[float, int, int, int]:
    """Memory in MB, open files, threads and processes of a process and all below it; shared memory counts once."""
    tree = [pid, *descendants(pid)]
    pages, files, threads = 0, 0, 0
    for member in tree:
        try:
            own = Path(f"/proc/{member}")
            pages += int(re.search(r"^Pss: +(\d+)", (own / "smaps_rollup").read_text(), re.MULTILINE)[1])  # type: ignore[index]
            files += len(list((own / "fd").iterdir()))
            threads += len(list((own / "task").iterdir()))
        except (OSError, TypeError):  # it has just ended
            continue
    return pages / 1024, files, threads, len(tree)


def descendants(pid: int) -> list[int]:
    try:
        tasks = [task / "children" for task in Path(f"/proc/{pid}/task").iterdir()]
        children = [int(child) for task in tasks for child in task.read_text().split()]
    except OSError:
        return []
    return children + [further for child in children for further in descendants(child)]


def iteration_of(folder: Path) -> int:
    """The latest iteration in the log; 0 before the first."""
    found = [0]
    for log in folder.glob("experiments/run/*.log"):
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 10_000))
            found += [int(text.replace(b",", b"")) for text in re.findall(rb"iter: *([\d,]+), lr", file.read())]
    return found[-1]


def judge(samples: Sequence[Sample]) -> list[str]:
    """A line for each value that has grown from the second quarter to the last, by the median."""
    if len(samples) < 4:
        return [f"{len(samples)} samples are too few to compare; give more --minutes, or fewer seconds for --every"]
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    lines = []
    before, after = (statistics.median(sample.megabytes for sample in part) for part in (early, late))
    if after > before * (1 + MOST_GROWTH):
        lines.append(f"memory has grown from {before:.0f} to {after:.0f} MB")
    for name, what in (("files", "open files"), ("threads", "threads"), ("processes", "processes")):
        before, after = (statistics.median(getattr(sample, name) for sample in part) for part in (early, late))
        if after > before:
            lines.append(f"the number of {what} has grown from {before:g} to {after:g}")
    return lines


if __name__ == "__main__":
    sys.exit(main())

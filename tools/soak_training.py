"""Run a distillation for an hour, and see whether its memory, file handles, threads and processes stay what they are.

    python tools/soak_training.py --minutes 60

The networks are tiny, so that the run has thousands of iterations, validations and checkpoints. A sample is taken every
minute, of the training and its loader's workers together; the first quarter of an hour's run is its start and warm-up
of caches. The table has every sample; the exit status is 1 if something has grown after the first quarter. Linux only.
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
"""Of the memory, from the second quarter to the last one."""
LOOKS = 12
"""A sample is the highest of this number of looks: workers come and go."""


@dataclass(frozen=True)
class Sample:
    """Of a process and those that it has started."""

    minute: float
    iteration: int
    megabytes: float
    handles: int
    threads: int
    processes: int


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=60, help="seconds from a sample to the next (default 60)")
    parser.add_argument("--work", type=Path, help="folder for the files (default: a temporary one)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        samples = watch(Path(work), args.minutes, args.every)
    grown = judge(samples)
    for line in grown:
        print(line, file=sys.stderr)
    if not grown:
        print("nothing has grown")
    return 1 if grown else 0


def watch(folder: Path, minutes: float, every: float) -> list[Sample]:
    """Train for so long, and print a sample now and then. Raises RuntimeError where the training fails."""
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
        raise RuntimeError((folder / "stderr").read_text()[-2000:])
    return samples


def make_options(folder: Path, seconds: float) -> str:
    import yaml
    from toolbox import write_distillation

    changes = {
        "train.total_iter": int(100 * seconds),  # more than there is time for
        "train.max_seconds": seconds,
        "val.val_freq": 50,
        "val.save_img": True,
        "logger": {"print_freq": 10, "save_checkpoint_freq": 100, "keep_checkpoints": 3, "use_tb_logger": True},
    }
    return yaml.safe_dump(write_distillation(folder, **changes), sort_keys=False)


def look(pid: int) -> tuple[float, int, int, int]:
    """Memory in MB (each page that processes share counted once), handles, threads and processes of a tree."""
    tree = [pid, *descendants(pid)]
    pages, handles, threads = 0, 0, 0
    for member in tree:
        try:
            own = Path(f"/proc/{member}")
            pages += int(re.search(r"^Pss: +(\d+)", (own / "smaps_rollup").read_text(), re.MULTILINE)[1])  # type: ignore[index]
            handles += len(list((own / "fd").iterdir()))
            threads += len(list((own / "task").iterdir()))
        except (OSError, TypeError):  # it has just ended
            continue
    return pages / 1024, handles, threads, len(tree)


def descendants(pid: int) -> list[int]:
    try:
        tasks = [task / "children" for task in Path(f"/proc/{pid}/task").iterdir()]
        children = [int(child) for task in tasks for child in task.read_text().split()]
    except OSError:
        return []
    return children + [further for child in children for further in descendants(child)]


def iteration_of(folder: Path) -> int:
    """The last one of the log."""
    found = [0]
    for log in folder.glob("experiments/run/*.log"):
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 10_000))
            found += [int(text.replace(b",", b"")) for text in re.findall(rb"iter: *([\d,]+), lr", file.read())]
    return found[-1]


def judge(samples: Sequence[Sample]) -> list[str]:
    """A line for everything that has grown from the second quarter to the last."""
    if len(samples) < 4:
        return [f"only {len(samples)} samples; give more --minutes or a shorter --every"]
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    lines = []
    before, after = (statistics.median(sample.megabytes for sample in part) for part in (early, late))
    if after > before * (1 + MOST_GROWTH):
        lines.append(f"memory has grown from {before:.0f} to {after:.0f} MB")
    for name in ("handles", "threads", "processes"):
        before, after = (statistics.median(getattr(sample, name) for sample in part) for part in (early, late))
        if after > before:
            lines.append(f"{name} have grown from {before:g} to {after:g}")
    return lines


if __name__ == "__main__":
    sys.exit(main())

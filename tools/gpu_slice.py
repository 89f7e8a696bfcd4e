"""The work of `gpu_slice.sh`: selects clips to take along; checks, renders, measures, trains in turns, tests."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from slicing.clips import pack_clips
from slicing.deadlines import Deadlines
from slicing.measuring import WAYS, end_measuring, start_measuring
from slicing.networks import ROOT, plan
from slicing.processes import elsewhere, end_children, prepare_processes
from slicing.rain import render_rain
from slicing.results import keep_weights, test, write_table
from slicing.telling import SliceError, say
from slicing.training import train

MARGIN = 10.0  # seconds after --seconds, when all that is left is ended


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
    prepare_processes()
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


if __name__ == "__main__":
    sys.exit(main())

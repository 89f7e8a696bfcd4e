"""Kill builds of LMDB stores at random moments, again and again, and compare the result with an undisturbed build.

    python tools/soak_store.py FOLDER --kills 30

Every round starts a new build, kills it once or more often (SIGKILL, with all processes that it started) and continues
it. It must end with the store of the undisturbed build, byte for byte per key. At no time may an unfinished store look
complete.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import lmdb  # noqa: E402

from csd_plugin.data.stores.build import build_store  # noqa: E402
from csd_plugin.data.stores.verify import verify_store  # noqa: E402
from csd_plugin.errors import CSDError  # noqa: E402

# Small transactions, so that kills come between them and not always before the first.
BUILD = (
    "import sys; from csd_plugin.data.stores import build; build._BATCH = int(sys.argv[4]);"
    "build.build_store(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[5]))"
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="image files to build from")
    parser.add_argument("--kills", type=int, default=30, help="kills in all (default 30)")
    parser.add_argument("--jobs", type=int, default=2, help="processes per build (default 2)")
    parser.add_argument("--batch", type=int, default=2**16, help="bytes per transaction (default 64 KiB)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for the stores (default: a temporary one)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        return soak(args, Path(work))


def soak(args: argparse.Namespace, work: Path) -> int:
    rng = random.Random(args.seed)
    kills, rounds, resumed = 0, 0, 0
    while kills < args.kills:
        encoding = rng.choice(("source", "png", "raw"))
        peaceful, out = work / f"{encoding}.lmdb", work / "killed.lmdb"
        if not peaceful.exists():
            build_store(args.folder, peaceful, encoding, args.jobs)
        duration = run_build(args, work / "timed.lmdb", encoding, None) or 0.0
        shutil.rmtree(work / "timed.lmdb")

        for _ in range(min(rng.randint(1, 3), args.kills - kills)):
            if run_build(args, out, encoding, rng.uniform(0.1, 1) * duration) is None:
                kills += 1
                check_unfinished(out)
        resumed += out.with_name(f"{out.name}.partial").exists()
        run_build(args, out, encoding, None)
        if content(out) != content(peaceful) or verify_store(out, args.folder):
            print(f"round {rounds}: the store differs from the undisturbed one", file=sys.stderr)
            return 1
        shutil.rmtree(out)
        rounds += 1
    print(f"{kills} kills in {rounds} rounds: every store equals the undisturbed one; {resumed} were resumed")
    return 0


def run_build(args: argparse.Namespace, out: Path, encoding: str, kill_after: float | None) -> float | None:
    """Build in a process of its own; its duration in s, or None where it was killed."""
    command = [sys.executable, "-c", BUILD, args.folder, out, encoding, args.batch, args.jobs]
    began = time.monotonic()
    process = subprocess.Popen([str(part) for part in command], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        if process.wait(kill_after):
            raise CSDError(f"{out}: the build failed on its own, with status {process.returncode}")
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return None
    return time.monotonic() - began


def check_unfinished(out: Path) -> None:
    """Either there is no store, or it is whole: the kill may have come after the last step."""
    try:
        problems = verify_store(out)
    except CSDError:
        return
    assert not problems, "a killed build left a store that looks complete and is not"


def content(store: Path) -> dict[bytes, bytes]:
    """Everything in a store, read without our code."""
    with lmdb.open(str(store), readonly=True, lock=False, max_dbs=1) as env, env.begin() as txn:
        records = {b"\0" + key: bytes(data) for key, data in txn.cursor(db=env.open_db(b"csd", txn=txn, create=False))}
        return records | {key: bytes(data) for key, data in txn.cursor() if key != b"csd"}


if __name__ == "__main__":
    sys.exit(main())

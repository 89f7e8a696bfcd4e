"""Kill builds of LMDB stores at random moments, continue them, and compare the stores with those of unkilled builds.

    python tools/soak_store.py FOLDER --kills 30

Every round starts a new build, kills it one to three times (SIGKILL), continues it each time, and lets it end. The
store must have the same keys and bytes as that of an unkilled build. After each kill there must be no store, or a
complete one. The exit status is 1 if a store is wrong, 2 if the folder cannot be built from.
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

# With small transactions, so that most kills come after the first.
BUILD = (
    "import sys; from csd_plugin.data.stores import build; build._BATCH = int(sys.argv[4]);"
    "build.build_store(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[5]))"
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="data set to build stores from, a folder with image files")
    parser.add_argument("--kills", type=int, default=30, help="number of kills (default 30)")
    parser.add_argument("--jobs", type=int, default=2, help="processes per build (default 2)")
    parser.add_argument("--batch", type=int, default=2**16, help="bytes per transaction (default 65536)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default 0)")
    parser.add_argument("--work", type=Path, help="folder for the stores (default: a temporary one)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        try:
            return soak(args, Path(work))
        except CSDError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2


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
                if problem := unfinished(out):
                    print(
                        f"round {rounds}: a killed build left a store that is not complete: {problem}", file=sys.stderr
                    )
                    return 1
        resumed += out.with_name(f"{out.name}.partial").exists()
        run_build(args, out, encoding, None)
        if content(out) != content(peaceful) or verify_store(out, args.folder):
            print(f"round {rounds}: the store differs from that of an unkilled build", file=sys.stderr)
            return 1
        shutil.rmtree(out)
        rounds += 1
    print(
        f"{kills} kills in {rounds} rounds: every store equals that of an unkilled build; in {resumed} rounds, a "
        f"partial store was continued"
    )
    return 0


def run_build(args: argparse.Namespace, out: Path, encoding: str, kill_after: float | None) -> float | None:
    """Build in another process; the seconds that it took, or None if it was killed.

    Args:
        kill_after: seconds until it is killed; None lets it end.
    """
    command = [sys.executable, "-c", BUILD, args.folder, out, encoding, args.batch, args.jobs]
    began = time.monotonic()
    process = subprocess.Popen([str(part) for part in command], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        if process.wait(kill_after):
            raise CSDError(f"the build of {out} failed without a kill, with status {process.returncode}")
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return None
    return time.monotonic() - began


def unfinished(out: Path) -> str:
    """What is wrong with a store after a kill; empty if there is none, or if it is complete."""
    try:
        problems = verify_store(out)
    except CSDError:  # there is no store
        return ""
    return str(problems[0]) if problems else ""


def content(store: Path) -> dict[bytes, bytes]:
    """All keys and values of a store, read by lmdb alone."""
    with lmdb.open(str(store), readonly=True, lock=False, max_dbs=1) as env, env.begin() as txn:
        records = {b"\0" + key: bytes(data) for key, data in txn.cursor(db=env.open_db(b"csd", txn=txn, create=False))}
        return records | {key: bytes(data) for key, data in txn.cursor() if key != b"csd"}


if __name__ == "__main__":
    sys.exit(main())

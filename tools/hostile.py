"""Give malicious files to the commands that read them, and count the outcomes.

    python tools/hostile.py --count 500 --seed 0

Every case makes one file (or folder) of some kind, from the seed and its number, and runs a real command line on it in
a separate process. A file must be refused: status 2, and one or more lines that begin with the command's name, without
a traceback. Failures are: a traceback, status 0 (silent acceptance), code from the file that was run, a file outside
that was written or read, more than 2 GB of memory, or more than half a minute of processor time. The exit status is 1
if there is a failure.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from malicious import archives, checkpoints, frames, options, outputs, places  # noqa: E402
from malicious.ground import Ground, Maker  # noqa: E402
from malicious.judging import OUTCOMES, REFUSED, judge  # noqa: E402
from malicious.running import warm_up  # noqa: E402

MAKERS: dict[str, Maker] = {
    "YAML": options.option_files,
    "matrix": options.matrices,
    "checkpoint": checkpoints.checkpoints,
    "state": checkpoints.states,
    "cache": outputs.caches,
    "graph": outputs.graphs,
    "result": outputs.results,
    "image": frames.images,
    "video": frames.videos,
    "archive": archives.archives,
    "other archive": archives.other_archives,
    "folder": places.folders,
    "LMDB": places.stores,
    "list": places.lists,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="hostile files in all (default 500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for the files (default: a temporary one)")
    parser.add_argument("--kind", choices=MAKERS, help="only files of this kind")
    args = parser.parse_args(argv)
    warm_up()
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in ([args.kind] if args.kind else MAKERS)}
    largest = 0
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        ground = Ground(Path(work) / "ground")
        for number in range(args.count):
            kind = list(counts)[number % len(counts)]
            case = MAKERS[kind](ground, random.Random(f"{args.seed}/{number}"))
            outcome, said, memory = judge(ground, case)
            counts[kind][outcome] += 1
            largest = max(largest, memory)
            if outcome != REFUSED:
                print(f"{number} of seed {args.seed}, {case.name}: {outcome}\n{said[-1500:]}", file=sys.stderr)
    print(f"{'':<14}" + "".join(f"{outcome:>11}" for outcome in OUTCOMES))
    for kind, found in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        print(f"{kind:<14}" + "".join(f"{found[outcome]:>11}" for outcome in OUTCOMES))
    print(f"largest memory of a process: {largest / 2**20:.0f} MB")
    return 0 if all(set(found) <= {REFUSED} for found in counts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

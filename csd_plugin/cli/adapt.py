"""Adapt a small network to a camera, without clean frames: it learns what a larger network makes of its rainy ones.

RAIN are videos or folders of rainy frames from one camera, ideally from different hours. The teacher cleans up to
--frames of them once, and its results are kept in the cache. Then the student learns from them for --minutes. Ctrl-C
stops it at any time: the best network so far is in OUT, and --resume continues.

OUT is a checkpoint like any other for csd derain, export and bench, as fast as the student. A report with pictures is
written next to it. A tenth of the frames is held back to judge the result.

An adapted network is for that camera: on other rain it can be worse than before. To counter this, --pairs mixes in
other pairs; --validation scores the network on pairs before and after. See docs/adapt.md.

examples:
  csd adapt garden.mp4 --teacher large --student realtime --out garden.pth
  csd adapt monday.mp4 tuesday.mp4 --teacher s2vd.pt --student realtime --out road.pth --minutes 20
  csd adapt frames/ --teacher s2vd.pt wide --ensemble --student realtime --out road.pth \\
    --pairs datasets/rain_clips --validation datasets/rain_clips
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path

from csd_plugin.cli.flags import minutes, number, path_given, whole
from csd_plugin.errors import CSDError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", metavar="RAIN", nargs="+", type=path_given, help="rainy videos or folders of frames")
    parser.add_argument(
        "--teacher",
        metavar="NETWORK",
        nargs="+",
        required=True,
        help="names in `csd models`, checkpoints (also the published ones of S2VD and PReNet), exported files, or "
        "option files with network_g and its weights; the results of several are averaged",
    )
    parser.add_argument("--student", metavar="NETWORK", required=True, help="name in `csd models`, or a checkpoint")
    parser.add_argument("--out", metavar="OUT.pth", type=path_given, required=True, help="checkpoint to write")
    parser.add_argument("--minutes", type=minutes, default=10.0, help="time for the student to learn (default 10)")
    parser.add_argument(
        "--ensemble",
        action="store_true",
        help="average the teacher's results over mirrored and reversed clips; takes eight times as long",
    )
    parser.add_argument(
        "--frames",
        type=whole(12),
        default=300,
        metavar="N",
        help="frames for the teacher to clean, at least 12 of each video or folder (default 300)",
    )
    parser.add_argument("--cache", metavar="FOLDER", type=path_given, help="the teacher's frames (default: OUT.cache)")
    parser.add_argument(
        "--features",
        action="store_true",
        help="store the teacher's features as well, for a training that compares them (docs/adapt.md)",
    )
    parser.add_argument(
        "--pairs",
        metavar="DATA",
        type=path_given,
        help="other pairs to learn from as well, or clean clips to render rain on, so that other rain is not forgotten",
    )
    parser.add_argument(
        "--keep",
        type=number(0, 1),
        metavar="SHARE",
        help="share of clips from --pairs in the training batches (default 0.3)",
    )
    parser.add_argument("--validation", metavar="DATA", type=path_given, help="pairs to score before and after")
    parser.add_argument("--rate", type=number(1e-8, 1.0), default=2e-3, help="highest learning rate (default 0.002)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    present = parser.add_mutually_exclusive_group()
    present.add_argument("--resume", action="store_true", help="continue a stopped run; more --minutes prolong it")
    present.add_argument("--overwrite", action="store_true", help="replace OUT")


def outputs(args: argparse.Namespace) -> list[Path]:
    args.earlier = _version(args.out)
    return [args.out]


def interrupted(args: argparse.Namespace) -> str:
    if args.resume or _version(args.out) != args.earlier:
        return f"the best network so far is in {args.out}; --resume continues"
    kept = f"; {args.out} is unchanged" if args.out.exists() else ""
    return f"the same command continues with the teacher's frames so far{kept}"


def _version(path: Path) -> tuple[int, int] | None:
    """A value that changes when the file is replaced; None without a file."""
    with suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def run(args: argparse.Namespace) -> None:
    from csd_plugin.adapt.run import Plan, adapt
    from csd_plugin.inference.memory import keep_freed_memory

    if args.keep is not None and not args.pairs:
        raise CSDError(
            f"--keep {args.keep:g}: there are no pairs to mix in; give them with --pairs, or leave --keep out"
        )
    keep_freed_memory()
    adapt(
        Plan(
            inputs=tuple(args.inputs),
            teachers=tuple(args.teacher),
            student=args.student,
            out=args.out,
            minutes=args.minutes,
            ensemble=args.ensemble,
            cache=args.cache,
            frames=args.frames,
            pairs=args.pairs,
            keep=0.3 if args.keep is None else args.keep,
            validation=args.validation,
            rate=args.rate,
            features=args.features,
            device=args.device,
            resume=args.resume,
            overwrite=args.overwrite,
        ),
        say=lambda line: print(line, flush=True),
    )

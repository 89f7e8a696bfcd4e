"""Retrain the shipped networks, or train your own the same way: rain, teacher, students, distillation, table.

Each call trains one slice, fitted to --minutes. The next call starts from its weights, with a fresh optimizer and
warm-up; an interrupted slice is resumed. Everything is written to the current folder: rain to datasets/rain_clips, runs
to experiments/ and results/, the best weights of every network to results/NAME/weights.

examples:
  csd reproduce options/matrix/release_cpu.yml --clean clips/ --validation held_out/ --minutes 180
  csd reproduce options/matrix/release_cpu.yml --minutes 25      # one more slice
"""

from __future__ import annotations

import argparse

from csd_plugin.cli.flags import add_processes, minutes, path_given


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "matrix", metavar="MATRIX.yml", type=path_given, help="the networks, as a matrix file of `csd table`"
    )
    parser.add_argument("--clean", metavar="FOLDER", type=path_given, help="clean clips to train on")
    parser.add_argument(
        "--validation",
        metavar="FOLDER",
        type=path_given,
        help="other clean clips, on which the best weights are chosen",
    )
    parser.add_argument(
        "--minutes", metavar="M", type=minutes, help="length of this slice (default: the option files' schedules)"
    )

    parser.add_argument(
        "--retrain",
        nargs="+",
        default=[],
        metavar="ROW",
        help="train these rows of a slice that has begun again, and the rows that start from them",
    )
    add_processes(parser)
    parser.add_argument("--dry-run", action="store_true", help="show what would be done, without doing it")


def interrupted(args: argparse.Namespace) -> str:
    return "the same command resumes from the last saved states"


def run(args: argparse.Namespace) -> None:
    from csd_plugin.lab.reproduce import reproduce

    text = reproduce(
        args.matrix,
        clean=args.clean,
        validation=args.validation,
        minutes=args.minutes,
        retrain=args.retrain,
        processes=args.nproc_per_node,
        dry_run=args.dry_run,
    )
    print(text)

"""A results table from a matrix file: train what is missing, resume what was interrupted, test, and write the table.

A matrix (options/matrix/*.yml) holds rows as small differences from one option file. Everything is written to the
current folder: runs to experiments/RUN and results/RUN, as BasicSR does, and the table, with published numbers next to
ours, to results/MATRIX/table.md .csv .tex .html. Finished runs are not repeated. An interrupted training is resumed
from its last saved state. The old run of a row that is retrained is kept under another name. --minutes stretches or
shortens all schedules by one factor, which is found by timing a few steps.

examples:
  csd table options/matrix/table5_cpu.yml --dry-run
  csd table options/matrix/table4_cpu.yml options/matrix/table5_cpu.yml --minutes 180
  csd table options/matrix/table4_cpu.yml --only alone csd
  csd table options/matrix/table2.yml
"""

from __future__ import annotations

import argparse

from csd_plugin.cli.flags import add_processes, minutes, path_given


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "matrix",
        metavar="MATRIX.yml",
        type=path_given,
        nargs="+",
        help="a matrix file, or several that share their runs",
    )
    parser.add_argument("--minutes", type=minutes, metavar="M", help="fit all schedules to M minutes")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="do only these rows, and the rows they start from")
    add_processes(parser)
    parser.add_argument("--dry-run", action="store_true", help="show what would be done, without doing it")
    parser.add_argument("--no-train", action="store_true", help="write the table from the results that exist")
    parser.add_argument(
        "--retrain",
        nargs="+",
        default=[],
        metavar="ROW",
        help="train these rows again, and the rows that start from them; old runs are kept under other names",
    )


def interrupted(args: argparse.Namespace) -> str:
    return "the same command resumes from the last saved states"


def run(args: argparse.Namespace) -> None:
    from csd_plugin.lab.job import Table, make_tables

    print(
        make_tables(
            [Table.read(path) for path in args.matrix],
            minutes=args.minutes,
            only=args.only,
            retrain=args.retrain,
            processes=args.nproc_per_node,
            dry_run=args.dry_run,
            train=not args.no_train,
        )
    )

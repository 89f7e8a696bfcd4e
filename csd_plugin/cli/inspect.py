"""Dry-run an option file: networks, layers and shapes, alignment of windows, memory, what is trained, warnings.

It needs no data or checkpoints, and writes nothing.

examples:
  csd inspect options/distill/student1_csd.yml
  csd inspect options/distill/student1_srkd.yml --layers
"""

from __future__ import annotations

import argparse
from pathlib import Path

from csd_plugin.cli.flags import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "options", metavar="OPTIONS.yml", type=Path, help="an option file for csd_plugin.train or csd_plugin.test"
    )
    parser.add_argument("--layers", action="store_true", help="list every layer that can be tapped")
    parser.add_argument(
        "--size",
        type=whole(1, 8192),
        metavar="PIXELS",
        help="height and width of frames (default: those of the training crops, or 128)",
    )


def run(args: argparse.Namespace) -> None:
    from csd_plugin import compat, registration

    registration.install()
    registration.extend()
    compat.repair_launch()

    from csd_plugin.options import read_options
    from csd_plugin.report.inspection import inspect

    print(inspect(read_options(args.options), size=args.size, all_layers=args.layers))

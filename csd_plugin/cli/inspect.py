"""Dry-run an option file: networks, layers and shapes, alignment of windows, memory, what is trained, warnings.

It needs no data or checkpoints, and writes nothing. All mistakes of the file are listed, each with its line.

examples:
  csd inspect options/distill/student1_csd.yml
  csd inspect options/distill/student1_srkd.yml --layers
  csd inspect --schema > options/schema.json     # for editors that complete and check YAML
"""

from __future__ import annotations

import argparse
import json

from csd_plugin.cli.flags import path_given, refuse_idle, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "options",
        metavar="OPTIONS.yml",
        type=path_given,
        nargs="?",
        help="an option file for csd_plugin.train or csd_plugin.test",
    )
    what.add_argument("--schema", action="store_true", help="print the JSON Schema of option files")
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

    if args.schema:
        refuse_idle(args, add_arguments, ["size", "layers"], "--schema is not about a single file")
        from csd_plugin.options.schema import schema

        print(json.dumps(schema(), indent=1))
        return

    from csd_plugin.report.inspection import inspect

    print(inspect(args.options, size=args.size, all_layers=args.layers))

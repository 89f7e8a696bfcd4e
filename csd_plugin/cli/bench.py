"""Measure data loading, inference and training on this machine; `csd bench NAME --help` explains how.

examples:
  csd bench realtime
  csd bench infer --networks realtime wide
  csd bench data datasets/NTURain
"""

from __future__ import annotations

import argparse
import importlib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from csd_plugin.bench import BENCHMARKS

    names = parser.add_subparsers(metavar="NAME", required=True)
    for name, path in BENCHMARKS.items():
        module = importlib.import_module(path)
        own = names.add_parser(
            name,
            help=(module.__doc__ or "").partition("\n")[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(own)
        own.set_defaults(benchmark=module)


def run(args: argparse.Namespace) -> int | None:
    return args.benchmark.run(args)

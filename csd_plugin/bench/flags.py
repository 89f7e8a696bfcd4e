"""Flags that several benchmarks take."""

from __future__ import annotations

import argparse

from csd_plugin.cli.flags import path_given, whole


def add_rounds(parser: argparse.ArgumentParser, default: int) -> None:
    """`--rounds`: how many times everything is measured in turns."""
    parser.add_argument(
        "--rounds", type=whole(1, 10_000), default=default, metavar="N", help=f"rounds to measure (default {default})"
    )


def add_sizes(parser: argparse.ArgumentParser, *default: str) -> None:
    """`--sizes`: sizes of the frames."""
    _add_several(parser, "--sizes", "WxH", "sizes of the frames", default)


def add_networks(parser: argparse.ArgumentParser, *default: str) -> None:
    """`--networks`: names for `speed.find_network`."""
    _add_several(parser, "--networks", "NAME", "presets, names of `csd models`, or checkpoints", default)


def _add_several(parser: argparse.ArgumentParser, flag: str, metavar: str, what: str, default: tuple[str, ...]) -> None:
    text = f"{what} (default {' '.join(default)})"
    parser.add_argument(flag, nargs="+", default=list(default), metavar=metavar, help=text)


def add_report(parser: argparse.ArgumentParser, *, plotted: bool = True) -> None:
    """`--json`: the path for `measure.publish`."""
    written = "the table (.md) and a plot (.png) next to them" if plotted else "the table (.md) next to them"
    parser.add_argument("--json", type=path_given, metavar="FILE", help=f"write the figures, with {written}")

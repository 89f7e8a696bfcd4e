"""Flags that several benchmarks take."""

from __future__ import annotations

import argparse

from csd_plugin.cli.flags import frame_size, path_given, whole


def add_rounds(parser: argparse.ArgumentParser, default: int) -> None:
    """`--rounds`: how many times everything is measured in turns."""
    parser.add_argument(
        "--rounds", type=whole(1, 10_000), default=default, metavar="N", help=f"rounds to measure (default {default})"
    )


def add_sizes(parser: argparse.ArgumentParser, *default: str) -> None:
    """`--sizes`: sizes of the frames."""
    text = f"sizes of the frames (default {' '.join(default)})"
    sizes = [frame_size(size) for size in default]
    parser.add_argument("--sizes", nargs="+", type=frame_size, default=sizes, metavar="WxH", help=text)


def add_networks(parser: argparse.ArgumentParser, *default: str) -> None:
    """`--networks`: names for `speed.find_network`."""
    text = f"presets, names of `csd models`, or checkpoints (default {' '.join(default)})"
    parser.add_argument("--networks", nargs="+", default=list(default), metavar="NAME", help=text)


def add_report(parser: argparse.ArgumentParser, *, plotted: bool = True) -> None:
    """`--json`: the path of a `measure.Report`."""
    written = "the table (.md) and a plot (.png) next to them" if plotted else "the table (.md) next to them"
    parser.add_argument("--json", type=path_given, metavar="FILE", help=f"write the figures, with {written}")

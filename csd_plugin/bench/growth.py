"""How time and memory grow with the size of the frames and with their number.

First table: eight frames each, of 1x to 16x the pixels of --size. Second table: clips of 1x to 16x --frames at --size.
Every row is a separate process that streams its frames through the network as `csd derain` does. The columns:
  s/frame   wall-clock time of the clip divided by its frames, without the start of the process
  us/pixel  the same per pixel, in microseconds: constant if time grows only with the number of pixels
  peak MB   the most memory that the process held
  +MB       the part of it that frames and network needed after torch was loaded: constant in the second table, as
            memory does not grow with the clip; limited in the first by --memory and by the frames themselves

example:
  csd bench growth --network student1 --json growth.json
"""

from __future__ import annotations

import argparse

from csd_plugin.bench.flags import add_report
from csd_plugin.cli.flags import frame_size, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", default="student2", metavar="NAME", help="as for bench infer (default student2)")
    parser.add_argument(
        "--size", type=frame_size, default="320x240", metavar="WxH", help="size of 1x (default 320x240)"
    )
    parser.add_argument("--frames", type=whole(1, 10_000), default=8, metavar="N", help="frames of 1x (default 8)")
    parser.add_argument("--memory", type=whole(1), default=512, metavar="MIB", help="as for csd derain (default 512)")
    parser.add_argument(
        "--steps",
        nargs="+",
        type=whole(1, 256),
        default=[1, 2, 4, 8, 16],
        metavar="N",
        help="multiples to measure (default 1 2 4 8 16)",
    )
    add_report(parser)


def run(args: argparse.Namespace) -> None:
    from csd_plugin.bench.footprint import Point, draw, growth_table, measure
    from csd_plugin.bench.measure import Report, check_report

    check_report(args.json)
    content = {"network": args.network, "memory": args.memory}
    with Report(args.json, growth_table, Point._asdict, content, draw, key="points") as report:
        for point in measure(args.network, args.size, args.frames, args.steps, args.memory):
            report.add(point)

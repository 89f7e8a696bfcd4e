"""Seconds and memory of a distillation step, compared with simpler ways to compute it.

All contenders train a student with CSD's default options on the same random clips, from the same weights:
  csd        ours: the step of a DistillModel
  csd, graph on a GPU: the same with train.cuda_graph and a fused optimizer
  per frame  the same losses and gradients in the simplest way: window by window through both networks, frame by frame
             and cell by cell through the objective, then one backward pass; its numbers are checked against ours first
  released   the pattern of the authors' released code: networks run again on pooled frames for each scale, with six
             backward passes per frame over graphs that are kept through the clip; one optimizer step at its end, as
             today's torch refuses those in between
The columns:
  s/step, steps/s   medians over rounds in which all take turns; with one thread of a CPU, its time, which other
                    programs hardly affect
  x time            this time divided by ours in the same round (median)
  peak MiB          the most memory that a separate process held over two steps; of a GPU, that torch held there
  +MiB, x memory    the part of it that the steps needed once torch, networks and clips were loaded; divided by ours

examples:
  csd bench step --teacher-width 32 --profile --json step.json
  csd bench step --student student2 --batch 4 --size 128 --precision bf16 --device cuda
"""

from __future__ import annotations

import argparse

from csd_plugin.bench.flags import add_report, add_rounds
from csd_plugin.cli.flags import jobs, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--student", default="student1", metavar="NAME", help="preset (default student1)")
    parser.add_argument("--teacher", default="teacher", metavar="NAME", help="preset (default teacher)")
    parser.add_argument("--student-width", type=whole(1, 1024), metavar="C", help="channels (default: the preset's)")
    parser.add_argument("--teacher-width", type=whole(1, 1024), metavar="C", help="channels (default: the preset's)")
    parser.add_argument("--batch", type=whole(1, 1024), default=2, metavar="B", help="clips per step (default 2)")
    parser.add_argument(
        "--size", type=whole(1, 4096), default=64, metavar="PIXELS", help="side of the crops (default 64)"
    )
    parser.add_argument(
        "--num-target", type=whole(1, 1024), default=5, metavar="L", help="target frames per clip (default 5)"
    )
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="precision of the networks (default fp32)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, auto (default cpu)")
    parser.add_argument("--threads", type=jobs, default=1, metavar="N", help="number of threads (default 1)")
    add_rounds(parser, 3)
    parser.add_argument("--profile", action="store_true", help="also show where the time of our step goes")
    add_report(parser)


def run(args: argparse.Namespace) -> None:
    from dataclasses import asdict, fields

    from csd_plugin.bench.measure import Report, check_report, say
    from csd_plugin.bench.training import Settings, draw, measure, profile, profile_table, step_table, verify
    from csd_plugin.devices import pick_device
    from csd_plugin.inference.memory import keep_freed_memory

    check_report(args.json)
    args.device = str(pick_device(args.device))
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    keep_freed_memory()
    apart = verify(settings)
    say(f"losses and gradients of the step per frame equal ours to within {apart:.0e} (fp32)\n")
    parts: dict[str, list[float]] = {}
    content = {"settings": asdict(settings), "apart": apart, "rounds": args.rounds, "parts": parts}
    with Report(
        args.json,
        step_table,
        asdict,
        content,
        plot=lambda figure, rows: draw(figure, rows, parts),
        below=lambda rows: profile_table(parts) if parts else "",
    ) as report:
        for row in measure(settings, args.rounds):
            report.add(row)
        if args.profile:
            parts |= profile(settings, args.rounds)

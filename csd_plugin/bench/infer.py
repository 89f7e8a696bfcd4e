"""Seconds per frame: networks x backends x sizes x threads, compared with the machine's own matrix products.

Networks are presets with random weights, prenet or s2vd, names of `csd models`, or checkpoints. Backends are
  plain        the network as in training (plain:bf16 with autocast)
  compiled     the same with torch.compile (compiled:bf16), which takes a minute or more to start
  torch        the network in its fastest exact form (torch:bf16 in bfloat16, torch:int8 for HalfNets on a CPU)
  onnxruntime  the folded network's graph in ONNX Runtime
  openvino     the same in OpenVINO (openvino:bf16)
A .onnx or .xml that `csd export` wrote runs in its own runtime. The columns:
  s/frame   median over rounds in which all take turns, so that a busy machine slows all of them
  x plain   how many times faster than the plain network in the same round (median)
  GMAC      useful multiply-adds per frame, in 10^9, without those on the zero padding in time
  GMAC/s    the same per second
  of matmul that rate as a share of the device's rate in matrix products of that precision, measured before every run
  +zeros    that share if the zero blocks of folded weights in graphs are counted too
S2VD takes 12 frames in one pass, 8 of which count. --batch is the number of windows in one pass, as in training.

examples:
  csd bench infer --json infer.json
  csd bench infer --device cuda --networks teacher --backends plain:bf16 compiled:bf16 --sizes 128x128 --batch 20
  csd bench infer --networks student1 net_g_latest.pth --backends torch openvino:bf16 --sizes 640x480 1280x720
"""

from __future__ import annotations

import argparse

from csd_plugin.bench.flags import add_networks, add_report, add_rounds, add_sizes
from csd_plugin.cli.flags import jobs, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_networks(parser, "student1", "student2")
    parser.add_argument(
        "--backends",
        nargs="+",
        metavar="NAME",
        help="default: plain, torch, torch:bf16, and those of the others that are installed",
    )
    add_sizes(parser, "640x480")
    parser.add_argument(
        "--threads", nargs="+", type=jobs, default=[1], metavar="N", help="numbers of threads (default 1)"
    )
    parser.add_argument("--batch", type=whole(1, 1024), default=1, metavar="B", help="windows at once (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default cpu)")
    add_rounds(parser, 5)
    add_report(parser)


def run(args: argparse.Namespace) -> None:
    from csd_plugin.bench.measure import Report, check_report
    from csd_plugin.bench.speed import SpeedRow, default_backends, draw, matrix_rates, measure, speed_table
    from csd_plugin.inference.memory import keep_freed_memory

    check_report(args.json)
    keep_freed_memory()
    backends = args.backends or default_backends()
    rows = measure(args.networks, backends, args.sizes, args.threads, args.rounds, device=args.device, batch=args.batch)
    content = {"device": args.device, "batch": args.batch, "rounds": args.rounds}
    with Report(args.json, speed_table, SpeedRow.figures, content, draw, matrix_rates) as report:
        for row in rows:
            report.add(row)

"""Training samples per second from a folder of frames and from LMDB stores of it.

A sample is num_frame rainy frames and their clean ones, all cropped alike to gt_size. It is read from
  folder    the image files themselves
  source    an LMDB store of the files' own bytes
  png       an LMDB store of the frames as PNG
  basicsr   BasicSR's own: built by its make_lmdb_from_imgs, read by its FileClient and imfrombytes
  raw       an LMDB store of pixels
without and with scale augmentation. The stores are built first, below --work. The columns:
  MB        on disk
  first     samples per second of one loader worker, from the disk, with an empty system cache
  warm      the same with everything in the cache
  loader    samples per second that arrive from a loader of --workers workers, transfer included
  x         times the folder's rate
  start     seconds from the start of the workers to their first batch
  private, shared
            MB of a worker's memory: its own, and what it shares with others (such as the map of a store)
Rates are medians over rounds in which all take turns, so that a busy machine slows all of them.

example:
  csd bench data NTURain --split test --json data.json
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from csd_plugin.bench.flags import add_report, add_rounds
from csd_plugin.cli.flags import jobs, number, path_given, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataroot", metavar="PATH", type=path_given, help="folder of a data set in NTURain's layout")
    parser.add_argument("--split", default="train", choices=("train", "test"), help="which clips (default train)")
    parser.add_argument("--clips", nargs="+", metavar="NAME", help="only these clips")
    parser.add_argument(
        "--num-frame",
        type=whole(1),
        default=11,
        metavar="N",
        help="rainy frames per sample, and clean ones (default 11)",
    )
    parser.add_argument(
        "--gt-size", type=whole(1), default=128, metavar="PIXELS", help="side of the crop (default 128)"
    )
    parser.add_argument("--float32", action="store_true", help="samples as float32 instead of uint8 (as_uint8)")
    parser.add_argument(
        "--batch-size", type=whole(1, 1024), default=4, metavar="B", help="samples per batch (default 4)"
    )
    parser.add_argument("--workers", type=jobs, default=1, metavar="N", help="workers of a loader (default 1)")
    add_rounds(parser, 3)
    parser.add_argument(
        "--seconds", type=number(0.001, 3600), default=2.0, help="length of each measurement (default 2)"
    )
    parser.add_argument("--jobs", type=jobs, default=1, metavar="N", help="processes that build stores (default 1)")
    parser.add_argument(
        "--work", type=path_given, metavar="FOLDER", help="folder for the stores (default: a temporary one)"
    )
    add_report(parser, plotted=False)


def run(args: argparse.Namespace) -> None:
    from csd_plugin.bench.loading import Settings, loading_table, measure
    from csd_plugin.bench.measure import Report, check_report

    check_report(args.json)
    settings = Settings(
        split=args.split,
        clips=args.clips,
        num_frame=args.num_frame,
        gt_size=args.gt_size,
        as_uint8=not args.float32,
        batch_size=args.batch_size,
        workers=args.workers,
        rounds=args.rounds,
        seconds=args.seconds,
    )
    with Report(args.json, loading_table, asdict, {"settings": asdict(settings)}) as report:
        for row in measure(args.dataroot, settings, jobs=args.jobs, work=args.work):
            report.add(row)

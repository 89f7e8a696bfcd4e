"""Put rendered rain on clean clips: training or test pairs in NTURain's folder layout.

IN is a folder of clips (sub-folders of frames) or one folder of frames. Below OUT appear, for every clip,
  Dataset_Training_Synthetic/<clip>_GT        the clean frames, copied byte for byte where they are JPEG or PNG
  Dataset_Training_Synthetic/<clip>_Rain_01   the first rainy version, _Rain_02 the second, ...
and with --layout testing Dataset_Testing_Synthetic/<clip>_GT and <clip>_Rain. Clips that are there already are left
alone, so an interrupted run is completed by the same command.

examples:
  csd rain clean/ pairs/ --variants 3 --jobs 2
  csd rain clean/ pairs/ --layout testing --preset heavy --clips walk street
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", type=Path, help="folder of clean clips, or of the frames of one")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write to")
    parser.add_argument("--preset", default="nturain", help="light, medium, heavy or nturain (default)")
    parser.add_argument(
        "--fixed", action="store_true", help="the preset's very rain everywhere, not variations about it"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other rain (default 0)")
    parser.add_argument("--variants", type=int, default=1, metavar="K", help="rainy versions of each clip (default 1)")
    parser.add_argument("--layout", choices=("training", "testing"), default="training")
    parser.add_argument("--clips", nargs="+", metavar="NAME", help="only these clips")
    parser.add_argument("--format", choices=("jpg", "png"), default="jpg", help="of the rainy frames (default jpg)")
    parser.add_argument("--quality", type=int, default=95, help="of JPEG, 1 to 100 (default 95)")
    parser.add_argument("--fps", type=float, default=25.0, help="frame rate of the clips (default 25)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default 1)")


def run(args: argparse.Namespace) -> int:
    from csd_plugin.data.rain import PairOptions, find_preset, write_pairs

    options = PairOptions(
        params=find_preset(args.preset),
        seed=args.seed,
        layout=args.layout,
        variants=args.variants,
        vary=not args.fixed,
        suffix=f".{args.format}",
        quality=args.quality,
        fps=args.fps,
    )
    new = write_pairs(args.source, args.out, options, args.clips, args.jobs)
    print(f"{new} folders written to {args.out / options.root}" if new else "everything is there already")
    return 0

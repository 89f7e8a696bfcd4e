"""Make the README's picture: a clean clip with rendered rain, and next to it the result of a shipped network.

    python tools/readme_picture.py CLIPS/udacity_vehicles docs/before_after.webp

CLIP is a folder of clean frames or a video that may be shown. The rain is that of `csd rain --fixed`. Both halves are
the same part of the frame, at its own size. The file is an animated WebP, or a GIF if OUT ends in .gif.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from csd_plugin.cli.flags import whole
from csd_plugin.data.images import rounded
from csd_plugin.data.rain import RainRenderer, ambient_light, find_preset, override
from csd_plugin.data.video import open_reader
from csd_plugin.errors import CSDError
from csd_plugin.inference.runner import Derainer
from csd_plugin.report.figures.crops import Box, check_box
from csd_plugin.weights import find_checkpoint

SEED = 5
GAP = 4
MILLISECONDS = 40
"""Milliseconds per frame: 25 frames per second, as the rain is rendered."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", metavar="CLIP", type=Path, help="clean frames")
    parser.add_argument("out", metavar="OUT", type=Path, help="picture to write, .webp or .gif")
    parser.add_argument("--model", metavar="NAME", help="as for csd derain (default: the same)")
    parser.add_argument("--preset", default="nturain", help="as for csd rain (default nturain)")
    parser.add_argument(
        "--set",
        nargs="+",
        default=["density=1500"],
        metavar="NAME=NUMBER",
        help="as for csd rain (default density=1500)",
    )
    parser.add_argument("--frames", type=whole(1), default=32, metavar="N", help="number of frames (default 32)")
    parser.add_argument("--start", type=whole(0), default=0, metavar="N", help="first frame, counted from 0 (default)")
    parser.add_argument(
        "--box", type=int, nargs=4, default=(220, 40, 420, 280), metavar=("X", "Y", "W", "H"), help="part to show"
    )
    parser.add_argument("--quality", type=whole(0, 100), default=60, help="quality of WebP (default 60)")
    args = parser.parse_args(argv)
    if args.out.suffix not in (".webp", ".gif"):
        parser.error(f"{args.out}: give a name that ends in .webp or .gif")
    try:
        with open_reader(args.clip, start=args.start) as reader:
            clean = list(islice(rounded(reader, args.clip), args.frames))
        (height, width), box = clean[0].shape[:2], Box(*args.box)
        check_box(box, width, height)
        params, light = override(find_preset(args.preset), args.set), ambient_light(clean[0])
        rain = RainRenderer(params, seed=SEED, height=height, width=width, ambient=light)
        rainy = [rain.render(frame, number) for number, frame in enumerate(clean)]
        derained = list(Derainer(find_checkpoint(args.model))(rainy))
    except CSDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    first, *others = (side_by_side(*map(box.cut, pair)) for pair in zip(rainy, derained, strict=True))
    first.save(
        args.out, save_all=True, append_images=others, duration=MILLISECONDS, loop=0, quality=args.quality, method=6
    )
    print(f"{args.out}: {first.width}x{first.height}, {len(rainy)} frames, {args.out.stat().st_size / 2**20:.2f} MiB")
    return 0


def side_by_side(left: np.ndarray, right: np.ndarray) -> Image.Image:
    """Two pictures (H, W, 3) of one size with a white gap between them."""
    return Image.fromarray(np.hstack([left, np.full((len(left), GAP, 3), 255, np.uint8), right]))


if __name__ == "__main__":
    sys.exit(main())

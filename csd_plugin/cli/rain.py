"""Add rendered rain to clean clips: training or test pairs in NTURain's folder layout.

IN is a folder of clips (subfolders of frames, video files), one folder of frames or one video file. OUT gets, for
every clip,
  Dataset_Training_Synthetic/<clip>_GT        the clean frames, copied byte for byte where they are JPEG or PNG
  Dataset_Training_Synthetic/<clip>_Rain_01   the first rainy version, _Rain_02 the second, ...
or, with --layout testing, Dataset_Testing_Synthetic/<clip>_GT and <clip>_Rain. Clips that exist already are kept, so
the same command completes an interrupted run. If OUT is the name of a video file, only that video is written: one clip
with rain.

The rain of every version varies around the preset, unless --fixed is given. The quantities that --set can change are
listed, with units and ranges, in csd_plugin/data/rain/params.py.

examples:
  csd rain clean/ pairs/ --variants 3 --jobs 2
  csd rain clean/ pairs/ --layout testing --preset heavy --clips walk street
  csd rain clean/ pairs/ --preset light --set wind=4 splash=20 veil=0.3
  csd rain walk.mp4 rainy.mp4 --preset heavy
  csd rain clean/ --contact-sheet sheet.png        clean frames next to all presets, to look at
  csd rain clean/ --calibrate                      density and opacity that give the preset NTURain's statistics
"""

from __future__ import annotations

import argparse
import re
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from csd_plugin.cli.flags import jobs, path_given, rate, refuse_idle
from csd_plugin.errors import CSDError
from csd_plugin.extras import needed_by

if TYPE_CHECKING:
    from csd_plugin.data.rain import RainParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from csd_plugin.data.rain import PRESETS

    parser.add_argument("source", metavar="IN", type=path_given, help="clean clips")
    parser.add_argument("out", metavar="OUT", type=path_given, nargs="?", help="folder for pairs, or a video file")
    parser.add_argument("--clips", nargs="+", metavar="NAME", help="only these clips")
    parser.add_argument("--preset", default="nturain", help=f"{', '.join(PRESETS)} (default nturain)")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=NUMBER", help="change quantities of the preset")
    parser.add_argument("--fixed", action="store_true", help="exactly the preset's rain, without variation")
    parser.add_argument("--seed", type=int, default=0, help="each seed gives different rain (default 0)")
    parser.add_argument("--fps", type=rate, default=Fraction(25), help="frame rate of folders of frames (default 25)")
    parser.add_argument(
        "--layout",
        choices=("training", "testing"),
        default="training",
        help="names of clip folders in OUT, see above (default training)",
    )
    parser.add_argument("--variants", type=int, default=1, metavar="K", help="rainy versions of each clip (default 1)")
    parser.add_argument(
        "--format", choices=("jpg", "png"), default="jpg", help="file format of rainy frames (default jpg)"
    )
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality, 1 to 100 (default 95)")
    parser.add_argument("--jobs", type=jobs, default=1, metavar="N", help="processes (default 1)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing video file")
    parser.add_argument("--keep-going", action="store_true", help="skip what cannot be read in a damaged video")
    parser.add_argument(
        "--contact-sheet", type=path_given, metavar="PNG", help="draw clean and rainy frames side by side"
    )
    parser.add_argument(
        "--calibrate", action="store_true", help="fit the preset to NTURain's statistics on the clips of IN"
    )


def outputs(args: argparse.Namespace) -> list[Path]:
    return [args.out] if args.out else []


def run(args: argparse.Namespace) -> None:
    from csd_plugin.data.rain import find_preset, override
    from csd_plugin.inference.memory import keep_freed_memory

    if not (args.out or args.contact_sheet or args.calibrate):
        raise CSDError("nothing to do: give OUT, --contact-sheet or --calibrate")
    params = override(find_preset(args.preset), args.set)
    keep_freed_memory()
    if args.calibrate:
        params = _calibrate(args, params)
    if args.contact_sheet:
        _draw_sheet(args, params)
    if args.out:
        _write_pairs(args, params)


def _calibrate(args: argparse.Namespace, params: RainParams) -> RainParams:
    with needed_by("--calibrate"):
        from csd_plugin.data.rain.calibrate import NTURAIN, calibrate, load_samples

    fitted, reached = calibrate(params, load_samples(args.source, args.clips), seed=args.seed)
    print(f"{args.preset}: density={fitted.density:.4g} opacity={fitted.opacity:.4g}")
    print(f"{'Rain - GT':<20}{'mean':>8}{'median':>8}{'> +10 %':>9}{'< -10 %':>9}")
    for name, row in (("NTURain a1", NTURAIN), ("this rain", reached)):
        print(f"{name:<20}{row.mean:8.2f}{row.median:8.1f}{row.brighter:9.2f}{row.darker:9.2f}")
    return fitted


def _draw_sheet(args: argparse.Namespace, params: RainParams) -> None:
    from csd_plugin.atomic import refuse_inputs, refuse_strangers
    from csd_plugin.data.images import PNG_START
    from csd_plugin.data.rain import PRESETS
    from csd_plugin.data.rain.pairs import find_clips
    from csd_plugin.data.rain.sheet import write_contact_sheet

    if args.contact_sheet.suffix.lower() != ".png":
        raise CSDError(
            f"--contact-sheet {args.contact_sheet}: the contact sheet is a PNG file; give a name that ends in .png"
        )
    clips = find_clips(args.source, args.clips)
    refuse_inputs([args.contact_sheet], [file for clip in clips for file in clip.files])
    refuse_strangers(args.contact_sheet, re.escape(PNG_START))
    write_contact_sheet(args.contact_sheet, clips, {**PRESETS, args.preset: params}, args.seed)
    print(f"contact sheet: {args.contact_sheet}")


def _write_pairs(args: argparse.Namespace, params: RainParams) -> None:
    from csd_plugin.data.rain.pairs import PairOptions, rain_on_video, write_pairs
    from csd_plugin.data.video import check_kind
    from csd_plugin.data.video.interface import VIDEO_SUFFIXES
    from csd_plugin.report.text import counted

    options = PairOptions(
        params=params,
        seed=args.seed,
        split={"training": "train", "testing": "test"}[args.layout],
        variants=args.variants,
        vary=not args.fixed,
        suffix=f".{args.format}",
        quality=args.quality,
        fps=float(args.fps),
        keep_going=args.keep_going,
    )
    check_kind(args.out)
    is_video = args.out.suffix.lower() in VIDEO_SUFFIXES
    idle = ("clips", "variants", "layout", "format", "quality", "jobs") if is_video else ("overwrite",)
    refuse_idle(args, add_arguments, idle, f"OUT is a {'video' if is_video else 'folder'}")
    if is_video:
        count = rain_on_video(args.source, args.out, options, overwrite=args.overwrite)
        print(f"{counted(count, 'frame')} written to {args.out}")
        return
    new = write_pairs(args.source, args.out, options, args.clips, args.jobs)
    print(f"{counted(new, 'folder')} written below {args.out}" if new else f"{args.out} is complete already")

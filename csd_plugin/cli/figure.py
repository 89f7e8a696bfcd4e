"""Draw pictures that compare networks and results on a clip; `csd figure KIND --help` explains each.

RAIN and GT are each a video file or a folder of images. A method is a shipped network (realtime), a checkpoint, a file
of `csd export`, or result frames (a folder or video as long as RAIN). LABEL=METHOD names its column. Frames are counted
from 0. Pictures are as wide as a two-column page, at 300 dots per inch.

examples:
  csd figure crops --clip a1_Rain --truth a1_GT --models tiny realtime --out crops.png
  csd figure crops --clip a1_Rain --truth a1_GT --models PReNet=results/prenet/a1 net_g_latest.pth \\
      --frame 20 --box 100,200,120,90 --out figure3.pdf
  csd figure features --clip a1_Rain --models before=tiny after=realtime --tap tail --out figure2.png
  csd figure errors --clip a1_Rain --truth a1_GT --models tiny realtime --out errors.png
  csd figure slice --clip a1_Rain --truth a1_GT --models realtime --row 240 --out slice.png
  csd figure video --clip rain.mp4 --models realtime mine=net_g_latest.pth --split --out comparison.mp4
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from csd_plugin.cli.flags import number, path_given, whole
from csd_plugin.errors import CSDError

if TYPE_CHECKING:
    from csd_plugin.report.figures.crops import Box
    from csd_plugin.report.figures.sources import Scene


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(metavar="KIND", required=True)

    crops = _kind(kinds, "crops", _crops, "input, methods and truth with enlarged details, PSNR and SSIM")
    _still(crops)
    crops.add_argument(
        "--box", metavar="x,y,w,h", action="append", default=[], type=_box, help="a detail, in pixels; may be repeated"
    )
    crops.add_argument(
        "--boxes",
        metavar="N",
        type=whole(1, 36),
        help="number of details, chosen where input and methods differ most (default 2)",
    )
    crops.add_argument(
        "--protocol",
        choices=("nturain_y", "rgb"),
        default="nturain_y",
        help="protocol of PSNR and SSIM (default nturain_y)",
    )

    errors = _kind(kinds, "errors", _errors, "maps of |result - truth| on one scale, with a colour bar")
    _still(errors)
    errors.add_argument(
        "--peak", type=number(0.01, 255), help="grey levels at the end of the scale (default: the 99.5th percentile)"
    )

    features = _kind(
        kinds, "features", _features, "feature maps of networks on the same frame, by mmengine's Visualizer"
    )
    _still(features)
    features.add_argument(
        "--tap",
        metavar="LAYER",
        action="append",
        default=[],
        help="show what goes into this layer (conv22), or comes out (conv7:output); may be repeated, one "
        "row each (default: the feature that distillation compares)",
    )
    features.add_argument("--shared-scale", action="store_true", help="one colour scale per row (default: one per map)")

    slices = _kind(kinds, "slice", _slice, "one row or column of pixels over time")
    _part(slices)
    slices.add_argument("--row", metavar="Y", type=whole(0), help="which row (default: the middle one)")
    slices.add_argument("--column", metavar="X", type=whole(0), help="which column, instead of a row")

    video = _kind(kinds, "video", _video, "a video of all columns, side by side or as stripes of one picture")
    _part(video)
    video.add_argument("--split", action="store_true", help="one picture, with one vertical stripe per column")
    video.add_argument(
        "--height", metavar="PIXELS", type=whole(16, 8192), help="height of the pictures (default: the clip's)"
    )
    video.add_argument("--overwrite", action="store_true", help="replace an existing video")


def run(args: argparse.Namespace) -> None:
    from csd_plugin.inference.memory import keep_freed_memory
    from csd_plugin.report.figures.sources import Scene, find_method

    keep_freed_memory()
    scene = Scene(args.clip, args.truth, tuple(find_method(model) for model in args.models), args.device)
    print(f"{args.draw(args, scene)}\nwritten: {args.out}")


def _crops(args: argparse.Namespace, scene: Scene) -> str:
    from csd_plugin.report.figures.crops import draw_crops

    if args.box and args.boxes is not None:
        raise CSDError("--box and --boxes: give the details, or how many are to be chosen, not both")
    number, choose = _chosen(args, scene), 2 if args.boxes is None else args.boxes
    boxes = draw_crops(scene, args.out, number=number, boxes=args.box, choose=choose, protocol=args.protocol)
    return f"frame {number}, --box " + " --box ".join(",".join(map(str, box)) for box in boxes)


def _errors(args: argparse.Namespace, scene: Scene) -> str:
    from csd_plugin.report.figures.errors import draw_errors

    number = _chosen(args, scene)
    peak = draw_errors(scene, args.out, number=number, peak=args.peak)
    return f"frame {number}, --peak {peak:g}"


def _features(args: argparse.Namespace, scene: Scene) -> str:
    from csd_plugin.report.figures.features import draw_features

    number = _chosen(args, scene)
    shapes = draw_features(scene, args.out, number=number, taps=args.tap, shared_scale=args.shared_scale)
    return f"frame {number}, " + ", ".join(f"{label} {'x'.join(map(str, shape))}" for label, shape in shapes.items())


def _slice(args: argparse.Namespace, scene: Scene) -> str:
    from csd_plugin.report.figures.sheet import check_output
    from csd_plugin.report.figures.slices import draw_slices

    check_output(args.out, scene.inputs)
    count = draw_slices(scene, args.out, start=args.start, end=args.end, row=args.row, column=args.column)
    return f"{count} frames"


def _video(args: argparse.Namespace, scene: Scene) -> str:
    from csd_plugin.report.figures.comparison import write_comparison

    count = write_comparison(
        scene, args.out, start=args.start, end=args.end, split=args.split, height=args.height, overwrite=args.overwrite
    )
    return f"{count} frames"


def _kind(kinds, name: str, draw, title: str) -> argparse.ArgumentParser:
    parser = kinds.add_parser(name, help=title, description=title[0].upper() + title[1:] + ".")
    parser.set_defaults(draw=draw)
    parser.add_argument(
        "--clip", metavar="RAIN", type=path_given, required=True, help="the rainy clip: video or folder"
    )
    parser.add_argument("--truth", metavar="GT", type=path_given, help="its ground truth")
    parser.add_argument(
        "--models",
        metavar="METHOD",
        nargs="+",
        default=[],
        help="[LABEL=] a shipped network such as realtime, a checkpoint, or a folder or video of results",
    )
    parser.add_argument("--out", metavar="FILE", type=path_given, required=True, help="file to write")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    return parser


def _still(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frame", metavar="N", type=whole(0), help="which frame, from 0 (default: the middle one)")


def _part(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--start", metavar="N", type=whole(0), default=0, help="first frame (default 0)")
    parser.add_argument("--end", metavar="N", type=whole(1), help="the frame after the last one")


def _chosen(args: argparse.Namespace, scene: Scene) -> int:
    """The frame that a still picture shows; the output is checked first."""
    from csd_plugin.report.figures.sheet import check_output

    check_output(args.out, scene.inputs)
    return scene.middle() if args.frame is None else args.frame


def _box(text: str) -> Box:
    from csd_plugin.report.figures.crops import Box

    try:
        return Box(*map(int, text.split(",")))
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a box; give x,y,width,height in pixels, such as 100,200,120,90"
        ) from None

"""Remove rain from a video, a folder of videos or frames, or a pipe.

IN is a video file, a folder of videos, a folder of images, a pattern of image files (frames_%05d.png), - for raw rgb24
frames on standard input, or a camera (camera:0, /dev/video0, camera:NAME on Windows). A camera is read until --end,
Ctrl-C or SIGTERM, or until its terminal is closed. If its frames arrive faster than they can be cleaned, some are
dropped, so that the delay does not grow.
OUT is a video if its name ends in .mp4 .m4v .mov .mkv .webm or .avi, a pattern (clean_%05d.png), - for raw frames on
standard output, else a folder of PNG files; a new name with the ending of another kind of file (clean.png, clean.gif)
is refused. A video keeps the codec, time stamps, colours, bit depth, sound, subtitles, chapters and tags of IN. What
OUT's format cannot hold is named in one line. The video appears under its name only when it is complete; until then,
its frames are kept in OUT.unfinished (not those of .avi). Frames of a folder keep their names, those of a pattern their
numbers, and both keep 16 bits. They are written one by one. --resume continues a stopped run, and existing output is
replaced only with --overwrite.
Of a folder of videos, each becomes one of the same name in the folder OUT. Those that are in OUT already are left as
they are, so the same command continues a stopped run. A video that fails does not stop the others.

Scene cuts are detected and reported. No frame is cleaned with frames of another shot. The frames of a part (--start,
--end) are the same as in the whole video, except with networks of sequences, such as S2VD: these start where the part
starts, so its frames differ slightly.

examples:
  csd derain rain.mp4 clean.mp4
  csd derain rain.mp4 clean.mp4 --fast
  csd derain dashcam/ clean/ --fast
  csd derain rain.mp4 clean.mp4 --model net_g_latest.pth
  csd derain rain.mp4 both.mp4 --model net_g_latest.pth --side-by-side --start 1:05 --end 1:15
  csd derain camera:0 garden.mp4 --end 1:00
  csd derain a1_Rain/ a1_clean/ --model net_g_latest.pth --compare a1_GT/
  ffmpeg -i rain.mp4 -f rawvideo -pix_fmt rgb24 - | csd derain - - --size 640x480 --model student.onnx > clean.rgb
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from csd_plugin.cli.flags import frame_size, path_given, rate, refuse_idle, whole
from csd_plugin.errors import CSDError, users_line
from csd_plugin.report.text import counted, duration
from csd_plugin.weights import DEFAULT, FASTEST, FOR_CAMERAS, NETWORKS, find_checkpoint, shipped_as

if TYPE_CHECKING:
    import numpy as np

    from csd_plugin.data.video.interface import FrameReader
    from csd_plugin.inference.files import Derained
    from csd_plugin.inference.runner import Derainer
    from csd_plugin.metrics.scores import Scores


_LONG = 60.0
"""Seconds after which the faster network is mentioned."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="IN", type=path_given, help="video file, folder, pattern of images, camera:0, or -"
    )
    parser.add_argument("output", metavar="OUT", type=path_given, help="video file, folder or pattern to write, or -")
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--model",
        metavar="PATH",
        help=f"checkpoint, file of `csd export`, or one of `csd models`: {', '.join(NETWORKS)} (default {DEFAULT}; for "
        f"cameras {FOR_CAMERAS})",
    )
    model.add_argument("--fast", action="store_true", help=f"a network for real time, {FASTEST}")
    parser.add_argument("--start", type=position, default=0, metavar="AT", help="first frame: 120, 4.8s or 1:05")
    parser.add_argument(
        "--end", type=position, metavar="AT", help="the frame after the last one, in the same form as --start"
    )
    parser.add_argument("--fps", type=rate, default=Fraction(25), help="frame rate of images and pipes (default 25)")
    parser.add_argument("--size", type=frame_size, metavar="WxH", help="size of the frames on standard input")
    present = parser.add_mutually_exclusive_group()
    present.add_argument(
        "--resume",
        action="store_true",
        help="continue a stopped run: skip frames that exist in the output folder, or were encoded for the video; use "
        "the same options and model",
    )
    present.add_argument(
        "--overwrite", action="store_true", help="replace an existing video, or frames with the same names"
    )
    parser.add_argument("--side-by-side", action="store_true", help="write the rainy and the clean frame side by side")
    parser.add_argument("--compare", metavar="GT", type=path_given, help="the ground truth: report PSNR and SSIM")
    parser.add_argument(
        "--encoding",
        choices=("auto", "quick", "small"),
        default="auto",
        help="of a video: quick is faster, small makes a smaller file of the same quality (default auto: quick "
        "for cameras and real-time networks, else small)",
    )
    parser.add_argument("--keep-going", action="store_true", help="skip what cannot be read in a damaged video")
    parser.add_argument(
        "--backend",
        choices=("auto", "torch", "onnxruntime", "openvino"),
        default="auto",
        help="runtime of the network (default: torch; ONNX Runtime for .onnx, OpenVINO for .xml)",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16", "int8"),
        default="auto",
        help="number format of the layers: fp32 is exact, the others are faster and change frames slightly. You need "
        "not choose: the default, auto, takes the fastest that this CPU has (bf16, else int8 for networks of type "
        "HalfNet) if its frames have a PSNR of 45 dB or more against those of fp32 and the input has 8 bits, else "
        "fp32. fp16 is for GPUs",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    parser.add_argument(
        "--memory",
        type=whole(1),
        default=512,
        metavar="MIB",
        help="memory for the network; larger frames are processed in tiles (default 512)",
    )


def interrupted(args: argparse.Namespace) -> str:
    from csd_plugin.data.images import files_of
    from csd_plugin.data.video import videos_in
    from csd_plugin.data.video.interface import PIPE, VIDEO_SUFFIXES
    from csd_plugin.data.video.unfinished import find_unfinished

    if videos_in(args.source):
        return "videos finished before it are written; the same command goes on with the others"
    if args.output.suffix.lower() in VIDEO_SUFFIXES:
        left = None
        with contextlib.suppress(CSDError):
            left = find_unfinished(args.output)
        return (
            f"{left.path} has {counted(left.num_frames, 'frame')}; --resume continues the run"
            if left
            else "no video was written"
        )
    if args.output != PIPE and not files_of(args.output):
        return "no frame was written"
    return "the frames before it are written" + ("" if args.output == PIPE else "; --resume continues the run")


def outputs(args: argparse.Namespace) -> list[Path]:
    return [] if str(args.output) == "-" else [args.output]


def chosen(model: str | None, fast: bool, source: Path) -> Path:
    """The checkpoint that the flags select; a camera gets a fast one by default. Raises CSDError."""
    from csd_plugin.data.video.camera import is_camera

    if model is None and (fast or is_camera(source)):
        model = FASTEST if fast else FOR_CAMERAS
    return find_checkpoint(model)


def run(args: argparse.Namespace) -> None:
    from csd_plugin.data.video import videos_in
    from csd_plugin.data.video.interface import PIPE
    from csd_plugin.inference.memory import keep_freed_memory

    keep_freed_memory()
    if videos := videos_in(args.source):
        _derain_all(videos, args)
        return
    if args.size and args.source != PIPE:
        raise CSDError(f"--size: only raw frames on standard input need a size; leave it out for {args.source}")
    model = chosen(args.model, args.fast, args.source)
    _derain(args, model, partial(_load, args, model))


def _load(args: argparse.Namespace, model: Path, precision: str) -> Derainer:
    if sys.stderr.isatty():  # it takes seconds; for people alone, as progress is
        print(f"loading {model.stem} ..", file=sys.stderr, flush=True)
    from csd_plugin.inference.runner import Derainer

    return Derainer(model, backend=args.backend, precision=precision, device=args.device, memory=args.memory)


def _derain_all(videos: Sequence[Path], args: argparse.Namespace) -> None:
    """Derain each video of a folder, with a network that is loaded once. Raises CSDError at the end if some fail."""
    from csd_plugin.data.video import written_as
    from csd_plugin.data.video.unfinished import worth_resuming

    where = "IN is a folder of videos"
    refuse_idle(args, add_arguments, ["size", "fps", "start", "end", "compare", "resume"], where)
    targets = {video: args.output / written_as(video.name) for video in videos}
    _check_folder(args, targets)
    model = chosen(args.model, args.fast, args.source)
    load = functools.cache(partial(_load, args, model))
    if args.overwrite or not all(target.exists() for target in targets.values()):
        load(args.precision)  # what is wrong with the network is no fault of a video
    failed = []
    for number, (video, target) in enumerate(targets.items(), 1):
        head = f"{video.name} ({number} of {len(videos)})"
        if target.exists() and not args.overwrite:
            print(f"{head}: {target} is there already", flush=True)
            continue
        print(head, flush=True)
        try:
            stopped = not args.overwrite and worth_resuming(target) is not None
            of_this = {"source": video, "output": target, "resume": stopped}
            _derain(argparse.Namespace(**{**vars(args), **of_this}), model, load)
        except (CSDError, OSError, RuntimeError) as error:
            if not users_line(error):
                raise
            failed.append(video.name)
            print(f"{head}: {users_line(error)}", file=sys.stderr, flush=True)
    if failed:
        raise CSDError(
            f"{len(failed)} of {counted(len(videos), 'video')} failed, as said above: {', '.join(failed)}; the same "
            f"command tries them again"
        )


def _check_folder(args: argparse.Namespace, targets: Mapping[Path, Path]) -> None:
    """Raise CSDError unless each video of the folder can get a file of its own in OUT."""
    from csd_plugin.data.video import names_a_file
    from csd_plugin.data.video.interface import PIPE

    if args.output == PIPE or names_a_file(args.output) or args.output.is_file():
        raise CSDError(f"{args.output}: {args.source} is a folder of {len(targets)} videos; give a folder as OUT, too")
    if args.output.resolve() == args.source.resolve():
        raise CSDError(f"{args.output} is IN itself; give another folder as OUT")
    first: dict[Path, Path] = {}
    for video, target in targets.items():
        if (other := first.setdefault(target, video)) != video:
            raise CSDError(f"{other} and {video} would both become {target}; rename one of them")


def _derain(args: argparse.Namespace, model: Path, load: Callable[[str], Derainer]) -> None:
    """Derain one clip.

    Args:
        load: gives the model for a value of --precision; called once input and output are known to be usable.
    """
    from csd_plugin.data.images import eight_bits
    from csd_plugin.data.video.interface import PIPE
    from csd_plugin.data.video.pipes import is_single_pass
    from csd_plugin.data.video.unfinished import is_finished
    from csd_plugin.inference.files import Derained, check_ends, derain_file, has_deep_frames, panels_in_frame
    from csd_plugin.metrics.scores import Scores

    _refuse_idle(args)
    flags = {name: getattr(args, name) for name in ("start", "end", "fps", "size", "resume", "overwrite")}
    check_ends(args.source, args.output, truth=args.compare, **flags)
    say = partial(print, file=sys.stderr if args.output == PIPE else sys.stdout, flush=True)
    if args.resume and not is_single_pass(args.source) and is_finished(args.output):  # no network is needed to say so
        say(*_summary(Derained(0, []), args, Scores()), sep="\n")
        return
    derainer = load("fp32" if args.precision == "auto" and has_deep_frames(args.source) else args.precision)
    scores = Scores()
    num_panel = panels_in_frame(args.side_by_side, args.compare)

    def begin(reader: FrameReader, kept: int) -> None:
        say(expectation(model, derainer, reader, kept))
        if args.output == PIPE:
            say(f"{raw_format(reader, num_panel)} on standard output")

    def score(name: str, rainy: np.ndarray, clean: np.ndarray, truth: np.ndarray | None) -> None:
        if truth is not None:
            scores.add("rainy", name, eight_bits(rainy), eight_bits(truth))
            scores.add("derained", name, eight_bits(clean), eight_bits(truth))

    done = derain_file(
        args.source,
        args.output,
        derainer,
        **flags,
        quick={"auto": None, "quick": True, "small": False}[args.encoding],
        side_by_side=args.side_by_side,
        truth=args.compare,
        keep_going=args.keep_going,
        begin=begin,
        observe=score,
    )
    for line in _summary(done, args, scores):
        say(line)
    if args.resume and args.compare:
        say(f"scored: the frames written now{_how_to_score_all(args)}")


def _refuse_idle(args: argparse.Namespace) -> None:
    """Raise CSDError for flags that have no effect on this kind of input or output."""
    from csd_plugin.data.video.camera import is_camera
    from csd_plugin.data.video.interface import VIDEO_SUFFIXES

    if (args.source.is_file() or is_camera(args.source)) and not args.compare:
        refuse_idle(args, add_arguments, ["fps"], "IN has a frame rate of its own")
    if args.source.is_dir():
        refuse_idle(args, add_arguments, ["keep_going"], "IN is a folder, and only frames of a video can be left out")
    if args.output.suffix.lower() not in VIDEO_SUFFIXES:
        refuse_idle(args, add_arguments, ["encoding"], "OUT is not a video")


def _summary(done: Derained, args: argparse.Namespace, scores: Scores) -> Iterator[str]:
    """The lines to print at the end; `scores` is empty without a truth or without frames."""
    nothing_left = ": all are there already" if args.resume and not done.num_frames and not done.kept else ""
    kept = f", after {done.kept:,} of the run before" if done.kept else ""
    yield f"{counted(done.num_frames, 'frame')} written to {args.output}{kept}{nothing_left}"
    if done.delay:
        yield lateness(done.delay, done.dropped)
    if done.cuts:
        yield f"{counted(len(done.cuts), 'scene cut')}, before frames {', '.join(map(str, done.cuts))}"
    if scores.clips:
        yield comparison(scores)


def _how_to_score_all(args: argparse.Namespace) -> str:
    """The command that scores the frames of all runs; empty if `csd score`, which takes whole clips, cannot."""
    from csd_plugin.data.video import names_a_file

    whole_clip = args.start == 0 and args.end is None
    if args.side_by_side or not (whole_clip and args.compare.is_dir()) or names_a_file(args.output):
        return ""
    return f"; csd score {args.output} --truth {args.compare} scores all of them"


def position(text: str) -> int | Fraction:
    """'120' is a frame number; '4.8s', '1:05' and '1:02:03.5' are times in seconds."""
    if re.fullmatch(r"\d+", text):
        return int(text)
    clock = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)s?", text)
    if clock is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a position in a clip: give a frame such as 120, or a time such as 4.8s or 1:05"
        )
    hours, minutes, seconds = (Fraction(part or 0) for part in clock.groups())
    return 3600 * hours + 60 * minutes + seconds


def expectation(model: Path, derainer: Derainer, reader: FrameReader, kept: int = 0) -> str:
    """One line: the network, the expected time (from a trial), the precision, and the delay of a camera's frames.

    Args:
        kept: frames of an earlier run that are not cleaned again.
    """
    shipped = shipped_as(model)
    name = f"{shipped.name} ({shipped.parameters:,} parameters)" if shipped else str(model)
    camera = adapted(model, derainer)
    name += f", adapted to {camera}" if camera else ""
    seconds = derainer.seconds_a_frame(*reader.size)
    in_all = seconds * max((reader.num_read or 0) - kept, 0)
    whole = "" if reader.num_read is None else f", {duration(in_all)} in all"
    whole += f", after {kept:,} frames of the run before" if kept else ""
    if shipped and shipped.name == DEFAULT and in_all > _LONG:
        whole += " (--fast takes a fraction of that)"
    how, why = derainer.precision
    precision = f"in {how} ({why})" if why else f"in {how}"
    waits = ""
    if reader.live:
        # Several frames are cleaned at once, and each waits for the later frames that its window needs.
        late = seconds * derainer.at_once + derainer.num_future / float(reader.fps)
        waits = f"; each frame will be about {1000 * late:.0f} ms late"
        waits += f", as it waits for {counted(derainer.num_future, 'later frame')}" if derainer.num_future else ""
        waits += too_slow(seconds, float(reader.fps))
    return f"{name}: about {seconds:.2g} s per frame{whole}; {precision}{waits}"


def raw_format(reader: FrameReader, num_panel: int) -> str:
    """What a player has to be told of frames without a header.

    Args:
        num_panel: pictures side by side in a frame.
    """
    width, height = reader.size
    return f"raw rgb24 frames of {width * num_panel}x{height}, {float(reader.fps):.5g} per second,"


def too_slow(seconds: float, rate: float) -> str:
    """The end of that line if a camera's frames arrive faster than they can be cleaned; else empty.

    Args:
        seconds: per frame.
        rate: of the camera, in frames per second.
    """
    if seconds * rate <= 1:
        return ""
    return (
        f"; the camera gives {rate:.3g} frames per second, so about {1 - 1 / (seconds * rate):.0%} of them will be "
        f"dropped: csd models shows faster networks"
    )


def adapted(model: Path, derainer: Derainer) -> str:
    """The clips that a network was adapted to, as its file says; empty for other networks."""
    from csd_plugin.archs.provenance import adapted_to, facts_in
    from csd_plugin.inference.backends import GRAPH_SUFFIXES

    exported = model.suffix.lower() in GRAPH_SUFFIXES
    return derainer.backend.facts.adapted if exported else adapted_to(facts_in(model))


def lateness(delay: Sequence[float], dropped: int) -> str:
    """One line: by how much a camera's frames were late, and how many were dropped."""
    import numpy as np

    median, most = (1000 * float(np.percentile(delay, part)) for part in (50, 99))
    left_out = f"; {dropped} of {len(delay) + dropped} frames dropped, as they arrived faster than they were cleaned"
    return f"delay per frame: {median:.0f} ms (median), {most:.0f} ms (99 %){left_out if dropped else ', none dropped'}"


def comparison(scores: Scores) -> str:
    """Two lines: the quality of the rainy and of the derained frames in every protocol."""
    return "\n".join(
        f"{name:<9}"
        + "".join(
            f"  {protocol} {quality.psnr:.2f} dB / {quality.ssim:.4f}" for protocol, quality in clip.average().items()
        )
        for name, clip in scores.clips.items()
    )

"""Derain videos of every container, codec, rate, depth and sound that ffmpeg makes here, and compare in with out.

    python tools/video_matrix.py                       # all cells, as a table
    python tools/video_matrix.py --only webm --out matrix.md
    python tools/video_matrix.py --count 8 --seed 1    # some of them, drawn at random

Each cell is a video of 96x64 pixels and one second. It goes through `csd derain` with a network that returns its
input, and ffprobe and ffmpeg read both files: the number of frames, their times within a tick, colours within 1 level
of a lossless codec, and of another within 2 in most frames and 3 in all, sound packet by packet, and what the file says
of its pictures must be the same. What is not must be named in exactly one line of what the command said. The exit
status is 1 where a cell fails, 2 where there is no ffmpeg.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import logging
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

SIZE = (96, 64)
RATE = 25
PICTURE = (
    "nullsrc=s={width}x{height}:r={rate}:d={seconds},format=gbrp,"
    "geq=r='40+4*N+60*X/W':g='200-100*Y/H':b='90+2*N+40*X*Y/W/H',setsar=1"
)
_PALETTE = "split[a][b];[a]palettegen[p];[b][p]paletteuse=dither=none"
UNEVEN = "select='lt(n,8)+gt(n,14)*not(mod(n,3))'"


@dataclass(frozen=True)
class Cell:
    """A video, and what is made of it.

    video: ffmpeg's options that encode the picture.
    filters: what becomes of the picture before it is encoded.
    inputs, extras: more of ffmpeg's inputs, and options for them.
    lossless: whether the codec is.
    said: patterns of lines that are to be said, whatever the comparison finds.
    """

    source: str
    target: str
    codec: str
    video: tuple[str, ...]
    depth: int = 8
    variable: bool = False
    sound: str = ""
    filters: tuple[str, ...] = ()
    lossless: bool = False
    title: str = ""
    inputs: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    said: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        rate = "variable" if self.variable else "constant"
        words = [self.source, self.codec, f"{self.depth} bit", rate, self.sound or "silent"]
        return " ".join([*words, *([self.title] if self.title else []), "to", self.target])


# Codec, ffmpeg's options for 8 and for 10 bits, whether it is lossless.
_X264 = ("-c:v", "libx264", "-crf", "10")
_X265 = ("-c:v", "libx265", "-crf", "10", "-x265-params", "log-level=error")
_VP9 = ("-c:v", "libvpx-vp9", "-crf", "15", "-b:v", "0", "-cpu-used", "8")
_Q2 = ("-q:v", "2")
_ENCODERS: dict[str, tuple[tuple[str, ...] | None, tuple[str, ...] | None, bool]] = {
    "h264": ((*_X264, "-pix_fmt", "yuv420p"), (*_X264, "-pix_fmt", "yuv420p10le"), False),
    "hevc": ((*_X265, "-pix_fmt", "yuv420p"), (*_X265, "-pix_fmt", "yuv420p10le"), False),
    "vp8": (("-c:v", "libvpx", "-b:v", "2M", "-pix_fmt", "yuv420p"), None, False),
    "vp9": ((*_VP9, "-pix_fmt", "yuv420p"), (*_VP9, "-pix_fmt", "yuv420p10le"), False),
    "av1": (
        ("-c:v", "libaom-av1", "-cpu-used", "8", "-crf", "15", "-pix_fmt", "yuv420p"),
        ("-c:v", "libaom-av1", "-cpu-used", "8", "-crf", "15", "-pix_fmt", "yuv420p10le"),
        False,
    ),
    "mpeg4": (("-c:v", "mpeg4", *_Q2, "-pix_fmt", "yuv420p"), None, False),
    "mpeg2video": (("-c:v", "mpeg2video", *_Q2, "-pix_fmt", "yuv420p"), None, False),
    "mjpeg": (("-c:v", "mjpeg", *_Q2, "-pix_fmt", "yuvj422p"), None, False),
    "theora": (("-c:v", "libtheora", "-q:v", "9", "-pix_fmt", "yuv420p"), None, False),
    "wmv2": (("-c:v", "wmv2", *_Q2, "-pix_fmt", "yuv420p"), None, False),
    "flv1": (("-c:v", "flv", *_Q2, "-pix_fmt", "yuv420p"), None, False),
    "prores": (None, ("-c:v", "prores_ks", "-pix_fmt", "yuv422p10le"), False),
    "ffv1": (
        ("-c:v", "ffv1", "-pix_fmt", "yuv444p"),
        ("-c:v", "ffv1", "-level", "3", "-pix_fmt", "yuv420p10le"),
        True,
    ),
    "huffyuv": (("-c:v", "huffyuv", "-pix_fmt", "yuv422p"), None, True),
    "utvideo": (("-c:v", "utvideo", "-pix_fmt", "gbrp"), None, True),
    "rawvideo": (("-c:v", "rawvideo", "-pix_fmt", "yuv420p"), None, True),
    "v210": (None, ("-c:v", "v210", "-pix_fmt", "yuv422p10le"), True),
    "png": (("-c:v", "png", "-pix_fmt", "rgb24"), None, True),
    "gif": (("-c:v", "gif"), None, False),
}

# Container that is read, the one that is written, codecs, sound.
_CONTAINERS = (
    ("mp4", "mp4", ("h264", "hevc", "vp9", "av1", "mpeg4", "mpeg2video", "mjpeg"), "aac"),
    ("mov", "mov", ("h264", "hevc", "prores", "mjpeg", "png", "mpeg4", "v210"), "pcm_s16le"),
    ("mkv", "mkv", ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mjpeg"), "libvorbis"),
    ("mkv", "mkv", ("ffv1", "huffyuv", "rawvideo", "prores", "theora", "utvideo"), "flac"),
    ("webm", "webm", ("vp8", "vp9", "av1"), "libopus"),
    ("avi", "avi", ("mpeg4", "mjpeg", "huffyuv", "ffv1", "rawvideo", "h264"), "libmp3lame"),
    ("ts", "mp4", ("h264", "hevc", "mpeg2video"), "aac"),
    ("flv", "mp4", ("flv1", "h264"), "aac"),
    ("asf", "mkv", ("wmv2",), "wmav2"),
    ("gif", "mp4", ("gif",), ""),
    ("mp4", "webm", ("h264", "hevc"), ""),
    ("mp4", "avi", ("h264", "mpeg4"), "libmp3lame"),
    ("mp4", "mkv", ("hevc", "mpeg4"), "aac"),
    ("mkv", "mp4", ("ffv1", "h264", "vp8", "rawvideo", "theora"), "ac3"),
    ("webm", "mp4", ("vp9", "vp8"), "libopus"),
    ("avi", "mp4", ("huffyuv", "mjpeg"), "libmp3lame"),
)

_HDR = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50):max-cll=1000,400"
_PQ = ("-color_primaries", "bt2020", "-color_trc", "smpte2084", "-colorspace", "bt2020nc", "-color_range", "tv")
_BT709 = ("-color_primaries", "bt709", "-color_trc", "bt709", "-colorspace", "bt709")
_FULL_709 = "scale=out_color_matrix=bt709:out_range=full"
_PQ_PICTURE = ("scale=out_color_matrix=bt2020",)
_MARKED = ("scale=out_color_matrix=bt709",)


def _odd(source: str, target: str, codec: str, title: str, *video: str, **how: Any) -> Cell:
    return Cell(source, target, codec, video, title=title, **how)


_HEVC10 = ("-c:v", "libx265", "-crf", "10", "-pix_fmt", "yuv420p10le")
_HDR10 = (*_HEVC10, "-x265-params", f"log-level=error:hdr10=1:repeat-headers=1:{_HDR}", *_PQ)
_FULL = (*_X264, "-pix_fmt", "yuv420p", "-color_range", "pc", *_BT709)
_ODD = (
    _odd("mkv", "mkv", "h264", "RGB", "-c:v", "libx264rgb", "-qp", "0", "-pix_fmt", "bgr0", lossless=True),
    _odd("mkv", "mp4", "h264", "RGB", "-c:v", "libx264rgb", "-qp", "0", "-pix_fmt", "bgr0", lossless=True),
    _odd("mkv", "webm", "h264", "RGB", "-c:v", "libx264rgb", "-qp", "0", "-pix_fmt", "bgr0"),
    _odd("avi", "avi", "rawvideo", "RGB", "-c:v", "rawvideo", "-pix_fmt", "bgr24", lossless=True),
    _odd("avi", "mp4", "rawvideo", "RGB", "-c:v", "rawvideo", "-pix_fmt", "bgr24"),
    _odd("mov", "mov", "png", "16 bit", "-c:v", "png", "-pix_fmt", "rgb48be", depth=16, lossless=True),
    _odd("mov", "mp4", "png", "16 bit", "-c:v", "png", "-pix_fmt", "rgb48be", depth=16),
    _odd("mov", "mov", "qtrle", "RGB", "-c:v", "qtrle", "-pix_fmt", "rgb24", lossless=True),
    _odd("mkv", "mp4", "ffv1", "grey, 16 bit, full range", "-c:v", "ffv1", "-level", "3", "-pix_fmt", "gray16le",
         "-color_range", "pc", depth=16),
    _odd("mkv", "mkv", "ffv1", "grey", "-c:v", "ffv1", "-pix_fmt", "gray", lossless=True),
    _odd("mp4", "mp4", "h264", "grey", *_X264, "-pix_fmt", "gray"),
    _odd("mp4", "mp4", "h264", "full range", *_FULL, filters=(_FULL_709,)),
    _odd("mp4", "avi", "h264", "full range", *_FULL, filters=(_FULL_709,)),
    _odd("mkv", "mkv", "ffv1", "full range", "-c:v", "ffv1", "-pix_fmt", "yuv444p", "-color_range", "pc", *_BT709,
         filters=(_FULL_709,), lossless=True),
    _odd("mp4", "webm", "h264", "full range", *_FULL, filters=(_FULL_709,)),
    _odd("mp4", "mp4", "h264", "BT.709", *_X264, "-pix_fmt", "yuv420p", *_BT709, filters=_MARKED),
    _odd("mp4", "avi", "mpeg4", "BT.709", "-c:v", "mpeg4", *_Q2, "-pix_fmt", "yuv420p", *_BT709, filters=_MARKED),
    _odd("mp4", "webm", "h264", "BT.709", *_X264, "-pix_fmt", "yuv420p", *_BT709, filters=_MARKED),
    _odd("mp4", "mp4", "hevc", "HDR10", *_HDR10, depth=10, filters=_PQ_PICTURE),
    _odd("mp4", "mkv", "hevc", "HDR10", *_HDR10, depth=10, filters=_PQ_PICTURE),
    _odd("mp4", "webm", "hevc", "HDR10", *_HDR10, depth=10, filters=_PQ_PICTURE),
    _odd("mp4", "avi", "hevc", "HDR10", *_HDR10, depth=10, filters=_PQ_PICTURE),
    _odd("mkv", "mkv", "ffv1", "4:4:4, 12 bit", "-c:v", "ffv1", "-level", "3", "-pix_fmt", "yuv444p12le", depth=12,
         lossless=True),
    _odd("mkv", "mp4", "ffv1", "4:2:2, 12 bit", "-c:v", "ffv1", "-level", "3", "-pix_fmt", "yuv422p12le", depth=12),
    _odd("mov", "mov", "prores", "4444 with alpha", "-c:v", "prores_ks", "-pix_fmt", "yuva444p10le", depth=10,
         filters=("format=yuva444p10le,colorchannelmixer=aa=0.5",), said=("transparency",)),
    _odd("avi", "avi", "dvvideo", "4:1:1", "-c:v", "dvvideo", "-pix_fmt", "yuv411p",
         filters=("scale=720:480,fps=30000/1001,setsar=8/9",)),
    _odd("mp4", "mp4", "h264", "anamorphic", *_X264, "-pix_fmt", "yuv420p", filters=("setsar=64/45",)),
    _odd("mkv", "mkv", "h264", "anamorphic", *_X264, "-pix_fmt", "yuv420p", filters=("setsar=64/45",)),
    _odd("avi", "mp4", "mpeg4", "anamorphic", "-c:v", "mpeg4", *_Q2, filters=("setsar=4/3",)),
    _odd("mkv", "avi", "h264", "anamorphic", *_X264, "-pix_fmt", "yuv420p", filters=("setsar=4/3",)),
    _odd("mkv", "webm", "h264", "anamorphic", *_X264, "-pix_fmt", "yuv420p", filters=("setsar=4/3",)),
    _odd("mkv", "mkv", "mpeg2video", "interlaced", "-c:v", "mpeg2video", *_Q2, "-pix_fmt", "yuv420p", "-flags",
         "+ildct+ilme", "-top", "1", filters=("setfield=tff",), said=("is interlaced, top field first",)),
    _odd("mp4", "mp4", "h264", "interlaced", *_X264, "-pix_fmt", "yuv420p", "-flags", "+ildct+ilme", "-x264opts",
         "bff=1", filters=("setfield=bff",), said=("is interlaced, bottom field first",)),
    _odd("mp4", "mp4", "h264", "odd size, 4:4:4", *_X264, "-pix_fmt", "yuv444p", filters=("crop=95:63",)),
    _odd("webm", "webm", "vp9", "odd size", *_VP9, "-pix_fmt", "yuv420p", filters=("crop=95:63",)),
    _odd("mkv", "mp4", "ffv1", "odd size", "-c:v", "ffv1", "-pix_fmt", "yuv420p", filters=("crop=95:63",)),
    _odd("y4m", "mkv", "rawvideo", "4:2:0", "-pix_fmt", "yuv420p", lossless=True),
    _odd("nut", "avi", "rawvideo", "4:2:2", "-c:v", "rawvideo", "-pix_fmt", "yuv422p", lossless=True),
    _odd("nut", "mov", "rawvideo", "4:2:0", "-c:v", "rawvideo", "-pix_fmt", "yuv420p"),
    _odd("mov", "mp4", "h264", "late sound", *_X264, "-pix_fmt", "yuv420p", sound="aac", extras=("-itsoffset", "0.3")),
)  # fmt: skip


def cells() -> list[Cell]:
    """All of them."""
    made = []
    for source, target, codecs, sound in _CONTAINERS:
        for codec in codecs:
            shallow, deep, lossless = _ENCODERS[codec]
            for depth, video in ((8, shallow), (10, deep)):
                for variable in (False, True) if video else ():
                    for track in dict.fromkeys(("", sound)):
                        if variable and (source, codec) == ("avi", "h264"):
                            continue  # ffmpeg's own times of it are not those of the picture
                        kept = lossless and source == target
                        how = {"filters": (_PALETTE,)} if codec == "gif" else {}
                        cell = Cell(source, target, codec, video or (), depth, variable, track, lossless=kept, **how)
                        made.append(cell)
    return [*made, *_ODD]


# --- making and reading -------------------------------------------------------------------------------------------


class NotMade(Exception):
    """This ffmpeg cannot make a cell's video."""


def make(cell: Cell, path: Path) -> None:
    """The cell's video. Raises NotMade."""
    picture = PICTURE.format(width=SIZE[0], height=SIZE[1], rate=RATE, seconds=1)
    command = ["-f", "lavfi", "-i", picture]
    if cell.sound:
        command += [*cell.extras, "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000:duration=1.4"]
    filters = ",".join([*([UNEVEN] if cell.variable else []), *cell.filters])
    command += ["-map", "0:v", *(["-vf", filters] if filters else []), "-fps_mode", "vfr" if cell.variable else "cfr"]
    command += list(cell.video)
    if cell.sound:
        command += ["-map", "1:a", "-ac", "2", "-c:a", cell.sound, "-metadata:s:a:0", "language=deu"]
    command += ["-metadata", "title=Rain", str(path)]
    done = subprocess.run(["ffmpeg", "-v", "error", "-y", *command], capture_output=True, text=True)
    if done.returncode:
        raise NotMade((done.stderr.strip().splitlines() or ["no reason given"])[-1])


@dataclass
class Facts:
    """What ffprobe and ffmpeg see in a file."""

    frames: list[Fraction]
    tick: Fraction
    pixels: np.ndarray
    about: dict[str, str]
    sound: list[list[str]]
    sound_begins: Fraction | None


_ABOUT = ("codec_name", "pix_fmt", "color_range", "color_space", "color_primaries", "color_transfer", "field_order")


def probe(path: Path) -> Facts:
    """Read a file with ffprobe and ffmpeg."""
    told = json.loads(_run("ffprobe", "-v", "error", "-show_streams", "-show_format", "-of", "json", path))
    picture = next(stream for stream in told["streams"] if stream["codec_type"] == "video")
    entries = "frame=pts_time,best_effort_timestamp_time,sample_aspect_ratio,interlaced_frame,side_data_list"
    shown = json.loads(
        _run("ffprobe", "-v", "error", "-select_streams", "V:0", "-show_entries", entries, "-of", "json", path)
    )["frames"]
    times: list[Fraction] = []
    for one in shown:  # AVI may have none: one frame follows the other
        told_time = one.get("pts_time") or one.get("best_effort_timestamp_time")
        follows = times[-1] + 1 / Fraction(picture["r_frame_rate"]) if times else Fraction(0)
        times.append(Fraction(told_time) if told_time else follows)
    about = {key: picture.get(key, "unknown") for key in _ABOUT}
    about["depth"] = str(_depth(picture["pix_fmt"]))
    about["aspect"] = picture.get("sample_aspect_ratio", "1:1").replace("N/A", "1:1").replace("0:1", "1:1")
    about["size"] = f"{picture['width']}x{picture['height']}"
    light = [one for one in shown[0].get("side_data_list", []) if "light" in str(one) or "astering" in str(one)]
    about["light"] = json.dumps(sorted(light, key=str))
    about["title"] = {k.lower(): v for k, v in told["format"].get("tags", {}).items()}.get("title", "")
    sound = [_sound(path, index) for index in range(sum(one["codec_type"] == "audio" for one in told["streams"]))]
    heard = [one for one in told["streams"] if one["codec_type"] == "audio"]
    about["language"] = str([one.get("tags", {}).get("language", "und") for one in heard])
    begins = [Fraction(one["start_time"]) for one in heard] if "pts_time" in shown[0] else []
    tick = Fraction(picture["time_base"])
    return Facts(times, tick, _pixels(path, about["size"]), about, sound, begins[0] - times[0] if begins else None)


def _pixels(path: Path, size: str) -> np.ndarray:
    """(T, H, W, 3), in levels of 8 bits."""
    flags = "bicubic+accurate_rnd+full_chroma_int"
    command = ["ffmpeg", "-v", "error", "-i", path, "-map", "0:V:0", "-fps_mode", "passthrough", "-sws_flags", flags]
    data = _run(*command, "-vf", f"scale=flags={flags}", "-pix_fmt", "rgb48le", "-f", "rawvideo", "-")
    width, height = map(int, size.split("x"))
    return np.frombuffer(data, "<u2").reshape(-1, height, width, 3).astype(np.float32) / 257


def _sound(path: Path, index: int) -> list[str]:
    """Hashes of a track's packets, without the headers that broadcasts put before AAC."""
    entries = ("-show_entries", "packet=data_hash", "-show_data_hash", "md5", "-of", "csv=p=0")
    if path.suffix == ".ts":
        data = _run("ffmpeg", "-v", "error", "-i", path, "-map", f"0:a:{index}", "-c", "copy", "-f", "adts", "-")
        return [hashlib.md5(packet).hexdigest() for packet in _adts(data)]
    text = _run("ffprobe", "-v", "error", "-select_streams", f"a:{index}", *entries, path).decode()
    return [line.strip(" ,").removeprefix("MD5:") for line in text.splitlines() if line.strip(" ,")]


def _adts(data: bytes) -> Iterator[bytes]:
    """Packets of AAC without their headers of seven bytes."""
    while data:
        length = (data[3] & 3) << 11 | data[4] << 3 | data[5] >> 5
        yield data[7:length]
        data = data[length:]


def _depth(pix_fmt: str) -> int:
    import av

    return max(part.bits for part in av.VideoFormat(pix_fmt).components)


def _run(*command: object) -> bytes:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True).stdout


# --- judging ------------------------------------------------------------------------------------------------------

# What may differ, and the words of the line that says so.
SAID = {
    "times": ("constant rate",),
    "frames": ("constant rate",),
    "codec_name": ("is used instead",),
    "depth": ("bits per channel",),
    "color_range": ("full range",),
    "color_space": ("mark of the colours",),
    "color_primaries": ("mark of the colours",),
    "color_transfer": ("mark of the colours",),
    "aspect": ("aspect",),
    "field_order": ("field order",),
    "light": ("HDR10",),
    "sound": ("left out, as",),
    "language": ("languages", "left out, as"),
    "title": ("tags",),
}
# One thing under two names, or nothing said where the usual is meant.
_SAME = {
    "color_range": {"unknown": "tv"},
    "color_space": {"unknown": "bt470bg", "smpte170m": "bt470bg"},
    "field_order": {"unknown": "progressive"},
    "codec_name": {"mpeg1video": "mpeg2video"},
}


@dataclass
class Verdict:
    """What came of a cell. faults: what is wrong; lost: what differs and is said."""

    faults: list[str]
    lost: list[str]
    lines: list[str]
    shown: dict[str, str]


def judge(cell: Cell, folder: Path, model: Path) -> Verdict:
    """Make a cell's video, derain it and compare. Raises NotMade."""
    source, target = folder / f"in.{cell.source}", folder / f"out.{cell.target}"
    make(cell, source)
    status, lines = derain(source, target, model)
    if status:
        return Verdict([f"exit status {status}"], [], lines, {})
    before, after = probe(source), probe(target)
    differing, shown = compare(cell, before, after)
    faults, lost = [], []
    for what in differing:
        saying = [line for line in lines if any(word in line for word in SAID.get(what, ()))]
        (lost if len(saying) == 1 else faults).append(what)
    faults += [f"not said: {words}" for words in cell.said if sum(words in line for line in lines) != 1]
    return Verdict(faults, lost, lines, shown)


def derain(source: Path, target: Path, model: Path) -> tuple[int, list[str]]:
    """(exit status, lines of warnings and errors) of `csd derain`."""
    from csd_plugin.cli import main as csd

    said, warnings = io.StringIO(), _Warnings()
    logger = logging.getLogger("csd_plugin")
    logger.addHandler(warnings)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            status = csd(["derain", str(source), str(target), "--model", str(model), "--device", "cpu"])
    finally:
        logger.removeHandler(warnings)
    return status, [*warnings.lines, *(line for line in said.getvalue().splitlines() if "error: " in line)]


class _Warnings(logging.Handler):
    """Keeps what users are warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def compare(cell: Cell, before: Facts, after: Facts) -> tuple[list[str], dict[str, str]]:
    """What differs, and numbers for the table."""
    differing = []
    kept = len(before.frames) == len(after.frames)
    shown = {"frames": f"{len(after.frames)}" if kept else f"{len(before.frames)} -> {len(after.frames)}"}
    if not kept:
        differing.append("frames")
        places = [_shown_at(after.frames, time - before.frames[0] + after.frames[0]) for time in before.frames]
        pixels = after.pixels[places]
    else:
        tick = max(before.tick, after.tick) if after.tick < Fraction(1, 100) else Fraction(1, 1000)
        late = max(
            abs((a - after.frames[0]) - (b - before.frames[0]))
            for a, b in zip(after.frames, before.frames, strict=True)
        )
        shown["times"] = f"{float(late) * 1000:.1f} ms"
        if late > tick + Fraction(1, 100_000):
            differing.append("times")
        pixels = after.pixels
    far = np.abs(pixels - before.pixels[: len(pixels)]).mean(axis=(1, 2))
    exact = cell.lossless and before.about["codec_name"] == after.about["codec_name"]
    shown["colours"] = f"{far.max():.2f}"
    frames = far.mean(axis=1)
    # SVT-AV1 of PyAV 19 spends less on single frames of this pattern; PSNR on real rain is that of PyAV 18
    if far.max() > 1 if exact else np.median(frames) > 2 or frames.max() > 3:
        differing.append("colours")
    if before.sound != after.sound:
        differing.append("sound")
    if before.sound_begins is not None and after.sound_begins is not None:
        shift = abs(before.sound_begins - after.sound_begins)
        shown["sound"] = f"{float(shift) * 1000:.1f} ms"
        if shift > Fraction(3, 100):
            differing.append("step of the sound")
    without_matrix = not before.about["pix_fmt"].startswith(("yuv", "nv", "p0"))
    for key, value in before.about.items():
        if key.startswith("color_") and without_matrix:
            continue  # pixels show it
        names = _SAME.get(key, {})
        other = after.about[key]
        better = (key == "depth" and int(other) > int(value)) or (key == "title" and not value) or key == "pix_fmt"
        if names.get(value, value) != names.get(other, other) and not better:
            differing.append(key)
            shown[key] = f"{value} -> {other}"
    return differing, shown


def _shown_at(begins: Sequence[Fraction], time: Fraction) -> int:
    """The number of the frame that is on the screen a little after a time."""
    return max(0, sum(begin <= time + Fraction(1, 50) for begin in begins) - 1)


# --- the table ----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only cells with this word in their name")
    parser.add_argument("--count", type=int, help="this many cells, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    args = parser.parse_args(argv)
    if shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None:
        print("video_matrix: error: ffmpeg and ffprobe make and read the videos; install them", file=sys.stderr)
        return 2
    wanted = [cell for cell in cells() if args.only in cell.name]
    if args.count is not None:
        wanted = random.Random(args.seed).sample(wanted, min(args.count, len(wanted)))
    rows, failed = [], 0
    with tempfile.TemporaryDirectory() as work:
        model = identity(Path(work) / "identity.pth")
        for cell in wanted:
            row, fine = _row(cell, Path(work), model)
            failed += not fine
            rows.append(row)
            print(" | ".join(row), flush=True)
    if args.out:
        head = ["video", "outcome", "frames", "times", "colours", "sound", "said"]
        table = [head, ["---"] * len(head), *rows]
        args.out.write_text("".join(f"| {' | '.join(row)} |\n" for row in table), encoding="utf-8")
    print(f"{len(wanted)} cells, {failed} failed")
    return 1 if failed else 0


def identity(path: Path) -> Path:
    """A checkpoint of a network that returns its input."""
    import torch

    from csd_plugin.archs.sldnet import SLDNet

    torch.save({"params": SLDNet(preset="student2", num_feat=3).state_dict()}, path)
    return path


def _row(cell: Cell, work: Path, model: Path) -> tuple[list[str], bool]:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        try:
            verdict = judge(cell, Path(folder), model)
        except NotMade as reason:
            return [cell.name, f"not made here: {reason}".replace("|", "/"), "", "", "", "", ""], True
        said = " / ".join(verdict.lines).replace(f"{folder}/", "").replace("|", "/")
    outcome = f"FAILED: {', '.join(verdict.faults)}" if verdict.faults else "same"
    if verdict.lost and not verdict.faults:
        outcome = f"said: {', '.join(verdict.lost)}"
    shown = verdict.shown
    rest = {key: value for key, value in shown.items() if key not in ("frames", "times", "colours", "sound")}
    numbers = [shown.get(key, "") for key in ("frames", "times", "colours", "sound")]
    return [cell.name, f"{outcome} {rest if rest else ''}".strip(), *numbers, said], not verdict.faults


if __name__ == "__main__":
    raise SystemExit(main())

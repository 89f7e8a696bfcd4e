"""Which encoder writes a video, and how it is set: found by trying, in memory, what comes back from a file.

What FFmpeg lists of an encoder or a container is not what they hold: a build of libvpx may lack its ten bits, and raw
4:2:2 in QuickTime comes back as other colours. So a setup counts only if a picture written with it comes back.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, cast

import av
import numpy as np
from av.codec import codecs_available
from av.codec.codec import Capabilities, PixFmtLoss, UnknownCodecError, find_best_pix_fmt_of_list

from csd_plugin.data.images import eight_bits
from csd_plugin.data.video.colours import (
    BT470BG,
    FULL,
    SMPTE170M,
    Colours,
    Light,
    depth_of,
    from_rgb,
    has_alpha,
    is_grey,
    is_rgb,
    to_rgb,
)
from csd_plugin.data.video.interface import Look
from csd_plugin.errors import CSDError

logger = logging.getLogger(__name__)

_OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {"crf": "16"},
    "libx264rgb": {"crf": "16"},
    "libx265": {"crf": "18", "x265-params": "log-level=error"},
    "libvpx": {"crf": "4", "deadline": "good", "cpu-used": "2"},
    "libvpx-vp9": {"crf": "20", "b": "0", "row-mt": "1", "deadline": "good", "cpu-used": "4"},
    "libsvtav1": {"crf": "22"},
    "ffv1": {},
    "prores": {},
}
"""Settings near the source's quality: deraining, not the codec, decides what a frame looks like."""
QUICK_OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "ultrafast", "crf": "16"},
    "libx265": {"preset": "ultrafast", "crf": "16"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "libsvtav1": {"preset": "12", "crf": "18"},
}
"""What is set otherwise than usual, by encoder. Pictures are as near to their source, in PSNR on real rain, in 0.1,
0.35, 0.15 and 0.55 of the usual time; files are 1.8, 1.15, 1.1 and 1.2 times as large."""

_OLD_ENCODERS_OPTIONS = {"qmin": "1", "qmax": "4"}
_LIMITED = ("libvpx",)
"""Encoders whose quality setting holds only below a bit rate."""
_BITS_PER_PIXEL = 1
"""Enough for any picture, where a bit rate must be given and the source's is not known."""
_STEPS = (Fraction(1, 50_000), Fraction(1, 10_000))
_LIGHT: dict[str, tuple[str, str, str, tuple[Fraction | None, Fraction | None]]] = {
    "libx264": ("x264-params", "mastering-display", "cll", _STEPS),
    "libx265": ("x265-params", "master-display", "max-cll", _STEPS),
    "libsvtav1": ("svtav1-params", "mastering-display", "content-light", (None, None)),
}
"""How encoders take HDR10: the option, its names of display and light level, units of chromaticity and luminance."""
_FIELDS = {2: "tff=1", 4: "tff=1", 3: "bff=1", 5: "bff=1"}
_DEEP_CODECS = ("h264", "av1")
"""Codecs that hold more than 8 bits, for containers whose usual one does not."""
_NOT_EVERYWHERE = Capabilities.hardware | Capabilities.hybrid | Capabilities.experimental
_USUAL_RATE = Fraction(25)
"""A rate that encoders take which know some rates only; times are the container's matter."""
_FARTHEST = 12.0
"""Mean difference, in levels, of a trial's picture from itself; a picture taken for another format is far beyond."""


@dataclass(frozen=True)
class Setup:
    """An encoder, set for one size of picture."""

    encoder: av.Codec
    pix_fmt: str
    options: dict[str, str]
    bit_rate: int
    rate: Fraction
    size: tuple[int, int]
    look: Look
    reorder: bool

    @property
    def colours(self) -> Colours:
        return self.look.colours

    def add_to(self, container: av.container.OutputContainer, mean_rate: Fraction) -> av.VideoStream:
        """A stream, its encoder open: one tick of its time is a frame.

        Raises ValueError or av.FFmpegError where the encoder, or the container, does not take this.
        """
        stream = cast("av.VideoStream", container.add_stream(self.encoder.name, rate=mean_rate))
        context = stream.codec_context
        context.width, context.height = self.size
        context.pix_fmt = self.pix_fmt
        context.framerate, context.time_base = self.rate, 1 / self.rate
        context.options = dict(self.options)
        if self.bit_rate:
            context.bit_rate = self.bit_rate
        if not self.reorder:
            context.max_b_frames = 0
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = self.colours
        if self.look.pixel_aspect:
            context.sample_aspect_ratio = self.look.pixel_aspect
        if self.look.field_order > 1:
            context.field_order = self.look.field_order
        with _manners_kept():
            context.open()
        return stream


@contextlib.contextmanager
def _manners_kept() -> Iterator[None]:
    """What libsvtav1 changes for the whole process as it opens stays as it is.

    Where it may, as root, it puts its threads and the one that calls it into real-time scheduling, which processes
    started later inherit: they would take the machine from everybody else. It also writes its settings to standard
    error, unless the environment says otherwise.
    """
    quiet = "SVT_LOG" not in os.environ
    if quiet:
        os.environ["SVT_LOG"] = "1"
    scheduling = (os.sched_getscheduler(0), os.sched_getparam(0)) if hasattr(os, "sched_setscheduler") else None
    before = _threads()
    try:
        yield
    finally:
        if quiet:
            os.environ.pop("SVT_LOG", None)
        if scheduling:
            for thread in (0, *(_threads() - before)):
                with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                    if os.sched_getscheduler(thread) != scheduling[0]:
                        os.sched_setscheduler(thread, *scheduling)


def _threads() -> set[int]:
    """This process's threads by Linux's numbers; none where they cannot be listed."""
    try:
        return {int(name) for name in os.listdir("/proc/self/task")}  # noqa: PTH208 - no paths are wanted
    except OSError:
        return set()


def choose(
    path: Path,
    form: str,
    look: Look,
    size: tuple[int, int],
    rate: Fraction,
    *,
    reorder: bool,
    quick: bool = False,
) -> Setup:
    """The setup that keeps most of what the pictures are, of those that work here. Losses are one line each.

    Args:
        path: the output, for messages.
        form: FFmpeg's name of the container.
        size: (width, height) of the frames.
        reorder: whether the container can hold frames in another order than they are shown.
        quick: see `QUICK_OPTIONS`.

    Raises:
        CSDError: nothing works.
    """
    depth = depth_of(look.pix_fmt)
    best: Setup | None = None
    for codec in _codecs(form, look.codec, depth):
        ways = _setups(form, codec, look, size, rate, reorder, quick)
        setup = next((held for one in ways if (held := _held(form, one))), None)
        if setup and (best is None or depth_of(setup.pix_fmt) > depth_of(best.pix_fmt)):
            best = setup
        if best and depth_of(best.pix_fmt) >= depth:
            break
    if best is None:
        width, height = size
        raise CSDError(
            f"{path}: no encoder of this PyAV writes {width}x{height} into {form}; try another kind of file, or "
            f"install PyAV's own wheel: pip install av"
        )
    _say_what_changes(path, form, look, best)
    return best


def _say_what_changes(path: Path, form: str, look: Look, setup: Setup) -> None:
    written = setup.encoder.canonical_name
    if look.codec and look.codec != written:
        logger.warning("%s: %s cannot be written into %s here, %s is taken", path, look.codec, form, written)
    before, after = max(look.depth, depth_of(look.pix_fmt)), depth_of(setup.pix_fmt)
    if after < before:
        logger.warning("%s: %s holds %d bits per channel here, the input has %d", path, written, after, before)
    lost = []
    wanted, held = look.colours.for_format(setup.pix_fmt), setup.colours
    if wanted.full and not held.full:
        lost.append("the mark of full range" if is_grey(setup.pix_fmt) else "full range (it is limited now)")
    marks = zip(("matrix", "primaries", "transfer"), _marks(wanted), _marks(held), strict=True)
    if unmarked := [name for name, mine, theirs in marks if look.codec and mine not in (2, theirs)]:
        lost.append(f"the mark of the colours' {' and '.join(unmarked)} (unmarked are BT.601)")
    if look.pixel_aspect not in (None, 1) and setup.look.pixel_aspect != look.pixel_aspect:
        lost.append(f"the pixels' aspect {look.pixel_aspect}")
    if look.field_order > 1 and look.field_order != setup.look.field_order:
        lost.append("the order of fields (frames are marked as whole pictures)")
    if not look.light.is_like(setup.look.light):
        lost.append("HDR10 data (display, light level)")
    if lost:
        logger.warning("%s: %s in %s does not hold %s", path, written, form, ", ".join(lost))


def _marks(colours: Colours) -> tuple[int, int, int]:
    """Matrix, primaries and transfer, one number for both of BT.601's matrices."""
    matrix = SMPTE170M if colours.matrix == BT470BG else colours.matrix
    return matrix, colours.primaries, colours.transfer


def _codecs(form: str, source: str | None, depth: int) -> list[str]:
    """Codecs to try for a container, the first that works and loses no depth is taken."""
    with av.open(io.BytesIO(), "w", format=form) as container:
        holds, usual = container.supported_codecs, container.default_video_codec
    wanted = [source, usual, *(_DEEP_CODECS if depth > 8 else ())]
    return [name for name in dict.fromkeys(wanted) if name and any(one.name in holds for one in _encoders(name))]


@functools.cache
def _encoders(codec: str) -> tuple[av.Codec, ...]:
    """FFmpeg's encoders for a codec, its own choice first, without those of graphics cards; none for some codecs."""
    found: dict[str, av.Codec] = {}
    for name in (codec, *sorted(codecs_available)):
        try:
            encoder = av.Codec(name, "w")
        except UnknownCodecError:
            continue
        if encoder.canonical_name == codec and not encoder.capabilities & _NOT_EVERYWHERE:
            found.setdefault(encoder.name, encoder)
    return tuple(found.values())


def _setups(
    form: str, codec: str, look: Look, size: tuple[int, int], rate: Fraction, reorder: bool, quick: bool
) -> Iterator[Setup]:
    """Ways to write a codec, from what loses least, with our settings before the encoder's own."""
    enough = 2 * look.bit_rate or int(size[0] * size[1] * rate * _BITS_PER_PIXEL)
    for encoder, pix_fmt in _formats(codec, look.pix_fmt, every=codec == look.codec):
        ours = _OPTIONS.get(encoder.name, _OLD_ENCODERS_OPTIONS)
        ours = ours | QUICK_OPTIONS.get(encoder.name, {}) if quick else ours
        bits = 0 if encoder.name in _OPTIONS and encoder.name not in _LIMITED else enough
        told = _told(encoder.name, ours, look)
        wanted = replace(look, colours=look.colours.for_format(pix_fmt))
        for one_rate in dict.fromkeys((rate, _USUAL_RATE)):
            for options, limit in ((told, bits), *([(ours, bits)] if told != ours else []), ({}, enough)):
                yield Setup(encoder, pix_fmt, options, limit, one_rate, size, wanted, reorder)


def _formats(codec: str, source: str, every: bool) -> list[tuple[av.Codec, str]]:
    """Encoders of a codec and formats of pixels for them, from what loses least of the source's.

    Args:
        every: also encoders for kinds of a codec that few players know, as H.264 of RGB.
    """
    source = _plain(source)
    coloured = not is_grey(source)
    ranked: list[tuple[tuple[bool, ...], av.Codec, str]] = []
    for encoder in _encoders(codec)[: None if every else 1]:
        offered = [form.name for form in encoder.video_formats or ()] or [source, "rgb24", "bgr24", "yuv420p"]
        usable = [name for name in dict.fromkeys(map(_plain, offered)) if name in offered and not has_alpha(name)]
        usable = [name for name in usable if min(part.bits for part in av.VideoFormat(name).components) >= 8]
        # GIF's, for one, are palettes and grey: another codec rather than no colours.
        usable = [name for name in usable if not (coloured and is_grey(name))]
        while usable:
            best, loss = find_best_pix_fmt_of_list(usable, source)
            if best is None:
                break
            ranked.append((_losses(loss), encoder, best.name))
            usable.remove(best.name)
    return [(encoder, name) for _, encoder, name in sorted(ranked, key=lambda one: one[0])]


def _losses(loss: PixFmtLoss) -> tuple[bool, ...]:
    """What is lost, the worst first."""
    kinds = (PixFmtLoss.DEPTH, PixFmtLoss.CHROMA, PixFmtLoss.RESOLUTION, PixFmtLoss.COLORSPACE)
    return tuple(bool(loss & kind) for kind in kinds)


def _plain(pix_fmt: str) -> str:
    """A format without alpha, palette, or a range in its name."""
    form = av.VideoFormat(pix_fmt)
    if form.has_palette or min(part.bits for part in form.components) < 8:
        return "rgb24"
    plain = pix_fmt.replace("yuvj", "yuv").replace("yuva", "yuv").replace("gbrap", "gbrp")
    return {"ya8": "gray", "ya16le": "gray16le", "ya16be": "gray16be"}.get(plain, plain)


class _Back(NamedTuple):
    """A picture that was written and read, and what its file says of it."""

    frame: av.VideoFrame
    pixel_aspect: Fraction | None
    field_order: int


def _held(form: str, setup: Setup) -> Setup | None:
    """The setup with what of its look comes back from a file; None where its picture does not come back."""
    x, y = np.meshgrid(np.linspace(0, 1, setup.size[0]), np.linspace(0, 1, setup.size[1]))
    channels = [x, x, x] if is_grey(setup.pix_fmt) else [x, y, 1 - x]
    picture = (255 * np.stack(channels, axis=2)).astype(np.uint8)
    back = _come_back(form, setup, picture)
    if back and (colours := _as_read(setup, back.frame)) != setup.colours:
        # What is not marked is written as a reader takes what is not marked.
        setup = replace(setup, look=replace(setup.look, colours=colours))
        back = _come_back(form, setup, picture)
    if back is None or _as_read(setup, back.frame) != setup.colours:
        return None
    read = to_rgb(back.frame)
    if np.abs(eight_bits(read) - picture.astype(float)).mean() > _FARTHEST:
        return None
    aspect, order, light = back.pixel_aspect, back.field_order, Light.of(back.frame)
    return replace(setup, look=replace(setup.look, pixel_aspect=aspect, field_order=order, light=light))


def _as_read(setup: Setup, frame: av.VideoFrame) -> Colours:
    """What a reader takes the colours for."""
    if is_rgb(setup.pix_fmt):
        return setup.colours
    read = Colours.of(frame)
    full = read.full or is_grey(frame.format.name)
    return read._replace(range=FULL if full else min(setup.colours.range, 1))


def _come_back(form: str, setup: Setup, picture: np.ndarray) -> _Back | None:
    """The picture, written into a file in memory and read from it; None where that does not work."""
    file = io.BytesIO()
    try:
        with av.open(file, "w", format=form) as container:
            write_one(container, setup.add_to(container, setup.rate), from_rgb(picture, setup.pix_fmt, setup.colours))
        with av.open(io.BytesIO(file.getvalue()), "r") as back:
            read = next(back.decode(video=0), None)
            if read is None or (read.width, read.height) != setup.size:
                return None
            stream = back.streams.video[0]
            return _Back(read, stream.sample_aspect_ratio or None, stream.codec_context.field_order)
    except (av.FFmpegError, ValueError, OSError):
        return None


def write_one(container: av.container.OutputContainer, stream: av.VideoStream, frame: av.VideoFrame) -> None:
    """Write a file's only frame. Raises ValueError or av.FFmpegError."""
    frame.pts, frame.time_base = 0, stream.codec_context.time_base
    for packet in (*stream.encode(frame), *stream.encode(None)):
        packet.dts = packet.pts
        container.mux(packet)


def _told(encoder: str, options: dict[str, str], look: Look) -> dict[str, str]:
    """Options that also pass HDR10 and the order of fields to the encoder, where it takes them."""
    if encoder == "libx264" and look.field_order in _FIELDS:
        options = _joined(options, "x264-params", [_FIELDS[look.field_order]])
    if encoder not in _LIGHT:
        return options
    key, display, levels, units = _LIGHT[encoder]
    parts = []
    if look.light.display:
        *points, least, greatest = look.light.display
        scaled = [_number(value, units[0]) for value in points] + [_number(v, units[1]) for v in (greatest, least)]
        red, green, blue, white, luminance = (f"({scaled[i]},{scaled[i + 1]})" for i in range(0, 10, 2))
        parts.append(f"{display}=G{green}B{blue}R{red}WP{white}L{luminance}")
    if look.light.levels:
        parts.append(f"{levels}={look.light.levels[0]},{look.light.levels[1]}")
    return _joined(options, key, parts)


def _joined(options: dict[str, str], key: str, parts: list[str]) -> dict[str, str]:
    """Options with more parts of one of them."""
    return {**options, key: ":".join([options[key], *parts] if key in options else parts)} if parts else options


def _number(value: Fraction, unit: Fraction | None) -> str:
    return f"{float(value):.5f}" if unit is None else str(round(value / unit))

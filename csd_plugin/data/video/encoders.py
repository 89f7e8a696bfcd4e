"""Chooses the encoder of a video and its settings, by trials in memory of what a file gives back.

What FFmpeg lists for an encoder or container is not always what they hold: a build of libvpx may lack its ten bits, and
raw 4:4:2:2 in QuickTime comes back with other colours. So a setup counts only if a picture survives it.
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
"""Settings of quality close to the source's: a frame should look as the deraining, not the codec, makes it."""
QUICK_OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "ultrafast", "crf": "16"},
    "libx265": {"preset": "ultrafast", "crf": "16"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "libsvtav1": {"preset": "12", "crf": "18"},
}
"""Settings that differ for `quick`, by encoder. Pictures are as close to their source, in PSNR on real rain, in 0.1,
0.35, 0.15 and 0.55 of the usual time; files are 1.8, 1.15, 1.1 and 1.2 times as large."""

_OLD_ENCODERS_OPTIONS = {"qmin": "1", "qmax": "4"}
_LIMITED = ("libvpx",)
"""Encoders whose quality setting is only effective below a bit rate."""
_BITS_PER_PIXEL = 1
"""Enough for any picture, for encoders that need a bit rate when the source's is not known."""
_STEPS = (Fraction(1, 50_000), Fraction(1, 10_000))
_LIGHT: dict[str, tuple[str, str, str, tuple[Fraction | None, Fraction | None]]] = {
    "libx264": ("x264-params", "mastering-display", "cll", _STEPS),
    "libx265": ("x265-params", "master-display", "max-cll", _STEPS),
    "libsvtav1": ("svtav1-params", "mastering-display", "content-light", (None, None)),
}
"""How encoders take HDR10: the option, its names of display and light level, and the units of both numbers."""
_TAGS = {"hevc": "hvc1"}
"""Codec -> the name by which MP4 and QuickTime list it. Apple's players do not play HEVC by FFmpeg's own name, hev1."""
_TAGGED = ("mp4", "mov")
_FIELDS = {2: "tff=1", 4: "tff=1", 3: "bff=1", 5: "bff=1"}
_DEEP_CODECS = ("h264", "av1")
"""Codecs that hold more than 8 bits, for containers whose usual codec does not."""
_NOT_EVERYWHERE = Capabilities.hardware | Capabilities.hybrid | Capabilities.experimental
_USUAL_RATE = Fraction(25)
"""A rate for encoders that only accept certain rates; the container gets the actual times."""
_FARTHEST = 12.0
"""The most mean difference, in levels, between a trial's picture and the original; a misread format is far beyond."""


@dataclass(frozen=True)
class Setup:
    """An encoder with its settings, for one size of picture."""

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
        """Add a stream with an open encoder, whose time base is one tick per frame.

        Raises ValueError or av.FFmpegError if the encoder, or the container, does not accept the setup.
        """
        stream = cast("av.VideoStream", container.add_stream(self.encoder.name, rate=mean_rate))
        context = stream.codec_context
        tag = _TAGS.get(self.encoder.canonical_name)
        if tag and container.format.name in _TAGGED:
            context.codec_tag = tag
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
    """Restore what libsvtav1 changes for the whole process when it opens.

    As root, it puts its threads and the calling thread into real-time scheduling, which processes started later
    inherit: they would starve everything else on the machine. It also writes its settings to standard error, unless the
    environment says otherwise.
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
                with contextlib.suppress(ProcessLookupError):  # the thread has ended meanwhile
                    if os.sched_getscheduler(thread) != scheduling[0]:
                        os.sched_setscheduler(thread, *scheduling)


def _threads() -> set[int]:
    """This process's threads by Linux's numbers; empty if they cannot be listed."""
    try:
        return {int(name) for name in os.listdir("/proc/self/task")}  # noqa: PTH208 - paths are not needed
    except OSError:
        return set()


def choose(
    path: Path,
    form: str,
    look: Look,
    size: tuple[int, int],
    rate: Fraction,
    *,
    codec: str | None,
    reorder: bool,
    quick: bool = False,
) -> Setup:
    """Of the setups that work here, the one that preserves most of the look. One line warns about each loss.

    Args:
        path: the output, for messages.
        form: FFmpeg's name of the container.
        size: (width, height) of the frames.
        codec: in which the frames were read, for messages; `look` has the one to write.
        reorder: whether the container can hold frames in an order other than display order.
        quick: use `QUICK_OPTIONS`.

    Raises:
        CSDError: no setup works.
    """
    depth = depth_of(look.pix_fmt)
    best: Setup | None = None
    for name in _codecs(form, look.codec, depth):
        ways = _setups(form, name, look, size, rate, reorder, quick)
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
    _say_what_changes(path, form, codec, look, best)
    return best


def _say_what_changes(path: Path, form: str, codec: str | None, look: Look, setup: Setup) -> None:
    written = setup.encoder.canonical_name
    if codec and codec != written:
        logger.warning("%s: %s cannot be written into %s here, %s is used instead", path, codec, form, written)
    before, after = max(look.depth, depth_of(look.pix_fmt)), depth_of(setup.pix_fmt)
    if after < before:
        logger.warning("%s: %s holds %d bits per channel here, the input has %d", path, written, after, before)
    lost = []
    if look.codec and not is_grey(look.pix_fmt) and _chroma(setup.pix_fmt) < _chroma(look.pix_fmt):
        lost.append(f"the colours of all the input's pixels (it is {setup.pix_fmt}, the input {look.pix_fmt})")
    wanted, held = look.colours.for_format(setup.pix_fmt), setup.colours
    if wanted.full and not held.full:
        lost.append("the mark of full range" if is_grey(setup.pix_fmt) else "full range (limited range is used)")
    marks = zip(("matrix", "primaries", "transfer"), _marks(wanted), _marks(held), strict=True)
    if unmarked := [name for name, mine, theirs in marks if look.codec and mine not in (2, theirs)]:
        lost.append(f"the mark of the colours' {' and '.join(unmarked)} (unmarked means BT.601)")
    if look.pixel_aspect not in (None, 1) and setup.look.pixel_aspect != look.pixel_aspect:
        lost.append(f"the pixel aspect ratio {look.pixel_aspect}")
    if look.field_order > 1 and look.field_order != setup.look.field_order:
        lost.append("the field order (frames are marked as progressive)")
    if not look.light.is_like(setup.look.light):
        lost.append("HDR10 data (display, light level)")
    if lost:
        logger.warning("%s: %s in %s does not hold %s", path, written, form, ", ".join(lost))


def _chroma(pix_fmt: str) -> Fraction:
    """Colours per pixel: 1 for RGB and 4:4:4, 1/4 for 4:2:0."""
    form = av.VideoFormat(pix_fmt, 16, 16)
    parts = form.components
    return Fraction(1) if is_rgb(pix_fmt) or len(parts) < 3 else Fraction(parts[1].width * parts[1].height, 16 * 16)


def _marks(colours: Colours) -> tuple[int, int, int]:
    """Matrix, primaries and transfer, with one number for both matrices of BT.601."""
    matrix = SMPTE170M if colours.matrix == BT470BG else colours.matrix
    return matrix, colours.primaries, colours.transfer


def _codecs(form: str, source: str | None, depth: int) -> list[str]:
    """Codecs to try for a container; the first one that works without loss of depth is used."""
    with av.open(io.BytesIO(), "w", format=form) as container:
        holds, usual = container.supported_codecs, container.default_video_codec
    wanted = [source, usual, *(_DEEP_CODECS if depth > 8 else ())]
    return [name for name in dict.fromkeys(wanted) if name and any(one.name in holds for one in _encoders(name))]


@functools.cache
def _encoders(codec: str) -> tuple[av.Codec, ...]:
    """FFmpeg's encoders for a codec, its own choice first, without hardware encoders; empty for some codecs."""
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
    """Ways to write a codec, those with the least loss first, our settings before the encoder's own."""
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
    """Encoders of a codec with pixel formats, those with the least loss from the source's first.

    Args:
        every: include encoders for profiles that few players support, such as H.264 in RGB.
    """
    source = _plain(source)
    coloured = not is_grey(source)
    ranked: list[tuple[tuple[bool, ...], av.Codec, str]] = []
    for encoder in _encoders(codec)[: None if every else 1]:
        offered = [form.name for form in encoder.video_formats or ()] or [source, "rgb24", "bgr24", "yuv420p"]
        usable = [name for name in dict.fromkeys(map(_plain, offered)) if name in offered and not has_alpha(name)]
        usable = [name for name in usable if min(part.bits for part in av.VideoFormat(name).components) >= 8]
        # GIF has only palettes and grey: prefer another codec to losing colours.
        usable = [name for name in usable if not (coloured and is_grey(name))]
        while usable:
            best, loss = find_best_pix_fmt_of_list(usable, source)
            if best is None:
                break
            ranked.append((_losses(loss), encoder, best.name))
            usable.remove(best.name)
    return [(encoder, name) for _, encoder, name in sorted(ranked, key=lambda one: one[0])]


def _losses(loss: PixFmtLoss) -> tuple[bool, ...]:
    """The kinds of loss, the worst first."""
    kinds = (PixFmtLoss.DEPTH, PixFmtLoss.CHROMA, PixFmtLoss.RESOLUTION, PixFmtLoss.COLORSPACE)
    return tuple(bool(loss & kind) for kind in kinds)


def _plain(pix_fmt: str) -> str:
    """A pixel format without alpha, palette, or a range in its name."""
    form = av.VideoFormat(pix_fmt)
    if form.has_palette or min(part.bits for part in form.components) < 8:
        return "rgb24"
    plain = pix_fmt.replace("yuvj", "yuv").replace("yuva", "yuv").replace("gbrap", "gbrp")
    return {"ya8": "gray", "ya16le": "gray16le", "ya16be": "gray16be"}.get(plain, plain)


class _Back(NamedTuple):
    """A picture that was written and read back, and the look that its file states."""

    frame: av.VideoFrame
    pixel_aspect: Fraction | None
    field_order: int


def _held(form: str, setup: Setup) -> Setup | None:
    """The setup with those parts of its look that a file gives back; None if its picture does not survive."""
    x, y = np.meshgrid(np.linspace(0, 1, setup.size[0]), np.linspace(0, 1, setup.size[1]))
    channels = [x, x, x] if is_grey(setup.pix_fmt) else [x, y, 1 - x]
    picture = (255 * np.stack(channels, axis=2)).astype(np.uint8)
    back = _come_back(form, setup, picture)
    if back and (colours := _as_read(setup, back.frame)) != setup.colours:
        # Unmarked properties are written as readers interpret them.
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
    """The colours that a reader will assume."""
    if is_rgb(setup.pix_fmt):
        return setup.colours
    read = Colours.of(frame)
    full = read.full or is_grey(frame.format.name)
    return read._replace(range=FULL if full else min(setup.colours.range, 1))


def _come_back(form: str, setup: Setup, picture: np.ndarray) -> _Back | None:
    """Write a picture to a file in memory and read it back; None if that does not work."""
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
    """Options that also pass HDR10 and the field order to the encoder, if it takes them."""
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
    """Options with parts added to one of them."""
    return {**options, key: ":".join([options[key], *parts] if key in options else parts)} if parts else options


def _number(value: Fraction, unit: Fraction | None) -> str:
    return f"{float(value):.5f}" if unit is None else str(round(value / unit))

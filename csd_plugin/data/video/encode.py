"""Video files, encoded."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.codec.codec import UnknownCodecError

from csd_plugin.data.video.decode import INTERPOLATION, VideoReader, open_input
from csd_plugin.data.video.interface import FrameReader, FrameWriter
from csd_plugin.data.video.quick import QUICK_OPTIONS
from csd_plugin.data.video.scaling import reformat
from csd_plugin.errors import CSDError

logger = logging.getLogger(__name__)

# Near the source's quality; deraining, not the codec, should decide what a frame looks like.
_ENCODER_OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {"crf": "16"},
    "libx265": {"crf": "18", "x265-params": "log-level=error"},
    "libvpx-vp9": {"crf": "20", "b": "0", "row-mt": "1", "deadline": "good", "cpu-used": "4"},
    "libsvtav1": {"crf": "22"},
    "ffv1": {},
    "prores": {},
}
_EVEN_ONLY = ("libx264", "libx265")
"""Encoders that refuse odd sizes where colours are at half the size."""
_OLD_ENCODER_OPTIONS = {"qmin": "1", "qmax": "4"}

_BT709 = 1


class VideoWriter(FrameWriter):
    """Encodes to a temporary file beside the output, which takes its name when all is written.

    The encoder is set up when the first frame tells the size, which need not be the reader's.
    """

    def __init__(self, path: Path, *, like: FrameReader, quick: bool = False) -> None:
        self._path, self._like, self._quick = path, like, quick
        self._temporary = path.with_name(f".{path.stem}.part{path.suffix}")
        self._container: av.container.OutputContainer | None = None
        self._tracks: _Tracks | None = None
        self._written = 0

    def write(self, frame: np.ndarray) -> None:
        with self._named_errors():
            container = self._container or self._begin(frame)
            picture = self._picture(frame)
            if self._tracks:
                self._tracks.copy_until(self._begins)
            container.mux(self._stream.encode(picture))
            self._written += 1

    def close(self) -> None:
        if self._container is None:
            raise CSDError(f"{self._path}: no frame was written")
        try:
            with self._named_errors():
                self._container.mux(self._stream.encode(None))
                if self._tracks:
                    self._tracks.copy_until(self._end)
                self._container.close()
                self._temporary.replace(self._path)
        except BaseException:
            self.abort()
            raise
        if self._tracks:
            self._tracks.close()

    def abort(self) -> None:
        if self._tracks:
            self._tracks.close()
        if self._container is not None:
            # Closing writes the file's end, which may fail for the very reason that brought us here.
            with contextlib.suppress(av.FFmpegError, OSError):
                self._container.close()
        self._temporary.unlink(missing_ok=True)

    def _begin(self, frame: np.ndarray) -> av.container.OutputContainer:
        """Open the file and the encoder for frames like this one."""
        like = self._like
        source = like if isinstance(like, VideoReader) else None
        container_format = "mp4" if self._path.suffix.lower() == ".m4v" else None
        self._container = av.open(str(self._temporary), "w", format=container_format)
        encoder = _encoder(self._container, source.codec if source else self._container.default_video_codec)
        stream = cast("av.VideoStream", self._container.add_stream(encoder.name, rate=like.fps))
        stream.height, stream.width = frame.shape[:2]
        stream.pix_fmt = _pixel_format(encoder, source.pix_fmt if source else None, frame)
        quick = QUICK_OPTIONS.get(encoder.name, {}) if self._quick else {}
        stream.codec_context.options = _ENCODER_OPTIONS.get(encoder.name, _OLD_ENCODER_OPTIONS) | quick
        context = stream.codec_context
        # AVI and the older codecs know constant rates only.
        constant = self._container.format.name == "avi" or encoder.name not in _ENCODER_OPTIONS
        self._time_base = 1 / like.fps if constant else like.time_base
        if constant:
            context.max_b_frames = 0
        context.time_base = self._time_base
        self._colors = source.colors if source else (_BT709, 0, _BT709, _BT709)
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = self._colors
        self._offset = Fraction(0)
        self._last_pts: int | None = None
        if source:
            stream.metadata.update(source.metadata)
            if source.pixel_aspect:
                context.sample_aspect_ratio = source.pixel_aspect
            if encoder.name not in _ENCODER_OPTIONS and source.bit_rate:
                context.bit_rate = 2 * source.bit_rate
            self._offset = source.origin if source.start == 0 else source.stamp(0)[0] * source.time_base
            self._tracks = _Tracks(source.path, self._container, self._offset)
        self._stream = stream
        return self._container

    def _picture(self, pixels: np.ndarray) -> av.VideoFrame:
        """Pixels -> a frame as the encoder takes it, with its time."""
        if pixels.shape[:2] != (self._stream.height, self._stream.width):
            raise CSDError(
                f"{self._path}: frame {self._written} is {pixels.shape[1]}x{pixels.shape[0]}, "
                f"the video is {self._stream.width}x{self._stream.height}"
            )
        rgb = av.VideoFrame.from_numpy_buffer(
            np.ascontiguousarray(pixels), "rgb24" if pixels.dtype == np.uint8 else "rgb48le"
        )
        space, color_range, primaries, trc = self._colors
        picture = reformat(
            rgb,
            format=self._stream.pix_fmt,
            dst_colorspace=space,
            dst_color_range=color_range,
            interpolation=INTERPOLATION,
        )
        picture.colorspace, picture.color_range = space, color_range
        picture.color_primaries, picture.color_trc = primaries, trc

        start, duration = self._like.stamp(self._written)
        ticks = self._like.time_base / self._time_base
        pts = round(start * ticks - self._offset / self._time_base)
        if self._last_pts is not None:
            pts = max(pts, self._last_pts + 1)  # encoders refuse time that stands still
        self._last_pts = pts
        picture.pts, picture.time_base = pts, self._time_base
        picture.duration = max(1, round(duration * ticks))
        self._begins, self._end = pts * self._time_base, (pts + picture.duration) * self._time_base
        return picture

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            raise CSDError(
                f"{self._path}: cannot be written ({error.strerror or error}); is there room, and the right to?"
            ) from error


class _Tracks:
    """Sound and subtitles of a file, copied into another as they are, in step with the pictures."""

    def __init__(self, path: Path, output: av.container.OutputContainer, offset: Fraction) -> None:
        self._source = open_input(path)
        self._output, self._offset = output, offset
        self._streams: dict[int, Any] = {}
        for stream in (*self._source.streams.audio, *self._source.streams.subtitles):
            try:
                copy = output.add_stream_from_template(stream)
            except (ValueError, av.FFmpegError):
                name = stream.codec_context.name if stream.codec_context else "unknown"
                track = f"{stream.type} track {stream.index} ({name})"
                logger.warning("%s: %s does not go into %s, it is left out", path, track, output.format.name)
                continue
            copy.metadata.update(stream.metadata)
            copy.disposition = stream.disposition
            self._streams[stream.index] = copy
        wanted = [self._source.streams[index] for index in self._streams]
        self._packets = self._timed(self._source.demux(*wanted)) if wanted else iter(())
        self._waiting = next(self._packets, None)

    def copy_until(self, seconds: Fraction) -> None:
        """Write what begins before this time of the output."""
        while self._waiting is not None and self._waiting[0] < seconds:
            self._output.mux(self._waiting[1])
            self._waiting = next(self._packets, None)

    def close(self) -> None:
        self._source.close()

    def _timed(self, packets: Iterator[av.Packet]) -> Iterator[tuple[Fraction, av.Packet]]:
        """Packets with the output's times; the ones before its start are dropped."""
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                return  # a damaged end: the pictures' reader says so
            if packet is None:
                return
            if packet.dts is None or packet.pts is None:  # demuxers end every stream with an empty packet
                continue
            shift = round(self._offset / packet.time_base)
            begin = packet.pts * packet.time_base - self._offset
            if begin + (packet.duration or 0) * packet.time_base <= 0 < self._offset:
                continue
            packet.pts -= shift
            packet.dts -= shift
            packet.stream = self._streams[packet.stream.index]
            yield begin, packet


def _encoder(container: av.container.OutputContainer, codec: str) -> av.Codec:
    """The encoder for the source's codec if the container holds it, else the container's usual one."""
    names = [codec] if codec in container.supported_codecs else []
    for name in (*names, container.default_video_codec):
        with contextlib.suppress(UnknownCodecError):
            return av.Codec(name, "w")
    raise CSDError(f"this PyAV has no encoder for {container.format.name}; install PyAV's own wheel: pip install av")


def _pixel_format(encoder: av.Codec, source: str | None, frame: np.ndarray) -> str:
    """The source's pixel format where the encoder has it; 4:4:4 for odd sizes that it takes in no other."""
    wanted = source if source and source.startswith("yuv") else "yuv420p" if frame.dtype == np.uint8 else "yuv420p10le"
    wanted = wanted.replace("yuvj", "yuv").replace("yuva", "yuv")
    if encoder.name in _EVEN_ONLY and (frame.shape[0] % 2 or frame.shape[1] % 2):
        wanted = re.sub("42[02]|41[01]|440", "444", wanted)
    offered = [pixel_format.name for pixel_format in encoder.video_formats or ()]
    eight_bits = re.sub(r"p\d+[lb]e$", "p", wanted)
    return next((name for name in (wanted, eight_bits, "yuv420p") if name in offered), offered[0])

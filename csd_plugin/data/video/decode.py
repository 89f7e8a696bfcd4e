"""Video files, decoded."""

from __future__ import annotations

import logging
import re
from array import array
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation

from csd_plugin.data.video.interface import FrameReader, Position, frame_number
from csd_plugin.data.video.scaling import reformat
from csd_plugin.errors import CSDError

logger = logging.getLogger(__name__)

# Containers that hold their own frames. Playlists (HLS, DASH, concat) are left out: a file from a stranger
# could name any other file of the machine, or an address, to be read into the output.
_READABLE = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,apng,webp,h264,hevc,av1,obu,ivf,m4v,"
    "mjpeg,yuv4mpegpipe,mxf,nut,wtv,rm,dv"
)

# Without the last two, pictures get 1.4 grey levels darker on their way from RGB to 8-bit YUV and back.
INTERPOLATION = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


class VideoReader(FrameReader):
    """The first video stream of a file. The first frame is decoded at once: it tells size, depth and colours."""

    def __init__(
        self, path: Path, *, start: Position, end: Position | None, keep_going: bool, context: int = 0
    ) -> None:
        self.path = path
        self.start, self.end, self._context = start, end, context
        self._keep_going = keep_going
        self._container = open_input(path)
        try:
            if not self._container.streams.video or self._container.streams.video[0].codec_context is None:
                raise CSDError(f"{path}: no video in this file that can be decoded; is it complete, and a video?")
            self._stream = self._container.streams.video[0]
            self._stream.thread_type = "AUTO"
            self.fps = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
            self.time_base = self._stream.time_base or 1 / self.fps
            # Seconds at which the file's own clock shows the clip's start; often not 0, as in MPEG-TS.
            self.origin = Fraction(self._container.start_time or 0, av.time_base)
            self._starts, self._durations = array("q"), array("q")
            self._frames = self._part()
            first = next(self._frames, None)
            if first is None:
                raise CSDError(f"{path}: no frames in the part asked for; --end is the frame after the last")
        except BaseException:
            self._container.close()
            raise
        self._first: av.VideoFrame | None = first
        self.pix_fmt = first.format.name
        self.codec = self._stream.codec_context.codec.canonical_name
        self.bit_rate = self._stream.codec_context.bit_rate
        self.colors = (first.colorspace, first.color_range, first.color_primaries, first.color_trc)
        self.pixel_aspect = self._stream.sample_aspect_ratio
        self.metadata = {k: v for k, v in self._stream.metadata.items() if k in ("title", "language")}
        self._rgb_format = "rgb48le" if max(c.bits for c in first.format.components) > 8 else "rgb24"
        height, width = to_rgb(first, self._rgb_format).shape[:2]
        self.size = (width, height)
        self.first = self._skipped
        self.num_frames = self._count()

    def __iter__(self) -> Iterator[np.ndarray]:
        if self._first is None:
            raise RuntimeError("a video is read once; open it again")
        first, self._first = self._first, None
        yield to_rgb(first, self._rgb_format)
        for frame in self._frames:
            yield to_rgb(frame, self._rgb_format)

    def in_part(self, index: int) -> bool:
        return 0 <= index - self.lead < len(self._starts)

    def stamp(self, index: int) -> tuple[int, int]:
        return self._starts[index], self._durations[index]

    def name(self, index: int) -> str:
        return f"{self._skipped + index + 1:05d}"

    def close(self) -> None:
        self._container.close()

    def _part(self) -> Iterator[av.VideoFrame]:
        """The frames from start to end, their times noted, and those of the context."""
        self._skipped = 0
        before: deque[av.VideoFrame] = deque(maxlen=self._context)
        after = 0
        tick = max(1, round(1 / (self.fps * self.time_base)))
        expected = round(self.origin / self.time_base)
        last = expected - 1
        for number, frame in enumerate(self._decoded()):
            # Some files have no times, or (AVI) those of decoding; in display order time always moves on.
            begin = expected if frame.pts is None or frame.pts <= last else frame.pts
            last = begin
            duration = frame.duration or tick
            expected = begin + duration
            seconds = begin * self.time_base - self.origin
            if self.end is not None and _reached(self.end, number, seconds):
                if after == self._context or not self._starts:
                    return
                after += 1
                yield frame
                continue
            if not _reached(self.start, number, seconds):
                self._skipped += 1
                before.append(frame)
                continue
            if before:
                self.lead = len(before)
                while before:
                    yield before.popleft()
            self._starts.append(begin)
            self._durations.append(duration)
            yield frame

    def _decoded(self) -> Iterator[av.VideoFrame]:
        packets, frames, seconds = 0, 0, 0.0
        demuxer = self._container.demux(self._stream)
        while True:
            try:
                packet = next(demuxer, None)
                if packet is None:
                    break
                packets += packet.size > 0
                seconds = max(seconds, float((packet.pts or 0) * self.time_base))
                if packet.is_corrupt:
                    self._damaged(frames, "its data is cut off")
                    continue
                decoded = packet.decode()
            except av.FFmpegError as error:
                self._damaged(frames, error.strerror or str(error))
                continue
            for frame in decoded:
                yield frame
                frames += 1
        if self._ends_early(packets, seconds):
            self._damaged(frames, "the file ends before its time")

    def _ends_early(self, packets: int, seconds: float) -> bool:
        """Whether the file says that it holds more, as far as its container is to be trusted in this."""
        if "mp4" in self._container.format.name:
            return packets < self._stream.frames
        # Matroska writes 00:00:02.400000000, and how long the last frame shows it may not know.
        clock = re.fullmatch(r"(\d+):(\d+):(\d+\.\d+)", self._stream.metadata.get("DURATION", ""))
        if clock is None:
            return False
        hours, minutes, rest = clock.groups()
        return seconds < 3600 * int(hours) + 60 * int(minutes) + float(rest) - 1.0

    def _damaged(self, frame: int, reason: str) -> None:
        message = f"{self.path}: the video is damaged after frame {frame} ({reason})"
        if not self._keep_going:
            raise CSDError(f"{message}; keep_going (--keep-going) leaves out what cannot be read")
        logger.warning("%s; what cannot be read is left out", message)

    def _count(self) -> int | None:
        seconds = Fraction(self._container.duration, av.time_base) if self._container.duration else None
        total = self._stream.frames or (None if seconds is None else round(seconds * self.fps))
        if total is None:
            return None
        last = total if self.end is None else min(total, frame_number(self.end, self.fps))
        self.trail = min(self._context, total - last)
        return max(1, last - self._skipped)


def open_input(path: Path) -> av.container.InputContainer:
    """A local file that holds its own frames, whatever its name says. Raises CSDError."""
    try:
        # An absolute path is never taken for an address, whatever characters are in it.
        return av.open(
            str(path.resolve()), container_options={"format_whitelist": _READABLE, "protocol_whitelist": "file"}
        )
    except (av.FFmpegError, OSError) as error:
        if path.stat().st_size == 0:
            raise CSDError(f"{path} is empty (0 bytes)") from error
        raise CSDError(f"{path}: not a video file that can be read, or damaged ({error.strerror or error})") from error


def to_rgb(frame: av.VideoFrame, rgb_format: str = "rgb24") -> np.ndarray:
    """The picture as a viewer shows it: (H, W, 3), uint8, or uint16 of 'rgb48le'."""
    pixels = reformat(frame, format=rgb_format, interpolation=INTERPOLATION).to_ndarray()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    return _turn(pixels, np.frombuffer(matrix, np.int32))  # type: ignore[call-overload]


def _turn(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Turn and mirror by quarter turns as a 3x3 display matrix (9 integers, row by row) says."""
    a, b, _, c, d = (int(value) for value in matrix[:5])
    if abs(b) > abs(a):  # x and y change places
        pixels, flip_x, flip_y = pixels.swapaxes(0, 1), c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    return np.ascontiguousarray(pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def _reached(position: Position, number: int, seconds: Fraction) -> bool:
    return number >= position if isinstance(position, int) else seconds >= position

"""Raw frames on standard input and output: 8-bit RGB, row by row, without any header (rgb24)."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np

from csd_plugin.data.images import eight_bits
from csd_plugin.data.video.camera import is_camera
from csd_plugin.data.video.interface import PIPE, EmptyPart, FrameReader, FrameWriter, Position, frame_number
from csd_plugin.errors import CSDError, at
from csd_plugin.unread import OUTPUT

logger = logging.getLogger(__name__)

_SIGNS = {
    "YUV4MPEG2 (y4m)": (0, b"YUV4MPEG2 "),
    "an MP4 or MOV file": (4, b"ftyp"),
    "a Matroska or WebM file": (0, b"\x1a\x45\xdf\xa3"),
    "an AVI file": (8, b"AVI LIST"),
    "a NUT file": (0, b"nut/multimedia container"),
    "PNG images": (0, b"\x89PNG\r\n\x1a\n"),
    "JPEG images": (6, b"JFIF\0"),
}
"""What is piped in place of raw frames: where its signature is, and what."""


def is_single_pass(path: Path) -> bool:
    """Whether the frames of a path cannot be read again: those of a pipe or a camera."""
    return path == PIPE or is_camera(path)


class PipeReader(FrameReader):
    """Frames of a known size from standard input, as `ffmpeg -f rawvideo -pix_fmt rgb24 -` writes them."""

    def __init__(
        self, size: tuple[int, int] | None, *, start: Position, end: Position | None, fps: Fraction, context: int
    ) -> None:
        super().__init__(PIPE)
        if size is None:
            raise CSDError("raw frames on standard input do not contain their size: give --size WIDTHxHEIGHT")
        if sys.stdin is None:  # how Python shows that it was closed before the start
            raise CSDError("standard input is closed: pipe raw frames into it, or give a file or folder in place of -")
        self.size, self.fps, self.time_base = size, fps, 1 / fps
        self._until = None if end is None else frame_number(end, fps)
        self.first = frame_number(start, fps)
        if self._until is not None and self._until <= self.first:
            raise EmptyPart(f"standard input: no frames from {self.first} on before {self._until}")
        self.num_frames = None if self._until is None else self._until - self.first
        self.lead = min(context, self.first)
        self._context = context
        self.trail = 0 if self._until is None else context

    def _read(self) -> Iterator[np.ndarray]:
        before: deque[np.ndarray] = deque(maxlen=self.lead)
        # what comes after the last frame is not waited for
        last = None if self._until is None else self._until + self._context
        for number, frame in enumerate(islice(self._frames(), last)):
            if number < self.first:
                before.append(frame)
                continue
            while before:
                yield before.popleft()
            yield frame
        if number < self.first:
            raise CSDError(f"standard input ends after {number + 1} frames, before frame {self.first}")

    def _frames(self) -> Iterator[np.ndarray]:
        width, height = self.size
        count, length = 0, width * height * 3
        while data := self._bytes(length):
            if not count:
                _refuse_files(data)
            if len(data) < length:
                raise CSDError(
                    f"standard input ends within frame {count}: {len(data)} of {length} bytes; are they rgb24, "
                    f"{width}x{height}?"
                )
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
            count += 1
        if not count:
            raise CSDError("standard input is empty: pipe raw frames into it")

    def _bytes(self, length: int) -> bytes:
        try:
            return sys.stdin.buffer.read(length)
        except (MemoryError, OverflowError) as error:
            width, height = self.size
            raise CSDError(
                f"standard input: not enough memory for a frame of {width}x{height}; is --size right?"
            ) from error

    def in_part(self, index: int) -> bool:
        return index >= self.lead and (self._until is None or index - self.lead < self._until - self.first)

    def stamp(self, index: int) -> tuple[int, int]:
        return index, 1

    def name(self, index: int) -> str:
        return f"{self.first + index + 1:05d}"


def _refuse_files(data: bytes) -> None:
    """Raise CSDError if the first frame begins as a file does, which would be shown as noise."""
    for kind, (at_byte, sign) in _SIGNS.items():
        if data.startswith(sign, at_byte):
            raise CSDError(
                f"standard input is {kind}, not raw frames: let ffmpeg write these (-f rawvideo -pix_fmt rgb24), or "
                f"give the file by its name"
            )


class PipeWriter(FrameWriter):
    """Writes frames to standard output; deep ones are rounded to 8 bits.

    Raises CSDError if it is closed, and OSError if it cannot be written.
    """

    _said = False

    def __init__(self) -> None:
        super().__init__(PIPE)
        if sys.stdout is None:
            raise CSDError("standard output is closed: pipe it into a program or file, or give an output in place of -")

    def _put(self, frame: np.ndarray) -> None:
        if frame.dtype != np.uint8 and not self._said:
            logger.warning("standard output: more than 8 bits per channel, rounded to 8")
            self._said = True
        try:
            sys.stdout.buffer.write(np.ascontiguousarray(eight_bits(frame)).data)
            sys.stdout.buffer.flush()
        except BrokenPipeError as error:
            raise CSDError(f"standard output was closed by its reader ({error.strerror})") from error
        except OSError as error:
            raise at(OUTPUT, error) from error

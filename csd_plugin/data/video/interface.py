"""The interface of readers and writers of frames."""

from __future__ import annotations

import math
import numbers
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from csd_plugin.data.images import no_frame
from csd_plugin.data.video.colours import Colours, Light
from csd_plugin.errors import CSDError

Position = int | Fraction
"""A place in a clip: a frame number from 0, or seconds from its start."""

PIPE = Path("-")
"""Standard input or output, as a path."""

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
"""The suffixes of files that `open_writer` writes; `open_reader` goes by the content and accepts more."""
ALSO_VIDEOS = (".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".3gp", ".flv", ".asf")
"""Further suffixes by which videos are found in a folder."""


_FINEST = 10**6
"""The finest fraction of a second, or of a frame, that a float denotes."""


def position_of(value: object, what: str) -> Position:
    """A place in a clip: integers of any type are frame numbers, other real numbers are seconds.

    Args:
        what: the name of the value, for messages.

    Raises:
        CSDError: the value is not a number, or lies before the clip's start.
    """
    place: Position | None = None
    if isinstance(value, bool):
        pass
    elif isinstance(value, numbers.Integral):
        place = int(value)
    elif isinstance(value, numbers.Rational):
        place = Fraction(value)
    elif isinstance(value, numbers.Real) and math.isfinite(value):
        place = Fraction(float(value)).limit_denominator(_FINEST)  # 0.08 means 2/25
    if place is None or place < 0:
        raise CSDError(f"{what} is {value!r}: give the number of a frame from 0, or seconds as a Fraction or float")
    return place


def rate_of(fps: object) -> Fraction:
    """Frames per second, from a number of any type. Raises CSDError unless it is above 0."""
    if isinstance(fps, numbers.Real) and not isinstance(fps, bool) and math.isfinite(fps):
        is_exact = isinstance(fps, numbers.Rational)
        rate = Fraction(fps) if is_exact else Fraction(float(fps)).limit_denominator(_FINEST)  # type: ignore[call-overload]
        if rate > 0:
            return rate
    raise CSDError(f"fps is {fps!r}: give frames per second, above 0")


def frame_number(position: Position, fps: Fraction) -> int:
    """The number of the first frame at or after a position, at a constant rate."""
    return position if isinstance(position, int) else -int(-position * fps // 1)


def reached(position: Position, number: int, seconds: Fraction) -> bool:
    """Whether the frame of this number, which is shown from `seconds` on, is at or after a position."""
    return number >= position if isinstance(position, int) else seconds >= position


class EmptyPart(CSDError):
    """The requested part of a clip contains no frame."""


@dataclass(frozen=True)
class Look:
    """The properties of a video's pictures.

    Attributes:
        pix_fmt: FFmpeg's name of the pixel format.
        colours: the colour space of the pixels.
        codec: FFmpeg's name; None if there is none yet.
        bit_rate: of the source, in bits per second; 0 if unknown.
        pixel_aspect: width of a displayed pixel over its height; None if not stated.
        field_order: FFmpeg's number; 1 for progressive pictures.
        light: HDR10 data.
        depth: bits per channel of the input, if more than those of `pix_fmt`; else 0.
    """

    pix_fmt: str
    colours: Colours
    codec: str | None = None
    bit_rate: int = 0
    pixel_aspect: Fraction | None = None
    field_order: int = 1
    light: Light = field(default_factory=Light)
    depth: int = 0


@dataclass(frozen=True)
class SourceFormat:
    """What a video file has besides pixels; a video written from its frames takes this over.

    Attributes:
        path: the file, from which the other tracks are copied.
        index: the index of the pictures' stream in it.
        look: the properties of its pictures.
        metadata: the tags of the pictures' stream.
        fps, time_base: as in the reader.
        origin: the time of the clip's start on the file's own clock, in seconds.
        start, end: the part that is read, as given to the reader.
        first: the number of the part's first frame.
        cut: whether the part ended before the file did, as far as it was read.
    """

    path: Path
    index: int
    look: Look
    metadata: dict[str, str]
    fps: Fraction
    time_base: Fraction
    origin: Fraction
    start: Position
    end: Position | None
    first: int
    cut: bool


class Order(ABC):
    """The times and names of a clip's frames, and what else an output takes over besides their pixels.

    Attributes:
        fps: mean frames per second.
        time_base: seconds in one tick of `stamp`.
        num_frames: the number of frames of the requested part; None if unknown.
        counted: whether `num_frames` is exact, rather than an estimate or the number in the file's header.
        first: the number, in the whole clip, of the part's first frame.
    """

    fps: Fraction
    time_base: Fraction
    num_frames: int | None
    first: int
    counted: bool = False

    @property
    def source_format(self) -> SourceFormat | None:
        """What a video written from these frames takes over; None if there are only pixels."""
        return None

    @property
    def codec(self) -> str | None:
        """FFmpeg's name of the codec of a file with moving pictures; None for images, pipes and cameras."""
        return None if self.source_format is None else self.source_format.look.codec

    @abstractmethod
    def stamp(self, index: int) -> tuple[int, int]:
        """(start, duration), in ticks, of the part's index-th frame, counted from 0; only once it has been read."""

    @abstractmethod
    def name(self, index: int) -> str:
        """The file name, without suffix, for the part's index-th frame."""

    def number(self, index: int) -> int:
        """The number of the part's index-th frame in the names of a pattern; it rises with every frame."""
        return self.first + index + 1


class SteadyOrder(Order):
    """Frames at a constant rate, named 00001, 00002, ..; nothing else is known of them."""

    def __init__(self, fps: Fraction) -> None:
        self.fps, self.time_base = fps, 1 / fps
        self.num_frames, self.first = None, 0

    def stamp(self, index: int) -> tuple[int, int]:
        return index, 1

    def name(self, index: int) -> str:
        return f"{index + 1:05d}"


class FrameReader(Order):
    """The frames of one clip in display order, once. A context manager.

    Attributes:
        path: the file or folder.
        size: (width, height) of every frame, in pixels.
        lead, trail: frames of the context before and after the part; while the end of a file is not known, `trail` is
            the number that was asked for.
        live: frames come as they are captured, until `stop` is called.
        dropped: frames of a live clip that were dropped so far, as they arrived faster than they were taken.
    """

    path: Path
    size: tuple[int, int]
    lead: int = 0
    trail: int = 0
    live: bool = False
    dropped: int = 0

    def __init__(self, path: Path) -> None:
        self.path = path
        self._closed = False
        self._in_use = threading.Lock()

    @property
    def num_read(self) -> int | None:
        """The number of frames that will be read, with the context; an estimate if `num_frames` or `trail` is one."""
        return None if self.num_frames is None else self.lead + self.num_frames + self.trail

    def __iter__(self) -> Iterator[np.ndarray]:
        """RGB (H, W, 3), uint8 or uint16: the part, and up to `context` frames around it (see `open_reader`).

        Each is a new array, which is not changed later.

        Raises CSDError naming a frame that cannot be read, or if the reader was closed.
        """
        frames = self._read()
        while True:
            with self._in_use:  # closing a file while a thread reads from it would crash the process
                if self._closed:
                    raise CSDError(f"{self.path}: closed before all of its frames were read; open it again")
                frame = next(frames, None)
            if frame is None:
                return
            yield frame

    @abstractmethod
    def _read(self) -> Iterator[np.ndarray]:
        """The frames, as `__iter__` gives them."""

    @abstractmethod
    def in_part(self, index: int) -> bool:
        """Whether the index-th frame that was read belongs to the part rather than the context."""

    def no_such(self, index: int) -> CSDError:
        """The error of `stamp`, `name` and `number` for a frame that is not in the part, or not read yet."""
        return CSDError(
            f"{self.path}: frame {index} of the part, counted from 0, has not been read, so its output has no time or "
            f"name; write one frame for each that is read"
        )

    def close(self) -> None:
        """Release the file, after the frame that another thread is reading. May be called again."""
        with self._in_use:
            if not self._closed:
                self._closed = True
                self._let_go()

    def _let_go(self) -> None:
        """Release what stays open between frames; nothing by default."""

    def age(self, index: int) -> float:
        """Seconds since a live clip's index-th frame was captured."""
        raise RuntimeError(f"{self.path} is not live")

    def stop(self) -> None:
        """End a live clip with the frame that is being read; may be called from any thread."""
        raise RuntimeError(f"{self.path} ends by itself")

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FrameWriter(ABC):
    """Takes frames one by one. As a context manager, it finishes the output, or removes it after an error.

    Attributes:
        path: the file or folder.
    """

    path: Path

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ended = False
        self._count = 0
        self._kind: tuple[tuple[int, ...], np.dtype] | None = None

    def write(self, frame: np.ndarray) -> None:
        """Write RGB (H, W, 3), uint8 or uint16, all of one size and type. Raises CSDError, also after the end."""
        if self._ended:
            raise CSDError(f"{self.path}: frame {self._count} came after the output was closed; open it again")
        if reason := no_frame(frame):
            raise CSDError(f"{self.path}: frame {self._count}: {reason}")
        kind = (frame.shape, frame.dtype)
        self._kind = self._kind or kind
        if kind != self._kind:
            raise CSDError(
                f"{self.path}: frame {self._count} is {_named(*kind)}, but those before it are {_named(*self._kind)}: "
                f"write frames of one size and type"
            )
        self._put(frame)
        self._count += 1

    @abstractmethod
    def _put(self, frame: np.ndarray) -> None:
        """Write the `_count`-th frame, counted from 0, for `write`."""

    def close(self) -> None:
        """Finish the output; only now does a video appear under its name. Later calls do nothing."""
        if not self._ended:
            self._ended = True
            self._finish()

    def _finish(self) -> None:  # noqa: B027
        """Finish the output for `close`; nothing to do if every frame is finished when written."""

    def abort(self) -> None:
        """Remove unfinished files. Does nothing after the end."""
        if not self._ended:
            self._ended = True
            self._remove()

    def _remove(self) -> None:  # noqa: B027
        """Remove unfinished files for `abort`; nothing to do if no file is unfinished between frames."""

    def resume_at(self, size: tuple[int, int]) -> int | None:
        """The first frame, counted from 0 in the part, that no earlier run has written; None if all are there.

        Args:
            size: (width, height) of the frames to be written.

        Raises:
            CSDError: the output is a pipe, or has frames of another size or origin.
        """
        raise CSDError(f"{self.path}: what was written to a pipe cannot be resumed; run again without --resume")

    def keep(self) -> None:
        """Pass over the next frame, one of those before `resume_at`, in place of writing it. Raises CSDError."""
        if self._ended:
            raise CSDError(f"{self.path}: frame {self._count} came after the output was closed; open it again")
        self._keep()
        self._count += 1

    def _keep(self) -> None:  # noqa: B027
        """Keep the `_count`-th frame, counted from 0, for `keep`; nothing to do if each is a file of its own."""

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def _named(shape: tuple[int, ...], dtype: np.dtype) -> str:
    """A frame's size and type, for messages."""
    return f"{shape[1]}x{shape[0]} of {dtype}"

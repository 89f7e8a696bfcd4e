"""What readers and writers of frames have in common."""

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
"""Files that `open_writer` makes; `open_reader` looks at the content and takes more."""


_FINEST = 10**6
"""Parts of a second, or of a frame, that floats tell apart."""


def position_of(value: object, what: str) -> Position:
    """A place in a clip: whole numbers of any kind are frames, other real numbers seconds.

    Args:
        what: the name of the value, for messages.

    Raises:
        CSDError: not a number, or before the clip's start.
    """
    place: Position | None = None
    if isinstance(value, bool):
        pass
    elif isinstance(value, numbers.Integral):
        place = int(value)
    elif isinstance(value, numbers.Rational):
        place = Fraction(value)
    elif isinstance(value, numbers.Real) and math.isfinite(value):
        place = Fraction(float(value)).limit_denominator(_FINEST)  # 0.08 is meant as 2/25
    if place is None or place < 0:
        raise CSDError(f"{what} is {value!r}: give the number of a frame from 0, or seconds as a Fraction or float")
    return place


def rate_of(fps: object) -> Fraction:
    """Frames per second, from a number of any kind. Raises CSDError unless it is above 0."""
    if isinstance(fps, numbers.Real) and not isinstance(fps, bool) and math.isfinite(fps) and float(fps) > 0:
        return Fraction(fps) if isinstance(fps, numbers.Rational) else Fraction(float(fps)).limit_denominator(_FINEST)
    raise CSDError(f"fps is {fps!r}: give frames per second, above 0")


def frame_number(position: Position, fps: Fraction) -> int:
    """The number of the first frame at or after a position, at a constant rate."""
    return position if isinstance(position, int) else -int(-position * fps // 1)


def reached(position: Position, number: int, seconds: Fraction) -> bool:
    """Whether the frame of this number, which is shown from `seconds` on, is at or after a position."""
    return number >= position if isinstance(position, int) else seconds >= position


class EmptyPart(CSDError):
    """The part of a clip that was asked for has no frame."""


@dataclass(frozen=True)
class Look:
    """What the pictures of a video are.

    Attributes:
        pix_fmt: FFmpeg's name of the format of pixels.
        colours: what the numbers of the pixels mean.
        codec: FFmpeg's name, None where there is none yet.
        bit_rate: of the source, in bits per second, 0 where it is not known.
        pixel_aspect: width of a pixel over its height, as the picture is shown; None where nothing says.
        field_order: FFmpeg's number, 1 for whole pictures.
        light: HDR10 data.
        depth: bits per channel of the input, where it has more than `pix_fmt`; 0 where it has not.
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
    """What a video file has in addition to its pixels: a video written from its frames takes this over.

    Attributes:
        path: the file, from which the other tracks are copied.
        index: the number of the pictures' stream in it.
        look: what its pictures are.
        metadata: the tags of the pictures' stream.
        fps, time_base: as the reader's.
        origin: seconds at which the file's own clock shows the clip's start.
        start, end: the part that is read.
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


class FrameReader(ABC):
    """The frames of one clip in display order, once. A context manager.

    Attributes:
        path: the file or folder.
        size: (width, height) of every frame, in pixels.
        fps: mean frames per second.
        time_base: seconds in one tick of `stamp`.
        num_frames: how many frames the part asked for has; None where it is not known.
        counted: whether `num_frames` is exact; else it is an estimate, or what the file's header says.
        first: the number, in the whole clip, of the part's first frame.
        lead, trail: frames of the context that come before and after the part; where the end of a file is not known
            yet, `trail` is how many are wanted.
        live: frames come as they are seen, until `stop` is called.
        dropped: frames of a live clip that were left out so far, as they came faster than they were taken.
    """

    path: Path
    size: tuple[int, int]
    fps: Fraction
    time_base: Fraction
    num_frames: int | None
    first: int
    lead: int = 0
    trail: int = 0
    live: bool = False
    counted: bool = False
    dropped: int = 0

    def __init__(self, path: Path) -> None:
        self.path = path
        self._closed = False
        self._in_use = threading.Lock()

    @property
    def num_read(self) -> int | None:
        """How many frames come in all, the part and its context; an estimate where `num_frames` or `trail` is."""
        return None if self.num_frames is None else self.lead + self.num_frames + self.trail

    @property
    def source_format(self) -> SourceFormat | None:
        """What a video written from these frames takes over; None where there are only pixels."""
        return None

    def __iter__(self) -> Iterator[np.ndarray]:
        """RGB (H, W, 3), uint8 or uint16: the part, and up to `context` frames around it (see `open_reader`).

        Each is an array of its own, to which nothing is written later.

        Raises CSDError naming the frame that cannot be read, and where the reader was closed.
        """
        frames = self._read()
        while True:
            with self._in_use:  # a file that is closed while a thread reads from it ends the process
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
        """Whether the index-th frame that was read belongs to the part, not to the context."""

    @abstractmethod
    def stamp(self, index: int) -> tuple[int, int]:
        """(start, duration) in ticks, of the part's index-th frame, counted from 0, once it was read."""

    @abstractmethod
    def name(self, index: int) -> str:
        """The file name, without suffix, that belongs to the part's index-th frame."""

    def number(self, index: int) -> int:
        """The number that a pattern's name of the part's index-th frame holds; it rises with every frame."""
        return self.first + index + 1

    def no_such(self, index: int) -> CSDError:
        """What `stamp`, `name` and `number` raise for a frame that the part has not, or that was not read yet."""
        return CSDError(
            f"{self.path}: frame {index} of the part, counted from 0, has not been read, so one that is written has no "
            f"time or name; write one frame for each that is read"
        )

    def close(self) -> None:
        """Let go of the file, when the frame that another thread is reading is there. A second time does nothing."""
        with self._in_use:
            if not self._closed:
                self._closed = True
                self._let_go()

    def _let_go(self) -> None:  # noqa: B027
        """What `close` does; nothing where no file stays open between frames."""

    def age(self, index: int) -> float:
        """Seconds since a live clip's index-th frame came."""
        raise RuntimeError(f"{self.path} is not live")

    def stop(self) -> None:
        """End a live clip with the frame that is being read; from any thread."""
        raise RuntimeError(f"{self.path} ends by itself")

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FrameWriter(ABC):
    """Takes frames one by one. As a context manager it finishes the output, or removes it if an error came.

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
        """RGB (H, W, 3), uint8 or uint16, all of one size and type. Raises CSDError, also after the end."""
        if self._ended:
            raise CSDError(f"{self.path}: frame {self._count} came after the output was closed; open it again")
        if reason := no_frame(frame):
            raise CSDError(f"{self.path}: frame {self._count}: {reason}")
        kind = (frame.shape, frame.dtype)
        self._kind = self._kind or kind
        if kind != self._kind:
            raise CSDError(
                f"{self.path}: frame {self._count} is {_named(*kind)}, those before it are {_named(*self._kind)}: "
                f"write frames of one size and type"
            )
        self._put(frame)
        self._count += 1

    @abstractmethod
    def _put(self, frame: np.ndarray) -> None:
        """Write the `_count`-th frame, counted from 0, as `write` does."""

    def close(self) -> None:
        """Finish the output; only now does a video appear under its name. After the end it does nothing."""
        if not self._ended:
            self._ended = True
            self._finish()

    def _finish(self) -> None:  # noqa: B027
        """What `close` does; nothing where every frame is finished as it is written."""

    def abort(self) -> None:
        """Leave no unfinished file behind. After the end it does nothing."""
        if not self._ended:
            self._ended = True
            self._remove()

    def _remove(self) -> None:  # noqa: B027
        """What `abort` does; nothing where no file is unfinished between frames."""

    def resume_at(self, size: tuple[int, int]) -> int | None:
        """The first frame, counted from 0 in the part, that no earlier run has written; None if all are there.

        Args:
            size: (width, height) of the frames to be written.

        Raises:
            CSDError: an output that is written as a whole, or that has other frames, by size or by what made them.
        """
        raise CSDError(f"{self.path}: only a folder of frames can be resumed; for a video, run again without --resume")

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def _named(shape: tuple[int, ...], dtype: np.dtype) -> str:
    """A frame's size and type, for people."""
    return f"{shape[1]}x{shape[0]} of {dtype}"

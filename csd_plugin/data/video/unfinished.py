"""The encoded frames of a video that is not finished, in a file beside it, from which another run continues.

A video's container cannot be continued, and most cannot even be read before their end is written. So the frames are
also written, as they leave the encoder, to OUT.unfinished, which is removed when OUT is complete.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import struct
import time
import zlib
from collections.abc import Generator, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from csd_plugin.atomic import LONGEST_NAME, hidden_name
from csd_plugin.errors import CSDError, cannot_write
from csd_plugin.plain import parse_json

WORTH_KEEPING, WORTH_SECONDS = 100, 10.0
"""A stopped run with fewer frames, in less time, is begun anew, and leaves nothing behind unless it is killed."""
_BEGUN = "begun"
"""The setting that says when, in seconds since 1970, the first frame was encoded."""
_SIGN = b"csd-plugin unfinished video 1\n"
_HEAD = struct.Struct("<qq?II")
"""Of an encoded frame: its number, when it is decoded, whether it is a keyframe, its bytes, and a checksum."""
_AT_ONCE = 100
"""Frames between two looks at the room on the disk."""
_SPARE = 2**25
"""Bytes that are left to the video, which would otherwise be the first to find the disk full."""
_NONE = -(2**63)
_LONGEST_SETTINGS = 2**20


class EncodedFrame(NamedTuple):
    """A frame as the encoder gives it, in the order of decoding.

    Attributes:
        number: its place among the frames shown, from 0.
        order: the number at whose time it is decoded, as the encoder states it; None if it does not.
        keyframe: whether it can be decoded without others.
    """

    number: int
    order: int | None
    keyframe: bool
    data: bytes

    def head(self) -> bytes:
        order = _NONE if self.order is None else self.order
        facts = (self.number, order, self.keyframe, len(self.data))
        return _HEAD.pack(*facts, zlib.crc32(self.data, zlib.crc32(repr(facts).encode())))


class Unfinished(NamedTuple):
    """What a stopped run has left.

    Attributes:
        path: the file.
        settings: what the run said of itself; plain values by name.
        num_frames: how many frames, from the first one on, that are complete without any later one.
        end: the place in the file where these end.
        seconds: how long it took to make them, about; 0 if that is not known.
    """

    path: Path
    settings: dict[str, Any]
    num_frames: int
    end: int
    seconds: float

    def frames(self) -> Generator[EncodedFrame, None, None]:
        """The frames that count, in the order of decoding; the file is open until `close`. Raises OSError."""
        with self.path.open("rb") as file:
            _read_settings(file)
            yield from islice(_frames(file), self.num_frames)


def beside(video: Path) -> Path:
    """The file for the frames of a video while it is not finished; hidden if its name would be too long."""
    name = f"{video.name}.unfinished"
    is_short = len(os.fsencode(name)) <= LONGEST_NAME
    return video.with_name(name if is_short else hidden_name(video.name, ".unfinished"))


def settings_beside(video: Path) -> dict[str, Any] | None:
    """What a stopped run has said of itself, as in `Unfinished`; None if nothing is left of it.

    Raises CSDError for a file of this name that is something else, or that cannot be read.
    """
    path = beside(video)
    try:
        if path.exists() and not path.is_file():  # opening a named pipe would wait for its other end
            raise ValueError
        with path.open("rb") as file:
            return _read_settings(file)
    except FileNotFoundError:
        return None
    except ValueError:
        raise CSDError(f"{path} is no unfinished video of this program: move it away, or give another output") from None
    except OSError as error:
        raise _unreadable(path, error) from error


def find_unfinished(video: Path) -> Unfinished | None:
    """What a stopped run has left of a video; None if there is nothing.

    A damaged or missing end is left out. Raises CSDError for a file of this name that is something else, or that cannot
    be read.
    """
    path, settings = beside(video), settings_beside(video)
    if settings is None:
        return None
    try:
        with path.open("rb") as file:
            _read_settings(file)
            count, end, highest = 0, file.tell(), -1
            for number, frame in enumerate(_frames(file), 1):
                highest = max(highest, frame.number)
                if highest + 1 == number:  # none of them is shown after one that is missing
                    count, end = number, file.tell()
            begun = settings.pop(_BEGUN, None)
            seconds = os.fstat(file.fileno()).st_mtime - begun if isinstance(begun, (int, float)) else 0.0
    except OSError as error:
        raise _unreadable(path, error) from error
    return Unfinished(path, settings, count, end, seconds)


def is_finished(video: Path) -> bool:
    """Whether a video is there, and no stopped run of it. Raises CSDError as `find_unfinished` does."""
    return video.is_file() and settings_beside(video) is None


def worth_resuming(video: Path) -> Unfinished | None:
    """Like `find_unfinished`, but None also for so little work that the run is begun anew without a word."""
    left = find_unfinished(video)
    return left if left and _is_work(left.num_frames, left.seconds) else None


def _is_work(num_frames: int, seconds: float) -> bool:
    """Whether these frames, which took this long, are worth keeping."""
    return num_frames >= WORTH_KEEPING or (num_frames > 0 and seconds >= WORTH_SECONDS)


def discard(video: Path) -> None:
    """Remove what a stopped run has left of a video. Raises CSDError, also for a file that is something else."""
    settings_beside(video)
    try:
        beside(video).unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(beside(video), error) from error


class Recorder:
    """Writes the frames of a video, as they are encoded, to the file beside it.

    Args:
        video: the video.
        settings: as in `Unfinished`.
        after: what an earlier run has left, which is continued; without it, that is discarded.

    Raises:
        CSDError: the file cannot be written, or something else has its name.
    """

    def __init__(self, video: Path, settings: Mapping[str, Any], after: Unfinished | None = None) -> None:
        self._path, self._continues = beside(video), after is not None
        self._began = time.monotonic()
        self._count = self._complete = after.num_frames if after else 0
        self._highest = self._count - 1
        if after is None:
            discard(video)
        try:
            self._file: BinaryIO = self._path.open("xb" if after is None else "r+b")
            if after is None:
                self._file.write(_SIGN + json.dumps({**settings, _BEGUN: time.time()}).encode() + b"\n")
                self._file.flush()
            else:
                self._file.truncate(after.end)
                self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def add(self, frame: EncodedFrame) -> None:
        """Raises OSError, also where the disk is nearly full: what room there is, the video needs."""
        if self._count % _AT_ONCE == 0 and shutil.disk_usage(self._path.parent).free < _SPARE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._file.write(frame.head())
        self._file.write(frame.data)
        self._count, self._highest = self._count + 1, max(self._highest, frame.number)
        if self._highest + 1 == self._count:
            self._complete = self._count

    def saves_work(self, num_frames: int) -> bool:
        """Whether it is worth keeping the first `num_frames` frames for a run that continues after them."""
        return self._continues or _is_work(num_frames, time.monotonic() - self._began)

    def stop(self) -> None:
        """Close the file; it remains if a run that continues it saves work."""
        with contextlib.suppress(OSError):
            self._file.close()
        if not self.saves_work(self._complete):
            self.remove()

    def remove(self) -> None:
        """Remove the file, as the video is finished."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def _unreadable(path: Path, error: OSError) -> CSDError:
    return CSDError(f"{path} cannot be read ({error.strerror or error}); check it, or move it away")


def _read_settings(file: BinaryIO) -> dict[str, Any] | None:
    """The settings at the beginning of a file; None if it ends before them. Raises ValueError if it is none of ours."""
    sign = file.read(len(_SIGN))
    line = file.readline(_LONGEST_SETTINGS)
    if not line.endswith(b"\n") and len(line) < _LONGEST_SETTINGS and _SIGN.startswith(sign):
        return None
    settings = parse_json(line.decode()) if sign == _SIGN else None
    if not isinstance(settings, dict):
        raise ValueError
    return settings


def _frames(file: BinaryIO) -> Iterator[EncodedFrame]:
    """The frames from here on, up to the file's end or to the first damaged one."""
    size = os.fstat(file.fileno()).st_size
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        number, order, keyframe, length, _ = _HEAD.unpack(head)
        if length > size - file.tell():
            return
        frame = EncodedFrame(number, None if order == _NONE else order, keyframe, file.read(length))
        if frame.head() != head:
            return
        yield frame

"""The encoded frames of a video that is not finished, in a file beside it, from which another run continues.

A video's container cannot be continued, and most cannot even be read before their end is written. So the frames are
also written, as they leave the encoder, to OUT.unfinished, which is removed when OUT is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from csd_plugin.errors import CSDError
from csd_plugin.plain import parse_json

WORTH_KEEPING = 100
"""Frames below which a stopped run leaves nothing behind."""
_SIGN = b"csd-plugin unfinished video 1\n"
_HEAD = struct.Struct("<qq?II")
"""Of an encoded frame: its number, when it is decoded, whether it is a keyframe, its bytes, and a checksum."""
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
    """

    path: Path
    settings: dict[str, Any]
    num_frames: int
    end: int

    def frames(self) -> Iterator[EncodedFrame]:
        """The frames that count, in the order of decoding. Raises OSError."""
        with self.path.open("rb") as file:
            _read_settings(file)
            yield from islice(_frames(file), self.num_frames)


def beside(video: Path) -> Path:
    """The file for the frames of a video while it is not finished."""
    return video.with_name(f"{video.name}.unfinished")


def find_unfinished(video: Path) -> Unfinished | None:
    """What a stopped run has left of a video; None if there is nothing.

    A damaged or missing end is left out. Raises CSDError for a file of this name that is something else, or that cannot
    be read.
    """
    path = beside(video)
    try:
        with path.open("rb") as file:
            settings = _read_settings(file)
            if settings is None:
                return None
            count, end, highest = 0, file.tell(), -1
            for number, frame in enumerate(_frames(file), 1):
                highest = max(highest, frame.number)
                if highest + 1 == number:  # none of them is shown after one that is missing
                    count, end = number, file.tell()
    except FileNotFoundError:
        return None
    except ValueError:
        raise CSDError(f"{path} is no unfinished video of this program: move it away, or give another output") from None
    except OSError as error:
        raise CSDError(f"{path} cannot be read ({error.strerror or error}); check it, or move it away") from error
    return Unfinished(path, settings, count, end)


class Recorder:
    """Writes the frames of a video, as they are encoded, to the file beside it.

    Args:
        video: the video.
        settings: as in `Unfinished`.
        after: what an earlier run has left, which is continued.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, video: Path, settings: Mapping[str, Any], after: Unfinished | None = None) -> None:
        self._path, self._continues = beside(video), after is not None
        self._count, self._highest, self._complete = 0, -1, 0
        if after is None:
            self._file: BinaryIO = self._path.open("wb")
            self._file.write(_SIGN + json.dumps(dict(settings)).encode() + b"\n")
            self._file.flush()
        else:
            self._file = self._path.open("r+b")
            self._file.truncate(after.end)
            self._file.seek(0, os.SEEK_END)
            self._count = self._complete = after.num_frames
            self._highest = after.num_frames - 1

    def add(self, frame: EncodedFrame) -> None:
        """Raises OSError."""
        self._file.write(frame.head())
        self._file.write(frame.data)
        self._count, self._highest = self._count + 1, max(self._highest, frame.number)
        if self._highest + 1 == self._count:
            self._complete = self._count

    def stop(self) -> None:
        """Close the file; it remains if a run that continues it saves work."""
        with contextlib.suppress(OSError):
            self._file.close()
        if not self._continues and self._complete < WORTH_KEEPING:
            self.remove()

    def remove(self) -> None:
        """Remove the file, as the video is finished."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


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

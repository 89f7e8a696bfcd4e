"""Whether a file is as long as its own header says: its end may be missing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def missing_bytes(path: Path, container: str) -> int:
    """How many bytes a file lacks at its end; 0 also where its kind, FFmpeg's name of which is given, does not tell."""
    find_end: Callable[[BinaryIO], int | None] | None
    find_end = next((function for name, function in _ENDS.items() if name in container), None)
    if find_end is None:
        return 0
    with path.open("rb") as file:
        return max(0, (find_end(file) or 0) - file.seek(0, os.SEEK_END))


def _matroska_end(file: BinaryIO) -> int | None:
    """Where the segment, which holds everything, ends; None where it was written without its size, as live streams."""
    if file.read(4) != _EBML:
        return None
    file.seek(_ebml_size(file) or 0, os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return None
    size = _ebml_size(file)
    return None if size is None else file.tell() + size


def _ebml_size(file: BinaryIO) -> int | None:
    """The variable-length integer that comes next; None for the one that means 'not known'."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    number = int.from_bytes(bytes([first[0] & (0xFF >> length)]) + rest, "big")
    return None if number == (1 << 7 * length) - 1 else number


def _boxes_end(file: BinaryIO) -> int | None:
    """Where the last box of an MP4 or QuickTime file ends."""
    total, at = file.seek(0, os.SEEK_END), 0
    while at + 8 <= total:
        file.seek(at)
        size = int.from_bytes(file.read(4), "big")
        file.read(4)
        if size == 1:
            size = int.from_bytes(file.read(8), "big")
        if size < 8:  # 0: up to the end of the file, whichever that is
            return None
        at += size
    return at


def _riff_end(file: BinaryIO) -> int | None:
    """Where the first RIFF chunk ends, which of files up to 1 GB is all."""
    if file.read(4) != b"RIFF":
        return None
    return 8 + int.from_bytes(file.read(4), "little")


_ENDS = {"matroska": _matroska_end, "mp4": _boxes_end, "avi": _riff_end}

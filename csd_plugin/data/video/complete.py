"""Checks whether a file can be read completely: its end may be missing, other files may be appended to it, and parts of
it may be damaged in a way that readers skip silently."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_CLUSTER = b"\x1f\x43\xb6\x75"
_PARTS = {
    *(_CLUSTER, b"\x11\x4d\x9b\x74", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b", b"\x1c\x53\xbb\x6b"),
    *(b"\x19\x41\xa4\x69", b"\x10\x43\xa7\x70", b"\x12\x54\xc3\x67"),
}
"""The parts of a segment: clusters of frames, and SeekHead, Info, Tracks, Cues, Attachments, Chapters, Tags."""
_FILLING = {b"\xec", b"\xbf"}
"""Void and CRC-32, which may be anywhere."""
_OF_CLUSTERS = {b"\xe7", b"\xa7", b"\xab", b"\xa3", b"\xa0", b"\xaf", b"\x58\x54", *_FILLING}
"""The parts of a cluster: Timestamp, Position, PrevSize, SimpleBlock, BlockGroup, EncryptedBlock, SilentTracks."""
_TRACKS, _TRACK_ENTRY, _TRACK_NUMBER = b"\x16\x54\xae\x6b", b"\xae", b"\xd7"
_SIMPLE_BLOCK, _BLOCK_GROUP, _BLOCK = b"\xa3", b"\xa0", b"\xa1"
_READ_SEGMENTS = 2
"""How many joined Matroska files FFmpeg reads."""
_HEADERS = {"asf": 16, "flv": 13, "apng": 16}
"""Length of the header, in bytes, of formats of which FFmpeg reads only the first of joined files."""
_CHUNK = 2**22


class Extent(NamedTuple):
    """The difference between a file and what its header says.

    Attributes:
        missing: bytes missing at its end.
        unread: files appended to it, which readers skip.
        broken: byte at which its structure is broken, so that readers leave frames out; None if it is not.
    """

    missing: int
    unread: int
    broken: int | None = None


def extent_of(path: Path, container: str) -> Extent:
    """What a file's structure shows; nothing for containers (FFmpeg's names) whose structure is not examined."""
    find = next((function for name, function in _FINDERS.items() if name in container), None)
    with path.open("rb") as file:
        if find is not None:
            end, unread = find(file)
            broken = _broken_matroska(file) if find is _matroska else None
            return Extent(max(0, (end or 0) - _length(file)), unread, broken)
        header = next((length for name, length in _HEADERS.items() if name == container), 0)
        return Extent(0, _count(file, file.read(header)) - 1 if header else 0)


_Found = tuple[int | None, int]
"""Where the file should end, or None if unknown, and the number of joined files that are not read."""


def _matroska(file: BinaryIO) -> _Found:
    """Joined files consist of consecutive segments, each of which holds everything of one file."""
    end, segments, length = 0, 0, _length(file)
    while end < length:
        file.seek(end)
        if file.read(4) != _EBML:
            break
        file.seek(_ebml_size(file) or 0, os.SEEK_CUR)
        size = _ebml_size(file) if file.read(4) == _SEGMENT else None
        if size is None:  # the size is unknown, as in live streams
            return None, 0
        end, segments = file.tell() + size, segments + 1
    return end, max(0, segments - _READ_SEGMENTS)


def _broken_matroska(file: BinaryIO) -> int | None:
    """The first place in a file of one segment where no element can begin, or where one is longer than its parent.

    Or where there is a block of an unknown track, which readers leave out.
    """
    file.seek(4)
    file.seek(_ebml_size(file) or 0, os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return None
    segment, length = _ebml_size(file), _length(file)
    at = file.tell()
    if segment is not None and at + segment > length:
        return None  # the end is missing
    end = length if segment is None else at + segment
    inside, in_cluster = end, False  # the end of the current element: the segment, or a cluster
    tracks: set[int] = set()
    while at < end:
        if at >= inside:
            inside, in_cluster = end, False
        file.seek(at)
        name = _ebml_name(file)
        if segment is None and (name == _EBML or _is_over(file)):
            return None
        if name in _PARTS:  # these end a cluster of unknown size
            inside, in_cluster = end, name == _CLUSTER
        elif name is None or (name not in _OF_CLUSTERS if in_cluster else name not in _FILLING and len(name) < 4):
            return at
        size = _ebml_size(file)
        begin = file.tell()
        if name == _CLUSTER:
            inside = end if size is None else begin + size
            if inside > length:
                return None  # the end is missing
            at = begin
        elif size is None or begin + size > inside:
            return at if inside < length or _goes_on(file) else None
        else:
            if name == _TRACKS:
                tracks |= _track_numbers(file, begin + size)
            elif tracks and name in (_SIMPLE_BLOCK, _BLOCK_GROUP) and not _is_of(file, name, begin + size, tracks):
                return at
            at = begin + size
    return None


def _track_numbers(file: BinaryIO, end: int) -> set[int]:
    """The numbers of the tracks that are described from here to `end`."""
    return {
        int.from_bytes(file.read(length), "big")
        for entry, size in _children(file, end)
        if entry == _TRACK_ENTRY
        for name, length in _children(file, file.tell() + size)
        if name == _TRACK_NUMBER
    }


def _is_of(file: BinaryIO, name: bytes, end: int, tracks: set[int]) -> bool:
    """Whether the block, or group of one, whose content begins here belongs to one of the tracks."""
    if name == _BLOCK_GROUP and not any(child == _BLOCK for child, _ in _children(file, end)):
        return False
    return _ebml_size(file) in tracks  # track numbers are encoded like sizes


def _children(file: BinaryIO, end: int) -> Iterator[tuple[bytes, int]]:
    """Name and size of each element from here to `end`; at each, the file is positioned at its content."""
    at = file.tell()
    while at < end:
        file.seek(at)
        name, size = _ebml_name(file), _ebml_size(file)
        if name is None or size is None:
            return
        at = file.tell() + size
        if at > end:
            return
        yield name, size


def _goes_on(file: BinaryIO) -> bool:
    """Whether another cluster follows: then an element that is longer than the file is damaged, not cut short."""
    before = b""
    while rest := file.read(_CHUNK):
        if _CLUSTER in before + rest:
            return True
        before = rest[1 - len(_CLUSTER) :]
    return False


def _is_over(file: BinaryIO) -> bool:
    """Whether only zeros follow, or nothing: reserved space that an ended live recording has left."""
    at, rest = file.tell(), file.read(1)
    if rest == b"\0":
        rest = file.read(_CHUNK)
    file.seek(at)
    return not rest.strip(b"\0")


def _ebml_name(file: BinaryIO) -> bytes | None:
    """The identifier of the next element, one to four bytes; None if there is none."""
    first = file.read(1)
    if not first or first[0] < 0x10:
        return None
    return first + file.read(8 - first[0].bit_length())


def _ebml_size(file: BinaryIO) -> int | None:
    """The next variable-length integer; None for the one that means 'unknown'."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    number = int.from_bytes(bytes([first[0] & (0xFF >> length)]) + rest, "big")
    return None if number == (1 << 7 * length) - 1 else number


def _boxes(file: BinaryIO) -> _Found:
    """MP4 and QuickTime: a second index belongs to another file, except among fragments, where it may be repeated."""
    total, at = _length(file), 0
    kinds: list[bytes] = []
    while at + 8 <= total:
        file.seek(at)
        size, kind = int.from_bytes(file.read(4), "big"), file.read(4)
        if size == 1:
            size = int.from_bytes(file.read(8), "big")
        kinds.append(kind)
        if size < 8:  # 0: up to the end of the file, wherever that is
            at = total
            break
        at += size
    return at, 0 if b"moof" in kinds else max(0, kinds.count(b"moov") - 1)


def _riff(file: BinaryIO) -> _Found:
    """The first RIFF chunk, which is the whole file up to 1 GB."""
    head = file.read(8)
    return (8 + int.from_bytes(head[4:], "little") if head[:4] == b"RIFF" else None), 0


def _count(file: BinaryIO, header: bytes) -> int:
    """How many times the header occurs in the file."""
    file.seek(0)
    count, tail = 0, b""
    while chunk := file.read(_CHUNK):
        count += (tail + chunk).count(header)
        tail = chunk[1 - len(header) :]
    return count


def _length(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


_FINDERS: dict[str, Callable[[BinaryIO], _Found]] = {"matroska": _matroska, "mp4": _boxes, "avi": _riff}

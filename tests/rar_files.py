"""RAR archives without compression, for tests; no free program writes them, and none writes evil ones."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import pytest

from csd_plugin.data.archives import rar_libraries
from csd_plugin.errors import CSDError


def need_rar_reader() -> None:
    """Skip the test where RAR archives cannot be read."""
    try:
        rar_libraries()
    except CSDError as error:
        pytest.skip(str(error))


@dataclass(frozen=True)
class RarEntry:
    """link: data is the path that a symbolic link leads to. encrypted: says that it is, whatever it holds."""

    name: str
    data: bytes
    link: bool = False
    encrypted: bool = False


def rar4(entries: list[RarEntry]) -> bytes:
    parts = [b"Rar!\x1a\x07\x00", _block4(0x73, 0, bytes(6))]
    for entry in entries:
        name = entry.name.replace("/", "\\").encode()
        size, checksum = len(entry.data), zlib.crc32(entry.data)
        mode = 0o120777 if entry.link else 0o100644
        unix = 3
        fields = struct.pack("<IIBIIBBHI", size, size, unix, checksum, 0, 20, 0x30, len(name), mode) + name
        parts += [_block4(0x74, 0x8000 | 0x4 * entry.encrypted, fields), entry.data]
    return b"".join([*parts, _block4(0x7B, 0x4000, b"")])


def _block4(kind: int, flags: int, fields: bytes) -> bytes:
    header = struct.pack("<BHH", kind, flags, 7 + len(fields)) + fields
    return struct.pack("<H", zlib.crc32(header) & 0xFFFF) + header


def rar5(entries: list[RarEntry]) -> bytes:
    parts = [b"Rar!\x1a\x07\x01\x00", _block5(1, b"", b"", _vint(0))]
    for entry in entries:
        name = entry.name.encode()
        data = b"" if entry.link else entry.data
        extra = b""
        if entry.link:
            extra += _record(5, _vint(1) + _vint(0) + _vint(len(entry.data)) + entry.data)
        if entry.encrypted:
            extra += _record(1, _vint(0) + _vint(0) + b"\x0f" + bytes(32))
        fields = _vint(4) + _vint(len(data)) + _vint(0o100644) + struct.pack("<I", zlib.crc32(data))
        parts += [_block5(2, extra, data, fields + _vint(0) + _vint(1) + _vint(len(name)) + name), data]
    return b"".join([*parts, _block5(5, b"", b"", _vint(0))])


def _block5(kind: int, extra: bytes, data: bytes, fields: bytes) -> bytes:
    sizes = (_vint(len(extra)) if extra else b"") + (_vint(len(data)) if data else b"")
    body = _vint(kind) + _vint(bool(extra) + 2 * bool(data)) + sizes + fields + extra
    header = _vint(len(body)) + body
    return struct.pack("<I", zlib.crc32(header)) + header


def _record(kind: int, fields: bytes) -> bytes:
    body = _vint(kind) + fields
    return _vint(len(body)) + body


def _vint(number: int) -> bytes:
    out = []
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])

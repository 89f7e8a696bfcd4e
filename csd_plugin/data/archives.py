"""Archives of frames read as a stream: RAR 4 and 5 by rarfile and libarchive, ZIP and TAR by the standard library.

Archives are untrusted. Nothing here writes a file, and entries that no honest archive of frames contains raise a
CSDError: names that lead outside the folder they are unpacked into, links, encryption, absurd sizes.
"""

from __future__ import annotations

import io
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from csd_plugin.errors import CSDError
from csd_plugin.extras import needed_by

ARCHIVE_SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tbz2", ".txz", ".tar", ".zip", ".rar")

OTHER_SUFFIXES = (".7z", ".zst", ".tzst", ".lz4", ".lz", ".lzma", ".ace", ".arj", ".cab", ".cpio", ".iso", ".z", ".sit")
"""Suffixes of archives that are recognised but not read."""
_OTHERS = {
    b"7z\xbc\xaf\x27\x1c": "7z", b"\x28\xb5\x2f\xfd": "Zstandard", b"\x04\x22\x4d\x18": "LZ4", b"LZIP": "lzip",
    b"MSCF": "CAB", b"!<arch>": "ar", b"\x1f\x9d": "compress", b"07070": "cpio", b"\x60\xea": "ARJ",
}  # fmt: skip
"""The first bytes of such archives, and what they are called."""

_RAR4, _RAR5, _ZIP = b"Rar!\x1a\x07\x00", b"Rar!\x1a\x07\x01\x00", (b"PK\x03\x04", b"PK\x05\x06")

_MAX_ENTRY = 256 * 2**20
"""The most bytes of an unpacked entry; a 16-bit 8K frame takes 200 MB."""
_MAX_ENTRIES = 100_000
"""The most entries of an archive; an hour of video at 25 frames per second has 90,000."""
_LONGEST_NAME = 4096
"""The most characters of an entry's path: Linux's limit for any path."""
_MAX_LIST = 64 * 2**20
"""The most bytes of a ZIP's list of entries, which is read as a whole."""
_MAX_RATIO, _ALWAYS_ALLOWED = 100, 2**30
_ENTRY_OVERHEAD = 1024
_CHUNK = 256 * 2**10
_ZIP_END, _ZIP64 = struct.Struct("<4s6xH10x"), 0xFFFF
_MAX_TAIL = 32 * 2**20

_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,  # a compression that zipfile does not know
    UnicodeError,
    OverflowError,
)
"""What the standard library raises for damaged files, in addition to OSError."""


@dataclass(frozen=True)
class Member:
    """One file of an archive.

    Attributes:
        name: its path inside, '/' separated, without '.' and '..'.
        size: in bytes.
        read: returns its content; call it before the next member is requested. Raises CSDError for damage.
    """

    name: str
    size: int
    read: Callable[[], bytes]


def is_archive_name(name: str) -> bool:
    """Whether a file of this name is an archive that `members` reads."""
    return archive_stem(name) != name


def archive_stem(name: str) -> str:
    """The name without the suffix, `t1_GT` of `t1_GT.tar.gz`; names of other files unchanged."""
    suffix = next((suffix for suffix in ARCHIVE_SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)] or name


def is_other_archive_name(name: str) -> bool:
    """Whether a file of this name is an archive of a kind that is not read."""
    return name.lower().endswith(OTHER_SUFFIXES)


def unread_kind(path: Path, kind: str = "") -> CSDError:
    """The error for an archive of a kind that is not read."""
    what = f"{kind} archives are" if kind else "archives of this kind are"
    return CSDError(f"{path}: {what} not supported, only ZIP, RAR and TAR: unpack it yourself and give the folder")


def members(path: Path) -> Iterator[Member]:
    """The files of an archive in their order, without folders; the content decides which kind of archive it is.

    Raises CSDError for a file that is not an archive, or is damaged, encrypted or not to be trusted.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
        size = path.stat().st_size
    except OSError as error:
        raise CSDError(f"{path}: cannot be read ({error.strerror}): check the path and its permissions") from error
    if other := next((kind for magic, kind in _OTHERS.items() if start.startswith(magic)), ""):
        raise unread_kind(path, other)
    if start.startswith((_RAR4, _RAR5)):
        found = _rar_members(path, "rar5" if start.startswith(_RAR5) else "rar")
    elif start.startswith(_ZIP):
        found = _zip_members(path)
    else:
        found = _tar_members(path)

    unpacked = 0
    for member in found:
        unpacked += member.size + _ENTRY_OVERHEAD
        if member.size > _MAX_ENTRY:
            raise CSDError(
                f"{path}: {member.name} unpacks to {member.size} bytes, too many for a frame: unpack it yourself"
            )
        if unpacked > _ALWAYS_ALLOWED + _MAX_RATIO * size:
            raise CSDError(f"{path}: {size} bytes unpack to over {unpacked}, too many for images: unpack it yourself")
        yield member


# --- RAR ----------------------------------------------------------------------------------------------------------

# rarfile reads all headers; libarchive unpacks, but does not check the checksums of stored (uncompressed) files.


def _rar_members(path: Path, kind: str) -> Iterator[Member]:
    libarchive, rarfile = rar_libraries()
    with _damage_as_one_line(path, libarchive.ArchiveError, rarfile.Error):
        headers = _rar_headers(path, rarfile)
        with libarchive.file_reader(str(path), format_name=kind, filter_name="none") as entries:
            for header, entry in zip_longest(headers, entries):
                if header is None or entry is None:
                    raise CSDError(f"{path}: damaged: its two readers find different files: get the archive again")
                if not header.is_dir():
                    read = _reader_of_rar(path, header, entry, libarchive.ArchiveError)
                    yield Member(_inner_name(path, header.filename), header.file_size, read)


def _rar_headers(path: Path, rarfile: Any) -> list[Any]:
    kinds: list[int] = []

    def note(block: Any) -> None:
        kinds.append(block.type)
        _check_count(path, len(kinds))

    with rarfile.RarFile(path, errors="strict", info_callback=note) as listing:
        headers = listing.infolist()
        if listing.needs_password() and not headers:
            raise CSDError(f"{path}: encrypted: unpack the archive yourself and give the folder")
        if len(listing.volumelist()) > 1:
            raise CSDError(f"{path}: one of several volumes: unpack them yourself, and give the folder")
    if not {rarfile.RAR_BLOCK_ENDARC, rarfile.RAR5_BLOCK_ENDARC}.intersection(kinds):
        raise CSDError(f"{path}: ends early, or was made by a RAR before 3: get it again, or unpack it yourself")
    for header in headers:
        name, link = _inner_name(path, header.filename), header.is_symlink() or bool(header.file_redir)
        _refuse(path, name, link=link, encrypted=header.needs_password())
    return headers


def _reader_of_rar(path: Path, header: Any, entry: Any, damage: type[Exception]) -> Callable[[], bytes]:
    def read() -> bytes:
        with _damage_as_one_line(path, damage):
            chunks, size = [], 0
            for chunk in entry.get_blocks(_CHUNK):
                chunks.append(chunk)
                size += len(chunk)
                if size > header.file_size:
                    break
            data = b"".join(chunks)
            if size != header.file_size or (header.CRC is not None and zlib.crc32(data) != header.CRC):
                raise CSDError(f"{path}: {header.filename} is damaged: get the archive again")
            return data

    return read


def rar_libraries() -> tuple[Any, Any]:
    """The modules (libarchive, rarfile). Raises CSDError that says what to install."""
    try:
        with needed_by("a RAR archive"):
            import libarchive
            import rarfile
    except (OSError, AttributeError, TypeError) as error:  # what ctypes raises without the C library
        raise CSDError(
            "RAR archives need the system's libarchive: apt-get install libarchive13 (Ubuntu 24.04 and later: "
            "libarchive13t64), brew install libarchive or conda install libarchive"
        ) from error
    rarfile.RAR_MAX_COMMENT = -1  # comments of archives would be unpacked by whatever unrar is on the PATH
    return libarchive, rarfile


# --- ZIP ----------------------------------------------------------------------------------------------------------


def _zip_members(path: Path) -> Iterator[Member]:
    with _damage_as_one_line(path), _ZipFile(path) as file, zipfile.ZipFile(file) as archive:
        file.is_listed = True
        _check_count(path, len(archive.infolist()))
        if len(archive.infolist()) != _counted_in_zip(path, archive):
            raise CSDError(f"{path}: its list of files is damaged: get the archive again")
        for info in archive.infolist():
            name = _inner_name(path, info.orig_filename)  # `filename` ends at a NUL
            kind = stat.S_IFMT(info.external_attr >> 16)
            _refuse(
                path,
                name,
                link=kind == stat.S_IFLNK,
                special=kind not in (0, stat.S_IFREG, stat.S_IFDIR),
                encrypted=info.flag_bits & 1,
            )
            archive.open(info).close()  # compares the two copies of its name, which no checksum covers
            if not info.is_dir():
                yield Member(name, info.file_size, _reader_of_zip(path, archive, info))


class _ZipFile(io.FileIO):
    """A ZIP's file; while its entries are being listed, a read that is too long for a list of frames is refused."""

    is_listed = False

    def read(self, size: int | None = -1, /) -> bytes:
        if not self.is_listed and (size or 0) > _MAX_LIST:
            raise zipfile.BadZipFile("its list of files is too long")
        return super().read(-1 if size is None else size) or b""


def _counted_in_zip(path: Path, archive: zipfile.ZipFile) -> int:
    """The number of files that the archive states, which zipfile does not compare with what it finds."""
    with path.open("rb") as file:
        file.seek(-_ZIP_END.size - len(archive.comment), os.SEEK_END)
        signature, count = _ZIP_END.unpack(file.read(_ZIP_END.size))
    if signature == _ZIP[1] and count == _ZIP64:
        return len(archive.infolist())
    return count if signature == _ZIP[1] else -1


def _reader_of_zip(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        with _damage_as_one_line(path):
            return archive.read(info)

    return read


# --- TAR ----------------------------------------------------------------------------------------------------------


class _StrictTarInfo(tarfile.TarInfo):
    """A header that is strict about the end: tarfile takes any non-header for it, here only a block of zeros is."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _StrictTarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError("it is damaged, ends early, or is not an archive") from error


def _tar_members(path: Path) -> Iterator[Member]:
    with _damage_as_one_line(path), tarfile.open(path, tarinfo=_StrictTarInfo) as archive:
        for number, info in enumerate(archive, 1):
            _check_count(path, number)
            name = _inner_name(path, info.name)
            _refuse(path, name, link=info.issym() or info.islnk(), special=info.isdev())
            if info.isfile():
                yield Member(name, info.size, _reader_of_tar(path, archive, info))
        # The checksums of compressed archives come last, behind what tarfile looks at.
        assert archive.fileobj is not None
        if len(archive.fileobj.read(_MAX_TAIL)) == _MAX_TAIL:
            raise CSDError(f"{path}: more than {_MAX_TAIL >> 20} MB after its end: archive not trusted")


def _reader_of_tar(path: Path, archive: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        with _damage_as_one_line(path):
            file = archive.extractfile(info)
            data = b"" if file is None else file.read()
            if len(data) != info.size:
                raise CSDError(f"{path}: {info.name} ends early: get the archive again")
            return data

    return read


# --- all kinds ----------------------------------------------------------------------------------------------------


@contextmanager
def _damage_as_one_line(path: Path, *damage: type[Exception]) -> Iterator[None]:
    """Turn all errors that mean damage into a CSDError of one line; `damage`: further types of them."""
    kinds: tuple[type[Exception], ...] = (OSError, *_DAMAGE, *damage)
    try:
        yield
    except kinds as error:
        text = getattr(error, "msg", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = " ".join(str(text).split())
        raise CSDError(
            f"{path}: cannot be unpacked ({reason}): get it again, or unpack it yourself and give the folder"
        ) from error


def _check_count(path: Path, number: int) -> None:
    if number > _MAX_ENTRIES:
        raise CSDError(f"{path}: more than {_MAX_ENTRIES:,} files: unpack it yourself and give the folder")


def _refuse(path: Path, name: str, link: bool, special: bool = False, encrypted: bool | int = False) -> None:
    if encrypted:
        raise CSDError(f"{path}: {name!r} is encrypted: unpack the archive yourself and give the folder")
    if link:
        raise CSDError(f"{path}: {name!r} is a link, and links are not followed: give an archive of plain files")
    if special:
        raise CSDError(f"{path}: {name!r} is a device or pipe: give an archive of plain files")


def _inner_name(path: Path, name: str) -> str:
    """The name with '/' between folders, if it stays inside. Backslashes separate folders in names from Windows."""
    if len(name) > _LONGEST_NAME:
        raise CSDError(f"{path}: an entry's name has {len(name):,} characters: archive not trusted")
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or re.match("[A-Za-z]:", name) or not name.isprintable():
        raise CSDError(
            f"{path}: entry {name!r} leads outside the archive's folder or cannot be printed: archive not trusted"
        )
    return "/".join(part for part in parts if part not in ("", "."))

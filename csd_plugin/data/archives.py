"""Archives of frames read as a stream: RAR 4 and 5 by libarchive, ZIP and TAR by the standard library.

Archives come from strangers. Nothing here writes a file, and entries that no honest archive of frames has end the
reading with a CSDError: names that lead outside the folder they are unpacked into, links, encryption, absurd sizes.
"""

from __future__ import annotations

import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csd_plugin.errors import CSDError

ARCHIVE_SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tbz2", ".txz", ".tar", ".zip", ".rar")

_RAR4, _RAR5, _ZIP = b"Rar!\x1a\x07\x00", b"Rar!\x1a\x07\x01\x00", (b"PK\x03\x04", b"PK\x05\x06")

# Frames hardly shrink, 16-bit ones of 8K take 200 MB, and an entry without content costs us memory too.
_MAX_ENTRY = 256 * 2**20
_MAX_RATIO, _ALWAYS_ALLOWED = 100, 2**30
_ENTRY_OVERHEAD = 1024
_CHUNK = 256 * 2**10

# What the standard library raises for damaged files, besides OSError.
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


@dataclass(frozen=True)
class Member:
    """One file of an archive.

    name: its path inside, '/' separated, without '.' and '..'.
    size: in bytes.
    read: its content, to be called before the next member is asked for. Raises CSDError for damage.
    """

    name: str
    size: int
    read: Callable[[], bytes]


def is_archive_name(name: str) -> bool:
    """Whether a file of this name is an archive that `members` reads."""
    return archive_stem(name) != name


def archive_stem(name: str) -> str:
    """The name without the suffix, `t1_GT` of `t1_GT.tar.gz`; names of other files as they are."""
    suffix = next((suffix for suffix in ARCHIVE_SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)] or name


def members(path: Path) -> Iterator[Member]:
    """The files of an archive in their order, folders left out; its content decides what kind it is.

    Raises CSDError for what is no archive, is damaged, encrypted or not to be trusted.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
        size = path.stat().st_size
    except OSError as error:
        raise CSDError(f"{path}: cannot be read ({error.strerror}): check the path and its permissions") from error
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
            raise CSDError(f"{path}: {member.name} unpacks to {member.size} bytes, which no frame has: not unpacked")
        if unpacked > _ALWAYS_ALLOWED + _MAX_RATIO * size:
            raise CSDError(f"{path}: {size} bytes unpack to more than {unpacked}, as no images do: not unpacked")
        yield member


# --- RAR ----------------------------------------------------------------------------------------------------------


def _rar_members(path: Path, kind: str) -> Iterator[Member]:
    libarchive = _libarchive()
    is_encrypted = libarchive.ffi.ffi("entry_is_encrypted", [libarchive.ffi.c_archive_entry_p], libarchive.ffi.c_int)
    with (
        _said_in_one_line(path, libarchive.ArchiveError),
        libarchive.file_reader(str(path), format_name=kind, filter_name="none") as entries,
    ):
        for entry in entries:
            name = _inner_name(path, str(entry.pathname))
            _refuse(path, name, link=entry.issym or entry.islnk, encrypted=is_encrypted(entry._entry_p))
            if not entry.isdir:
                yield Member(name, entry.size or 0, _reader_of_rar(path, entry, libarchive.ArchiveError))


def _reader_of_rar(path: Path, entry: Any, damage: type[Exception]) -> Callable[[], bytes]:
    def read() -> bytes:
        with _said_in_one_line(path, damage):
            expected, chunks, size = entry.size, [], 0
            for chunk in entry.get_blocks(_CHUNK):
                chunks.append(chunk)
                size += len(chunk)
                if size > (_MAX_ENTRY if expected is None else expected):
                    break
            if (expected is not None and size != expected) or size > _MAX_ENTRY:
                raise CSDError(f"{path}: {entry.pathname} is not as long as it says: get the archive again")
            return b"".join(chunks)

    return read


def _libarchive() -> Any:
    try:
        import libarchive
    except ModuleNotFoundError as error:
        raise CSDError("RAR archives are read by libarchive-c: pip install 'csd-plugin[archives]'") from error
    except (OSError, AttributeError, TypeError) as error:  # how ctypes says that the C library is not there
        raise CSDError(
            "RAR archives need the system's libarchive: apt-get install libarchive13 (Ubuntu 24.04 and on: "
            "libarchive13t64), brew install libarchive or conda install libarchive"
        ) from error
    return libarchive


# --- ZIP ----------------------------------------------------------------------------------------------------------


def _zip_members(path: Path) -> Iterator[Member]:
    with _said_in_one_line(path), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = _inner_name(path, info.filename)
            _refuse(path, name, link=stat.S_ISLNK(info.external_attr >> 16), encrypted=info.flag_bits & 1)
            if not info.is_dir():
                yield Member(name, info.file_size, _reader_of_zip(path, archive, info))


def _reader_of_zip(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        with _said_in_one_line(path):
            return archive.read(info)

    return read


# --- TAR ----------------------------------------------------------------------------------------------------------


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes whatever is no header for the archive's end; here only the real one, a block of zeros, is."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _StrictTarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError("it is damaged, ends early, or is no archive") from error


def _tar_members(path: Path) -> Iterator[Member]:
    with _said_in_one_line(path), tarfile.open(path, tarinfo=_StrictTarInfo) as archive:
        for info in archive:
            name = _inner_name(path, info.name)
            _refuse(path, name, link=info.issym() or info.islnk())
            if info.isfile():
                yield Member(name, info.size, _reader_of_tar(path, archive, info))


def _reader_of_tar(path: Path, archive: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        with _said_in_one_line(path):
            file = archive.extractfile(info)
            data = b"" if file is None else file.read()
            if len(data) != info.size:
                raise CSDError(f"{path}: {info.name} ends early: get the archive again")
            return data

    return read


# --- all kinds ----------------------------------------------------------------------------------------------------


@contextmanager
def _said_in_one_line(path: Path, damage: type[Exception] = zipfile.BadZipFile) -> Iterator[None]:
    """Make CSDErrors of all errors that mean damage; `damage`: one more of them."""
    try:
        yield
    except (OSError, damage, *_DAMAGE) as error:
        text = getattr(error, "msg", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = " ".join(str(text).split())
        raise CSDError(f"{path}: cannot be unpacked ({reason}): get the archive again") from error


def _refuse(path: Path, name: str, link: bool, encrypted: bool | int = False) -> None:
    if encrypted:
        raise CSDError(f"{path}: {name!r} is encrypted: unpack the archive yourself, and give the folder")
    if link:
        raise CSDError(f"{path}: {name!r} is a link, which is not followed: give an archive of plain files")


def _inner_name(path: Path, name: str) -> str:
    """The name with '/' between folders, if it stays inside. Backslashes separate folders in names from Windows."""
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or re.match("[A-Za-z]:", name) or "\0" in name:
        raise CSDError(f"{path}: entry {name!r} leads outside the archive's folder: this archive is not to be trusted")
    return "/".join(part for part in parts if part not in ("", "."))

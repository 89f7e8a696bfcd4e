"""Frames in LMDB.

A store is a folder NAME.lmdb of two files:

    data.mdb       frames: key without its suffix -> value; in a second database, `csd`, key -> record (JSON)
    meta_info.txt  one line per frame in BasicSR's format: `a1_GT/00001.jpg (480,640,3) 1`

The store's encoding says what a value is:

    source  the image file's bytes, untouched
    png     the frame as PNG, 8-bit RGB
    raw     the frame's pixels, uint8 RGB, row after row

While a store is being built, it is NAME.lmdb.partial. BasicSR's FileClient opens `source` and `png` stores; its data
sets need rain and truth in two stores with equal keys, which `data.toolbox` builds. Stores made by BasicSR's tools,
which have no records, can be read here too, through their meta_info.txt.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from csd_plugin.data.layout import LMDB_DATA
from csd_plugin.data.links import refuse_way_out
from csd_plugin.data.stores.interface import DecodingStore, FrameStore
from csd_plugin.errors import CSDError
from csd_plugin.plain import parse_json, plain_text, read_text, section, section_of, whole_number

try:
    import lmdb
except ModuleNotFoundError as error:
    raise CSDError("LMDB stores need the package lmdb: pip install lmdb") from error

ENCODINGS = ("source", "png", "raw")
DATA, META_INFO = LMDB_DATA, "meta_info.txt"
RECORDS = b"csd"
HEADER_KEY = b"\0"
"""A key that no frame has."""
_FORMAT = 1
_LONGEST, _LARGEST = 2**31 - 1, 2**40
"""The most pixels of a frame's side, and the most bytes of its value."""


@dataclass(frozen=True)
class Header:
    """Facts about the whole store.

    Attributes:
        within: the path of the source's folder, from its split folder on; see `layout.tail_from_split`.
    """

    encoding: str
    within: str
    complete: bool

    def dump(self) -> bytes:
        return json.dumps({"format": _FORMAT, **asdict(self)}).encode()


@dataclass(frozen=True)
class Record:
    """Facts about a frame.

    Attributes:
        size: of the value, in bytes.
        source, value: SHA-256 of the source image file, and of the value.
    """

    suffix: str
    height: int
    width: int
    size: int
    source: str
    value: str

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def meta_info(self, key: str, encoding: str) -> str:
        """The line of meta_info.txt; its last number is the PNG compression level."""
        return f"{key}{self.suffix} ({self.height},{self.width},3) {int(encoding == 'png')}"


_OF_HEADER, _OF_RECORD = (frozenset(field.name for field in fields(kind)) for kind in (Header, Record))
_SUFFIX = re.compile(r"\.[^./]+")


def key_of(data: bytes, folder: Path) -> str:
    """The key of a frame in a store. Raises CSDError, beginning with the store's folder, if no build writes it."""
    try:
        key = data.decode()
    except UnicodeDecodeError as error:
        raise damaged(folder) from error
    if not key.isprintable():
        raise damaged(folder)
    return key


def split_key(key: str) -> tuple[str, str]:
    """'a1_GT/00001.jpg' -> ('a1_GT/00001', '.jpg')."""
    stem, dot, suffix = key.rpartition(".")
    return stem, dot + suffix


def parse_header(data: bytes, folder: Path) -> Header:
    """The header in JSON. Raises CSDError, beginning with the store's folder, if it is not one of this version."""
    content = _parse_json(data, folder)
    if content.pop("format", None) != _FORMAT:
        raise CSDError(f"{folder}: not a store of this version of `csd prepare`: remove it, and build it again")
    try:
        header = Header(**section_of(content, "the header", _OF_HEADER))
        plain_text(header.within, "within")
    except ValueError as error:
        raise damaged(folder) from error
    if header.encoding not in ENCODINGS or not isinstance(header.complete, bool):
        raise damaged(folder)
    return header


def parse_record(data: bytes, folder: Path) -> Record:
    """The record in JSON. Raises CSDError, beginning with the store's folder, if it is not a record."""
    content = _parse_json(data, folder)
    try:
        record = Record(**section_of(content, "a record", _OF_RECORD))
        for text in (record.suffix, record.source, record.value):
            plain_text(text, "a text")
        if not (_SUFFIX.fullmatch(record.suffix) and record.suffix.isprintable()):
            raise ValueError(f"suffix is {record.suffix!r}")
        for side in (record.height, record.width):
            whole_number(side, "a side", 1, _LONGEST)
        whole_number(record.size, "size", 0, _LARGEST)
    except ValueError as error:
        raise damaged(folder) from error
    return record


def _parse_json(data: bytes, folder: Path) -> dict[str, Any]:
    try:
        return section(parse_json(bytes(data)), "it")
    except ValueError as error:
        raise damaged(folder) from error


_environments: WeakValueDictionary[tuple[int, int], lmdb.Environment] = WeakValueDictionary()


def environment(folder: Path) -> lmdb.Environment:
    """LMDB's handle of a finished store; the same one for the same file, as LMDB must not open it twice in a process.

    It is closed when nothing refers to it any more. A forked process goes on with its parent's: without locks, which a
    finished store does not need, reading only accesses the map.

    Raises lmdb.Error and OSError, and CSDError if another reader has opened the store: BasicSR's FileClient before
    `activate()`, which makes it take the handle from here.
    """
    status = (folder / DATA).stat()
    identity = status.st_dev, status.st_ino
    env = _environments.get(identity)
    if env is None:
        # With the system's readahead, as values span many pages: without it, a crop is read page by page.
        try:
            env = lmdb.Environment(os.fsencode(folder), readonly=True, lock=False, create=False, max_dbs=1)
        except lmdb.Error as error:
            if "already open" not in str(error):
                raise
            raise CSDError(
                f"{folder}: another reader, such as BasicSR's FileClient, has opened it in this process; call "
                f"csd_plugin.activate() before that, so that they share it"
            ) from error
        _environments[identity] = env
    return env


class LmdbFile:
    """An open store of `csd prepare`, for reading. Use `open_file`.

    It is never closed, as the arrays that it has given out are views into its map.
    """

    def __init__(self, folder: Path, env: lmdb.Environment, original: Original) -> None:
        self.folder, self._env, self.original = folder, env, original
        with _reading(folder):
            self._values = env.begin(buffers=True)
            self._records = env.begin(db=env.open_db(RECORDS, create=False))
            header = self._records.get(HEADER_KEY)
        self.header = parse_header(header or b"{}", folder)
        if not self.header.complete:
            raise CSDError(f"{folder}: the store is incomplete: run `csd prepare` again to complete it")

    def value(self, key: str) -> memoryview | None:
        """The value of the key (without suffix), as a view into the map, or None."""
        with _reading(self.folder):
            self.original.check()
            return self._values.get(key.encode())

    def record(self, key: str) -> Record | None:
        """The frame's record, by its key without suffix."""
        with _reading(self.folder):
            self.original.check()
            data = self._records.get(key.encode())
        return None if data is None else parse_record(data, self.folder)

    def records(self) -> Iterator[tuple[str, Record]]:
        """(key without suffix, record) of all frames."""
        with _reading(self.folder):
            self.original.check()
            for key, data in self._records.cursor():
                if key != HEADER_KEY:
                    yield key_of(key, self.folder), parse_record(data, self.folder)

    def value_keys(self) -> list[str]:
        """The keys of all values, without suffix."""
        with _reading(self.folder):
            self.original.check()
            keys = [bytes(key) for key in self._values.cursor().iternext(values=False)]
        return [key.decode(errors="replace") for key in keys if key != RECORDS]


class ToolboxFile(LmdbFile):
    """An open store made by BasicSR's `make_lmdb_from_imgs`; the facts about its frames are in meta_info.txt."""

    def __init__(self, folder: Path, env: lmdb.Environment, original: Original) -> None:
        self.folder, self._env, self.original = folder, env, original
        self.header = Header("source", within="", complete=True)
        try:
            lines = read_text(folder / META_INFO).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CSDError(
                f"{folder}: neither a store of `csd prepare` nor one of BasicSR ({META_INFO} cannot be read): build it "
                f"from the image files"
            ) from error
        self._frames = dict(_parse_line(line, folder) for line in lines if line.strip())
        with _reading(folder):
            self._values = env.begin(buffers=True)

    def record(self, key: str) -> Record | None:
        return self._frames.get(key)

    def records(self) -> Iterator[tuple[str, Record]]:
        yield from self._frames.items()


_LINE = re.compile(r"(?P<key>.+)(?P<suffix>\.\w+) \((?P<height>\d{1,9}),(?P<width>\d{1,9})(,\d+)?\) \d+")


def _parse_line(line: str, folder: Path) -> tuple[str, Record]:
    """(key, record without checksums) of a line such as `000/00000000.png (720,1280,3) 1`."""
    found = _LINE.fullmatch(line)
    if found is None:
        raise CSDError(
            f"{folder}: {META_INFO}: {line[:80]!r} is not `KEY.png (HEIGHT,WIDTH,3) LEVEL`: remove the store, and "
            f"build it again"
        )
    record = Record(found["suffix"], int(found["height"]), int(found["width"]), size=0, source="", value="")
    return found["key"], record


_open_files: dict[tuple[int, int], LmdbFile] = {}


def open_file(folder: Path) -> LmdbFile:
    """The store in `folder`; the same object for the same file, as LMDB must not open it twice in a process.

    Raises CSDError if there is no store, or one that is incomplete or damaged.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        status = refuse_way_out(folder / DATA, folder).stat()
    except OSError as error:
        if partial.exists():
            cure = "it is incomplete: run `csd prepare` again to complete it"
        else:
            cure = "give a store of `csd prepare`, or a folder of image files"
        raise CSDError(f"{folder}: no {DATA} ({error.strerror}): {cure}") from error
    if not stat.S_ISREG(status.st_mode):  # opening a pipe might never end
        raise CSDError(f"{folder}: {DATA} is not a file: give a store of `csd prepare`, or a folder of image files")
    identity = status.st_dev, status.st_ino
    if identity not in _open_files:
        _open_files[identity] = _open(folder)
    return _open_files[identity]


def _open(folder: Path) -> LmdbFile:
    with _reading(folder):
        env = environment(folder)
        original = Original(folder, env)
        original.check()
        try:
            env.open_db(RECORDS, create=False)
        except lmdb.NotFoundError:
            return ToolboxFile(folder, env, original)
    return LmdbFile(folder, env, original)


class Identity(NamedTuple):
    """What tells an open file from another that has its name later, in any process of this machine.

    Attributes:
        number: of the file; some network drives give an unchanged file another one now and then.
        content: when it was last changed, and SHA-256 of the pages that refer to all others.
    """

    number: tuple[int, int]
    content: tuple[int, str]

    def is_of(self, other: Identity) -> bool:
        """Whether both are of one file."""
        return self.number == other.number or self.content == other.content


class Original:
    """Checks that a store's file is still what was opened: accessing a missing part would end the process.

    The check is of the open file, whatever has its name now. It cannot help if the file changes while a frame is being
    read, nor if another store of the same layout is written over it.
    """

    def __init__(self, folder: Path, env: lmdb.Environment) -> None:
        self._folder = folder
        self._file = (folder / DATA).open("rb", buffering=0)
        page = env.stat()["psize"]
        self._expected, self._roots = (env.info()["last_pgno"] + 1) * page, 2 * page
        self._modified, self._begin = self._status().st_mtime_ns, self._beginning()

    @property
    def identity(self) -> Identity:
        status = self._status()
        begin = hashlib.sha256(self._beginning()).hexdigest()
        return Identity((status.st_dev, status.st_ino), (status.st_mtime_ns, begin))

    def check(self) -> None:
        """Raise CSDError if the file is too short, or the pages that refer to all others have changed."""
        status = self._status()
        if status.st_size < self._expected:
            raise CSDError(
                f"{self._folder}: {DATA} is cut short, {status.st_size} bytes of {self._expected}: remove the store, "
                f"and build it again"
            )
        if status.st_mtime_ns != self._modified:  # after `touch`, it is still the same
            if self._beginning() != self._begin:
                raise replaced(self._folder)
            self._modified = status.st_mtime_ns

    def _status(self) -> os.stat_result:
        return os.fstat(self._file.fileno())

    def _beginning(self) -> bytes:
        if not hasattr(os, "pread"):  # Windows, where a mapped file is rarely written to
            return b""
        return os.pread(self._file.fileno(), self._roots, 0)  # forked processes share the position


def replaced(folder: Path) -> CSDError:
    """The error to raise for a store that is not the one whose frames were listed."""
    return CSDError(
        f"{folder}: another store has taken its place while it was in use: start again, or put the first one back"
    )


def open_lmdb(folder: Path, cache_mb: float = 0) -> FrameStore:
    """The store in `folder`, which is NAME.lmdb; see `open_store`."""
    raw = open_file(folder).header.encoding == "raw"
    return RawLmdbStore(folder) if raw else EncodedLmdbStore(folder, cache_mb)


class _LmdbStore(FrameStore):
    """The common part of both kinds. Each process opens the file when it is first needed, and takes no other for it."""

    def __init__(self, folder: Path) -> None:
        file = open_file(folder)
        self.folder, self.root = folder, folder / file.header.within
        self._identity = file.original.identity
        self._file: LmdbFile | None = None

    def keys(self) -> list[str]:
        return sorted(key + record.suffix for key, record in self._open().records())

    def shape(self, key: str) -> tuple[int, int]:
        stem, suffix = split_key(key)
        record = self._open().record(stem)
        if record is None or record.suffix != suffix:
            raise self._missing(key)
        return record.height, record.width

    def where(self, key: str) -> str:
        return f"{self.folder}: {key}"

    def _value(self, key: str) -> memoryview:
        value = self._open().value(split_key(key)[0])
        if value is None:
            raise self._missing(key)
        return value

    def _open(self) -> LmdbFile:
        if self._file is None:
            file = open_file(self.folder)
            if not file.original.identity.is_of(self._identity):
                raise replaced(self.folder)
            self._file = file
        return self._file

    def _missing(self, key: str) -> CSDError:
        return CSDError(f"{self.where(key)}: no such frame: `csd prepare --verify` lists what else is missing")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


class EncodedLmdbStore(_LmdbStore, DecodingStore):
    """A store of image files' bytes, original (`source`) or as PNG. cache_mb: see DecodingStore."""

    remedy = "remove the store, and build it again"

    def __init__(self, folder: Path, cache_mb: float = 0) -> None:
        _LmdbStore.__init__(self, folder)
        DecodingStore.__init__(self, cache_mb)

    def encoded(self, key: str) -> bytes:
        return bytes(self._value(key))


class RawLmdbStore(_LmdbStore):
    """A store of pixels. Frames and crops are views into the memory map, so a crop loads only its own rows."""

    def read(self, key: str) -> np.ndarray:
        height, width = self.shape(key)
        value = self._value(key)
        if len(value) != height * width * 3:
            raise CSDError(
                f"{self.where(key)}: {len(value)} bytes are not {width}x{height} pixels: remove the store, and "
                f"build it again"
            )
        return np.frombuffer(value, np.uint8).reshape(height, width, 3)


class _reading:
    """Turns LMDB's errors into one line for the user; a class, for speed, as it is used for every frame."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, (lmdb.Error, OSError)):
            reason = " ".join(str(error).split()).removeprefix(f"{self.folder}: ")
            raise CSDError(
                f"{self.folder}: cannot be read ({reason}): see `csd prepare --verify`, or remove the store, and "
                f"build it again"
            ) from error


def damaged(folder: Path) -> CSDError:
    """The error to raise for a store with content that no build writes."""
    return CSDError(f"{folder}: {DATA} is damaged: remove the store, and build it again")

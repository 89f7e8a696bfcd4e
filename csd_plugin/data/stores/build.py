"""Builds LMDB stores from folders of image files.

A frame and its record are written in one transaction, so a build may be interrupted at any moment: the frames in the
store are complete, and the next build adds the rest. The store gets its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from csd_plugin.data.images import decode_image, eight_bits, lost_in
from csd_plugin.data.layout import tail_from_split
from csd_plugin.data.stores.folder import FolderStore
from csd_plugin.data.stores.lmdb import (
    DATA,
    ENCODINGS,
    HEADER_KEY,
    META_INFO,
    RECORDS,
    Header,
    Original,
    Record,
    damaged,
    key_of,
    lmdb,
    open_file,
    parse_header,
    parse_record,
    split_key,
)
from csd_plugin.data.workers import Processes, check_shared_memory
from csd_plugin.digests import file_digest
from csd_plugin.errors import FULL, CSDError, cannot_write
from csd_plugin.locks import alone

logger = logging.getLogger(__name__)

_FIRST_MAP = 2**26
"""Bytes that a store can hold at first; it grows as needed."""
_BATCH = 2**26
"""Bytes to write in one transaction, about."""
_LONGEST_KEY = 511
"""The longest key in bytes, a limit of LMDB."""


@dataclass(frozen=True)
class BuildReport:
    """What `build_store` has done.

    Attributes:
        frames: the number of frames in the store.
        new: how many of them this run has written.
        source_bytes, store_bytes: sizes of the image files and of the store.
    """

    frames: int
    new: int
    source_bytes: int
    store_bytes: int


def build_store(
    source: str | Path,
    out: str | Path,
    encoding: str = "source",
    jobs: int = 1,
    frames: Mapping[str, str] | None = None,
) -> BuildReport:
    """Build the store `out` (a new folder NAME.lmdb) from all images in folders below `source`.

    Until all frames are in it, the store is OUT.partial: after an interruption of any kind, the next run continues it
    with the frames that are missing or whose files have changed. A store that exists already stays unchanged, if it has
    the same frames from files that have not changed; BasicSR's stores have no checksums to compare.

    Args:
        encoding: source (the files' own bytes), png or raw (decoded pixels).
        jobs: processes that read and encode.
        frames: key in the store, without suffix -> path below `source`; by default all images, by their paths.

    Raises:
        CSDError: frames cannot be decoded, OUT holds something else, or nothing can be written; `source` and earlier
            stores are unchanged.
    """
    folder, out = FolderStore(source), Path(out)
    if encoding not in ENCODINGS:
        raise CSDError(f"encoding {encoding!r} is unknown: give one of {', '.join(ENCODINGS)}")
    if out.suffix != ".lmdb":
        raise CSDError(f"{out}: a store's name ends in .lmdb: give {out.name}.lmdb")
    frames = _by_stem(folder) if frames is None else frames
    _check_keys(frames, folder.root)

    new = None if os.path.lexists(out) else _build_alone(folder, frames, out, encoding, jobs)
    if new is None:
        _check_same(out, folder.root, frames, encoding)
    source_bytes = sum((folder.root / key).stat().st_size for key in frames.values())
    return BuildReport(len(frames), new or 0, source_bytes, sum(file.stat().st_size for file in out.iterdir()))


def _by_stem(folder: FolderStore) -> dict[str, str]:
    """Key without suffix -> key, for all frames."""
    frames: dict[str, str] = {}
    for key in folder.keys():  # noqa: SIM118, a store is not a mapping
        stem = split_key(key)[0]
        if stem in frames:
            raise CSDError(f"{folder.root}: two files for the same frame, {frames[stem]} and {key}: remove one of them")
        frames[stem] = key
    if not frames:
        raise CSDError(f"{folder.root}: no images found: give the folder that holds the data set")
    return frames


def _check_keys(frames: Mapping[str, str], root: Path) -> None:
    for stem, file in frames.items():
        if not stem.isprintable() or len(stem.encode()) > _LONGEST_KEY:
            reason = f"not printable, or more than {_LONGEST_KEY} bytes"
        elif stem.encode() == RECORDS:
            reason = "reserved for the records of a store"
        else:
            continue
        raise CSDError(f"{root}: {file!r} cannot be a frame's key ({reason}): rename the file")


def _check_same(out: Path, root: Path, frames: Mapping[str, str], encoding: str) -> None:
    """Raise CSDError unless the existing store is the requested one."""
    if not (out / DATA).exists():
        raise CSDError(f"{out}: exists already, and is not a store: give another name, or remove it")
    there = open_file(out)
    if there.header.encoding != encoding:
        raise CSDError(f"{out}: exists already, with encoding {there.header.encoding}: give another name, or remove it")
    records = dict(there.records())
    wanted = {stem + split_key(file)[1] for stem, file in frames.items()}
    differing = wanted ^ {stem + record.suffix for stem, record in records.items()}
    if differing:
        raise CSDError(
            f"{out}: exists already, with other frames ({min(differing)} and {len(differing) - 1} more): "
            f"give another name, or remove it"
        )
    # takes a twentieth of the time of building
    progress = tqdm(sorted(frames.items()), desc=f"{out.name} (compared)", unit="frame", disable=None)
    changed = [file for stem, file in progress if records[stem].source not in ("", _digest(root / file))]
    if changed:
        raise CSDError(
            f"{out}: exists already, and files have changed since ({changed[0]} and {len(changed) - 1} more): "
            f"give another name, or remove it"
        )


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> CSDError:
    return CSDError(f"{path}: cannot be read ({error.strerror}): restore the file")


def _build_alone(folder: FolderStore, frames: Mapping[str, str], out: Path, encoding: str, jobs: int) -> int | None:
    """Build the store; how many frames were missing, None if another command has made it meanwhile."""
    try:
        with _writable(out), alone(out):
            return None if os.path.lexists(out) else _build(folder, frames, out, encoding, jobs)
    except BrokenProcessPool:
        raise CSDError(f"{out}: a process was killed, perhaps for lack of memory: run again with fewer jobs") from None


def _build(folder: FolderStore, frames: Mapping[str, str], out: Path, encoding: str, jobs: int) -> int:
    """Write the missing frames to the partial store; how many were missing."""
    partial = out.with_name(f"{out.name}.partial")
    if jobs > 1:
        check_shared_memory("use --jobs 1")
    partial.mkdir(parents=True, exist_ok=True)
    with _Writer(partial, Header(encoding, tail_from_split(folder.root), False)) as writer:
        known = writer.keep_only(frames)
        new, losses = 0, dict[str, list[str]]()
        stems = sorted(frames)
        tasks = ((str(folder.root), frames[stem], encoding, known.get(stem)) for stem in stems)
        with Processes(jobs) if jobs > 1 else contextlib.nullcontext() as processes:
            results = processes.map(encode_frame, tasks) if processes else (encode_frame(*task) for task in tasks)
            progress = tqdm(results, desc=f"{out.name} ({encoding})", total=len(frames), unit="frame", disable=None)
            named = ((stem, *result) for stem, result in zip(stems, progress, strict=True) if result is not None)
            for batch in _batches(_noted(named, losses)):
                writer.write(batch)
                new += len(batch)
        for lost, keys in losses.items():
            logger.warning("%s: %d of %d frames have %s (%s is the first)", out, len(keys), new, lost, keys[0])
        writer.finish()
    _name(partial, out)
    return new


def _noted(
    frames: Iterable[tuple[str, Record, bytes, Sequence[str]]], losses: dict[str, list[str]]
) -> Iterator[tuple[str, Record, bytes]]:
    """The frames as they are to be written; adds to `losses` what was left out of them -> their keys."""
    for stem, record, value, lost in frames:
        for what in lost:
            losses.setdefault(what, []).append(stem)
        yield stem, record, value


def _name(partial: Path, out: Path) -> None:
    """Give a complete store its name."""
    (partial / "lock.mdb").unlink(missing_ok=True)  # of LMDB's own tools, or of Windows
    partial.rename(out)
    _sync(out.parent)


class Filling:
    """A raw store that is being filled frame by frame; see `filling`.

    Attributes:
        there: the keys, with suffixes, of the frames that are in it already.
    """

    def __init__(self, out: Path, writer: _Writer, there: set[str]) -> None:
        self.there = there
        self._out, self._writer = out, writer
        self._waiting: list[tuple[str, Record, bytes]] = []

    def write(self, key: str, frame: np.ndarray) -> None:
        """Put in a frame, (H, W, 3) uint8 RGB. Raises CSDError if it cannot be written."""
        stem, suffix = split_key(key)
        value = frame.tobytes()
        digest = hashlib.sha256(value).hexdigest()
        self._waiting.append((stem, Record(suffix, frame.shape[0], frame.shape[1], len(value), digest, digest), value))
        self.there.add(key)
        if sum(len(data) for _, _, data in self._waiting) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Write everything that was put in; from here on it survives an interruption."""
        if self._waiting:
            with _writable(self._out):
                self._writer.write(self._waiting)
            self._waiting = []


@contextlib.contextmanager
def filling(out: Path, keys: Sequence[str]) -> Iterator[Filling]:
    """Fill the raw store `out` with frames that do not come from image files: `keys`, with suffixes, in any order.

    Until all are there it is OUT.partial, and keeps what an interrupted filling has put in; frames of other keys are
    removed. All keys must be there at the end of the `with` block; then the store gets its name.

    Raises CSDError if nothing can be written, or if another process fills it.
    """
    partial = out.with_name(f"{out.name}.partial")
    stems = {split_key(key)[0]: key for key in keys}
    with contextlib.ExitStack() as locks:
        with _writable(out):
            locks.enter_context(alone(out))
            partial.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            with _writable(out):
                writer = stack.enter_context(_Writer(partial, Header("raw", "", False)))
                store = Filling(out, writer, {stems[stem] for stem in writer.keep_only(stems)})
            try:
                yield store
            finally:
                store.flush()
            missing = set(keys) - store.there
            if missing:
                raise ValueError(f"frames that were never put in: {sorted(missing)[:3]}")
            with _writable(out):
                writer.finish()
        with _writable(out):
            _name(partial, out)


@contextlib.contextmanager
def _writable(out: Path) -> Iterator[None]:
    """Turn the errors of writing to a store into one line for the user."""
    try:
        yield
    except (lmdb.Error, OSError) as error:
        if isinstance(error, OSError) and error.errno not in FULL:
            raise cannot_write(out, error) from error
        raise CSDError(
            f"{out}: cannot be written ({_reason(error)}, {_free_megabytes(out)} MB are free): make room or fix its "
            f"permissions, then run again to continue"
        ) from error


def encode_frame(root: str, key: str, encoding: str, known: str | None) -> tuple[Record, bytes, list[str]] | None:
    """Record and value of an image file, and what the value lacks of it; None if its checksum is the known one.

    Args:
        root: folder of the data set.
        key: the file's path below it.
        encoding: `source`, `png` or `raw`.
        known: SHA-256 of the file when it was stored; None if it was not.

    Raises:
        CSDError: the file cannot be read or decoded.
    """
    path = Path(root) / key
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest == known:
        return None
    frame = decode_image(data, str(path), deep=True)  # for `source`, too: damage must show now, not hours later
    value = _VALUES[encoding](data, eight_bits(frame))
    suffix = split_key(key)[1]
    height, width = frame.shape[:2]
    value_digest = digest if encoding == "source" else hashlib.sha256(value).hexdigest()
    lost = [] if encoding == "source" else _lost(data, frame)
    return Record(suffix, height, width, len(value), digest, value_digest), value, lost


def _lost(data: bytes, frame: np.ndarray) -> list[str]:
    """What 8-bit pixels lack of an image file, in words, and what became of it."""
    deep = ["more than 8 bits per channel, rounded to 8"] if frame.dtype == np.uint16 else []
    return deep + [f"{what}, left out" for what in lost_in(io.BytesIO(data))]


def _png(frame: np.ndarray) -> bytes:
    # the fastest level: files are a tenth larger than at the default, in a third of the time
    return cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


_VALUES: dict[str, Callable[[bytes, np.ndarray], bytes]] = {
    "source": lambda data, frame: data,
    "png": lambda data, frame: _png(frame),
    "raw": lambda data, frame: frame.tobytes(),
}


def _batches(frames: Iterable[tuple[str, Record, bytes]]) -> Iterator[list[tuple[str, Record, bytes]]]:
    batch, size = [], 0
    for frame in frames:
        batch.append(frame)
        size += len(frame[2])
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Writer:
    """A partial store, open for writing. Raises CSDError if it has another encoding or version, or is damaged."""

    def __init__(self, folder: Path, header: Header) -> None:
        self.folder, self.header = folder, header
        try:
            # LMDB's own lock is a mapped file, whose first use on a full disk would end the process.
            self._env = lmdb.open(os.fsencode(folder), map_size=_FIRST_MAP, max_dbs=1, lock=os.name == "nt")
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError) as error:
            raise damaged(folder) from error
        try:
            Original(folder, self._env).check()
            self._records = self._env.open_db(RECORDS)
        except BaseException:
            self._env.close()
            raise

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._env.close()

    def keep_only(self, frames: Iterable[str]) -> dict[str, str]:
        """Remove all frames but these; return the checksums of the source files of those that are in the store.

        Frames whose values are missing, or not as long as recorded, are not in it: they are to be written again.
        """
        with self._env.begin(db=self._records) as reading:
            found = reading.get(HEADER_KEY)
            if found is not None:
                there = parse_header(found, self.folder).encoding
                if there != self.header.encoding:
                    raise CSDError(
                        f"{self.folder}: an interrupted build of a {there} store: finish it with that, or remove it"
                    )
            records = {key_of(key, self.folder): data for key, data in reading.cursor() if key != HEADER_KEY}
        parsed = {key: parse_record(data, self.folder) for key, data in records.items()}
        superfluous = parsed.keys() - set(frames)
        with self._env.begin(buffers=True) as values:
            whole = {key for key, record in parsed.items() if len(values.get(key.encode(), b"")) == record.size}
        if spoiled := sorted(parsed.keys() - superfluous - whole):
            logger.warning(
                "%s: %d frames have no value of the recorded size (%s is the first), and are written again",
                self.folder,
                len(spoiled),
                spoiled[0],
            )

        def begin(transaction: lmdb.Transaction) -> None:
            transaction.put(HEADER_KEY, self.header.dump(), db=self._records)
            for key in superfluous:
                transaction.delete(key.encode())
                transaction.delete(key.encode(), db=self._records)

        self._write(begin)
        return {key: parsed[key].source for key in whole - superfluous}

    def write(self, frames: list[tuple[str, Record, bytes]]) -> None:
        def put(transaction: lmdb.Transaction) -> None:
            for key, record, value in frames:
                transaction.put(key.encode(), value)
                transaction.put(key.encode(), record.dump(), db=self._records)

        self._write(put)

    def finish(self) -> None:
        """Write meta_info.txt, and the header that marks the store as complete."""
        with self._env.begin(db=self._records) as reading:
            records = {key.decode(): data for key, data in reading.cursor() if key != HEADER_KEY}
        lines = [
            parse_record(data, self.folder).meta_info(key, self.header.encoding)
            for key, data in sorted(records.items())
        ]
        with (self.folder / META_INFO).open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        done = replace(self.header, complete=True)
        self._write(lambda transaction: transaction.put(HEADER_KEY, done.dump(), db=self._records))

    def _write(self, change: Callable[[lmdb.Transaction], object]) -> None:
        """Run `change` in one transaction, enlarging the map as needed."""
        while True:
            try:
                with self._env.begin(write=True) as transaction:
                    change(transaction)
                return
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])


def _sync(folder: Path) -> None:
    """Make a renaming permanent; where folders cannot be opened (Windows), the system does it."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())


def _free_megabytes(path: Path) -> int:
    """Free space, for messages: LMDB reports a full disk like any other error of writing."""
    there = next(parent for parent in path.absolute().parents if parent.is_dir())
    return shutil.disk_usage(there).free // 2**20

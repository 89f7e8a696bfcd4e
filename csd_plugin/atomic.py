"""Outputs: files that appear whole or not at all, and never in the place of an input."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from csd_plugin.errors import CSDError, at, cannot_write

_LONGEST_NAME = 255
"""Bytes of a file's name, on every usual file system."""
_BEGINNING, _PIECE = 4096, 2**20
"""Bytes that are read of a file, and that are written at once."""
_DRAFT = re.compile(r"\.(?:([0-9a-f]{6})-)?(\d+)\.part(\.\w+)?$")
"""How a draft's name ends: `_machine`, which those of earlier versions lack, process, suffix."""
_OLD = 24 * 3600
"""Seconds without a change after which a draft is dead whose process cannot be looked for."""


@contextmanager
def replacing(path: Path, *, synced: bool = False) -> Iterator[Path]:
    """A hidden name next to `path`, with its suffix, to write to: it takes the place of `path` at the end.

    After an error what was there before is there still, and nothing else. Processes do not meet under one name. Errors
    of the hidden file bear the name of `path`.

    Args:
        synced: the file is on the disk before it gets its name, and has it there at the end: it survives a power
            failure.
    """
    with _drafting(path) as draft:
        yield draft
        if synced:
            _sync(draft)
        draft.replace(path)
        if synced and os.name != "nt":  # Windows opens no folders
            _sync(path.parent)


@contextmanager
def draft_folder(path: Path) -> Iterator[Path]:
    """An empty hidden folder next to `path`, which is removed at the end with what is left in it.

    Errors of files in it bear the name of `path`.
    """
    with _drafting(path) as draft:
        remove(draft)
        draft.mkdir()
        yield draft


@contextmanager
def _drafting(path: Path) -> Iterator[Path]:
    draft = draft_of(path)
    try:
        yield draft
    except OSError as error:
        if Path(str(error.filename)).is_relative_to(draft):
            raise at(path, error) from error
        raise
    finally:
        with suppress(OSError):  # of the disk, which would hide the error that brought us here
            remove(draft)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_drafts(folder: Path) -> None:
    """Remove what writers that were killed have left half written; for a folder that nobody else writes to now."""
    for draft, _ in _drafts_in(folder) if folder.is_dir() else ():
        remove(draft)


def remove(path: Path) -> None:
    """Remove whatever has this name: a folder with all that is in it, a file, or a link, but not where it leads.

    Raises OSError.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def draft_of(path: Path) -> Path:
    """A hidden name next to `path`, with its suffix, that no other process takes, and no longer than names may be.

    Drafts of `path` that are dead are removed. A process looks for them once in each folder, so that one which writes
    many files does not list them all each time.
    """
    draft = path.with_name(hidden_name(path.stem, f".{_machine()}-{os.getpid()}.part{path.suffix}"))
    for left in _dead_drafts(draft.parent.absolute()).pop(_label(draft), ()):
        with suppress(OSError):
            remove(left)
    return draft


@cache
def _dead_drafts(folder: Path) -> dict[str, list[Path]]:
    """The drafts in a folder that are dead, by `_label`; none of a folder that cannot be read."""
    found: dict[str, list[Path]] = {}
    with suppress(OSError):
        for draft, match in _drafts_in(folder):
            if _is_dead(draft, match):
                found.setdefault(_label(draft), []).append(draft)
    return found


def _drafts_in(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    """Raises OSError."""
    for path in folder.iterdir():
        if path.name[0] == "." and (match := _DRAFT.search(path.name)):
            yield path, match


def _label(draft: Path) -> str:
    """What the drafts of one output share."""
    return _DRAFT.sub(r"\3", draft.name)


def _is_dead(draft: Path, match: re.Match[str]) -> bool:
    """Whether its process is gone; where that cannot be told, as on another machine, whether it is old.

    A number that another process has since is taken for the writer's: such a draft is removed later.
    """
    machine, process = match[1], int(match[2])
    if machine == _machine() and os.name != "nt":
        try:
            os.kill(process, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            pass
        return False
    return time.time() - draft.lstat().st_mtime > _OLD


@cache
def _machine() -> str:
    """The same in all processes that see each other by their numbers: of one host, and of one container there."""
    names = platform.node()
    with suppress(OSError):
        names += str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(os.fsencode(names)).hexdigest()[:6]


def hidden_name(name: str, tail: str) -> str:
    """`.NAME` with the tail; where names may not be that long, a digest is in NAME's place."""
    hidden = f".{name}{tail}"
    if len(os.fsencode(hidden)) > _LONGEST_NAME:
        hidden = f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}{tail}"
    return hidden


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system gives none. Raises OSError."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def write_text(path: Path, text: str) -> None:
    """The text in UTF-8, its lines ended as they are here. Raises OSError, with a file's name.

    Bytes of files' names that are no UTF-8 are written as \\udcff, which JSON reads as it was.
    """
    try:
        with replacing(path) as draft:
            draft.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    except OSError as error:
        raise at(Path(error.filename or path), error) from error


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise CSDError where an output is a file that is read, by whatever spelling, link or case.

    Args:
        outputs: files to be written; those that are not there yet are no input.
        inputs: files and folders; of a folder, the files directly in it.
    """
    there = {identity: output for output in outputs if (identity := _identity(output))}
    if not there:
        return
    for path in inputs:
        for file in path.iterdir() if path.is_dir() else [path]:
            identity = _identity(file)
            if identity and (output := there.get(identity)):
                name = "" if output == file else f", {file}"
                raise CSDError(f"{output} is the input too{name}; give the output another name")


def refuse_strangers(path: Path, sign: bytes, beside: Iterable[Path] = ()) -> None:
    """Raise CSDError where what would be replaced is not what an earlier run of such a command has written, or empty.

    Args:
        path: the file to be written, which a user has named.
        sign: pattern of how such a file begins, within its first 4 KB.
        beside: files that are written with it, which nobody has named: they are only its own where it is there.
    """
    if _begins(path, sign):
        return
    for file in (path, *beside):
        if os.path.lexists(file) and not (file.is_file() and file.stat().st_size == 0):
            raise CSDError(
                f"{file}: is there already, and is not what this command writes; give another name, or remove it"
            )


def _begins(path: Path, sign: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return re.match(sign, file.read(_BEGINNING), re.DOTALL) is not None


def refuse_unwritable(path: Path, size: int = 1) -> None:
    """Check, before long work, that its result can be written: write as many bytes, and remove them again.

    Does nothing if the folder does not exist yet. Raises CSDError if the bytes cannot be written.
    """
    if not path.parent.is_dir():
        return
    draft = draft_of(path)
    try:
        try:
            with draft.open("wb") as file:
                for begin in range(0, size, _PIECE):
                    file.write(bytes(min(_PIECE, size - begin)))
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def same_place(one: Path, other: Path) -> bool:
    """Whether both are there and one file or folder."""
    return (identity := _identity(one)) is not None and identity == _identity(other)


def _identity(path: Path) -> tuple[int, int] | None:
    """What all names of one file or folder share; None where there is nothing."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino

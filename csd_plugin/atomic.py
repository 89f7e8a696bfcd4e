"""Outputs: files that appear complete or not at all, and never replace an input."""

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

LONGEST_NAME = 255
"""The most bytes of a file name on all common file systems."""
_BEGINNING, _PIECE = 4096, 2**20
"""Bytes that are read from the start of a file, or written at once."""
_DRAFT = re.compile(r"\.(?:([0-9a-f]{6})-)?(\d+)\.part(\.\w+)?$")
"""The end of a draft's name: `_machine` (drafts of earlier versions lack it), process number, suffix."""
_OLD = 24 * 3600
"""Seconds without a change after which a draft is abandoned if its process cannot be looked up."""


@contextmanager
def replacing(path: Path, *, synced: bool = False) -> Iterator[Path]:
    """Give a hidden draft next to `path`, with its suffix, to write to; it replaces `path` at the end.

    After an error, `path` is unchanged and the draft is removed. Every process has a draft of its own. Errors of the
    draft carry the name of `path`.

    Args:
        synced: flush the file and its name to the disk, so that it survives a power failure.
    """
    with _drafting(path) as draft:
        yield draft
        if synced:
            _sync(draft)
        draft.replace(path)
        if synced and os.name != "nt":  # Windows cannot open folders
            _sync(path.parent)


@contextmanager
def draft_folder(path: Path) -> Iterator[Path]:
    """Give an empty hidden folder next to `path`; it is removed at the end, with what is left in it.

    Errors of files in it carry the name of `path`.
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
        with suppress(OSError):  # a further error of the disk would hide the first one
            remove(draft)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_drafts(folder: Path) -> None:
    """Remove the drafts that killed writers have left in a folder; nobody else may write to it now."""
    for draft, _ in _drafts_in(folder) if folder.is_dir() else ():
        remove(draft)


def remove(path: Path) -> None:
    """Remove whatever has this name: a folder with its contents, a file, or a link, but not the link's target.

    Raises OSError.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def draft_of(path: Path) -> Path:
    """A hidden name next to `path`, with its suffix, unique to this process, and no longer than names may be.

    Abandoned drafts of `path` are removed. A process looks for them once per folder, as listing a folder for each of
    many files would be slow.
    """
    draft = path.with_name(hidden_name(path.stem, f".{_machine()}-{os.getpid()}.part{path.suffix}"))
    for left in _dead_drafts(draft.parent.absolute()).pop(_label(draft), ()):
        with suppress(OSError):
            remove(left)
    return draft


@cache
def _dead_drafts(folder: Path) -> dict[str, list[Path]]:
    """The abandoned drafts in a folder, by `_label`; none if the folder cannot be read."""
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
    """The part of the name that all drafts of one output share."""
    return _DRAFT.sub(r"\3", draft.name)


def _is_dead(draft: Path, match: re.Match[str]) -> bool:
    """Whether the draft's process is gone; if that cannot be known, as for another machine's, whether the draft is old.

    If another process has the writer's number by now, the draft counts as alive, and is removed later.
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
    """An identifier of the host and container, within which process numbers are unique."""
    names = platform.node()
    with suppress(OSError):
        names += str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(os.fsencode(names)).hexdigest()[:6]


def hidden_name(name: str, tail: str) -> str:
    """`.NAME` with the tail; a digest replaces NAME if the result would be too long."""
    hidden = f".{name}{tail}"
    if len(os.fsencode(hidden)) > LONGEST_NAME:
        hidden = f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}{tail}"
    return hidden


def link_or_copy(source: Path, target: Path) -> None:
    """Make a hard link to a file, or a copy if the file system has no links. Raises OSError."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, with this system's line ends. Raises OSError, with a file's name.

    Bytes of file names that are not valid UTF-8 are written as \\udcff, which JSON decodes to the same name.
    """
    try:
        with replacing(path) as draft:
            draft.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    except OSError as error:
        raise at(Path(error.filename or path), error) from error


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise CSDError if an output is also an input, under whatever spelling, link or case.

    Args:
        outputs: files to be written; those that do not exist yet cannot be inputs.
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
                raise CSDError(f"{output} is also the input{name}; give the output another name")


def refuse_strangers(path: Path, sign: bytes, beside: Iterable[Path] = ()) -> None:
    """Raise CSDError if a file would be replaced that is neither empty nor written by an earlier run of the command.

    Args:
        path: the file to be written, which the user has named.
        sign: pattern of the beginning of such a file, within its first 4 KB.
        beside: files that are written with it, which the user has not named: they may be replaced only together with
            such a file.
    """
    if _begins(path, sign):
        return
    for file in (path, *beside):
        if os.path.lexists(file) and not (file.is_file() and file.stat().st_size == 0):
            raise CSDError(
                f"{file}: already exists, and is not a file of this command; give another name, or remove it"
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
    """Whether both exist and are the same file or folder."""
    return (identity := _identity(one)) is not None and identity == _identity(other)


def _identity(path: Path) -> tuple[int, int] | None:
    """The identity that all names of one file or folder share; None if there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino

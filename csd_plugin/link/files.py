"""The files that `csd link` puts into a toolbox: written, checked, and removed again without a trace."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from csd_plugin import atomic
from csd_plugin.errors import CSDError
from csd_plugin.link.git import Checkout, checkout_of
from csd_plugin.link.standalone import call_linked
from csd_plugin.link.trees import ARCHS, MODELS, Tree

_MARK = "# csd link "
_CALLS = {MODELS: "activate", ARCHS: "prepare_imports"}


@dataclass(frozen=True)
class Linked:
    """What `link` has done.

    Attributes:
        written: files that are new or updated.
        current: files that were up to date already.
        hidden: git's file that hides them; None if git did not list them anyway.
    """

    written: list[Path]
    current: list[Path]
    hidden: Path | None


def link(tree: Tree) -> Linked:
    """Write what `tree` needs, and hide it from git: everything or nothing, so that an earlier version then stays.

    Raises:
        CSDError: a file of that name is not ours, or a folder cannot be written to.
    """
    files = {tree.package / name: content_of(name) for name in tree.files}
    current = [file for file, content in files.items() if _ours(file) == content]
    checkout = _checkout(tree)
    hidden, written = False, []
    before: dict[Path, bytes | None] = {}
    try:
        before = {file: _bytes_of(file) for file in [*files, *([checkout.exclude] if checkout else [])]}
        hidden = checkout is not None and checkout.hide(list(files))
        for file, content in files.items():
            if file not in current:
                atomic.write_text(file, content)
                written.append(file)
    except BaseException as error:  # including Ctrl-C
        _put_back(before)
        if isinstance(error, OSError):
            raise _read_only(tree, error) from error
        raise
    return Linked(written, current, checkout.exclude if checkout and hidden else None)


def unlink(tree: Tree) -> list[Path]:
    """Remove what `link` has written, in this version or an earlier one.

    Returns:
        The files that were there.

    Raises:
        CSDError: a file is not ours, or cannot be removed.
    """
    files = [tree.package / name for name in _CALLS]
    there = [file for file in files if _ours(file) is not None]
    try:
        _take_away(there)
        checkout = _checkout(tree)
        if checkout:
            checkout.show(files)
    except OSError as error:
        raise _read_only(tree, error) from error
    return there


def missing(tree: Tree) -> list[Path]:
    """The files that `link` would write. Raises CSDError for files of these names that are not ours."""
    return [tree.package / name for name in tree.files if _ours(tree.package / name) != content_of(name)]


def content_of(name: str) -> str:
    """The text of a file. Its first line holds the checksum of the rest, which shows later changes.

    Args:
        name: `trees.MODELS` or `trees.ARCHS`.
    """
    body = (
        "# Written by csd-plugin. `csd link --undo` removes it; without csd-plugin it does nothing.\n"
        f"{inspect.getsource(call_linked)}\n\n"
        f'{call_linked.__name__}("{_CALLS[name]}")\n'
    )
    return f"{_MARK}{_checksum(body)}\n{body}"


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _ours(file: Path) -> str | None:
    """The text of a file that we have written; None if there is no file. Raises CSDError for any other file."""
    if not file.exists() and not file.is_symlink():
        return None
    text = file.read_bytes().decode(errors="replace") if file.is_file() and not file.is_symlink() else ""
    mark, _, body = text.replace("\r\n", "\n").partition("\n")
    if not mark.startswith(_MARK):
        raise CSDError(f"{file}: not written by `csd link`; rename it, then run this again")
    if mark != f"{_MARK}{_checksum(body)}":
        raise CSDError(f"{file}: changed after `csd link` wrote it; move it away, then run this again")
    return text


def _take_away(files: Iterable[Path]) -> None:
    """Remove Python files, with their compiled versions."""
    for file in files:
        file.unlink(missing_ok=True)
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
            compiled.unlink()


def _bytes_of(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _put_back(before: Mapping[Path, bytes | None]) -> None:
    """Restore files: earlier versions, or None if there was no file. Each one as far as possible."""
    for file, content in before.items():
        with suppress(OSError):  # for example a full disk, which the first error reports
            if content is None:
                _take_away([file])
            elif _bytes_of(file) != content:
                with atomic.replacing(file) as draft:
                    draft.write_bytes(content)


def _checkout(tree: Tree) -> Checkout | None:
    return None if tree.installed else checkout_of(tree.package)


def _read_only(tree: Tree, error: OSError) -> CSDError:
    return CSDError(
        f"{error.filename or tree.package}: cannot be changed ({error.strerror}); fix its permissions, or use "
        f"`csd link --hook`, which does not change it"
    )

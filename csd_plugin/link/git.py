"""Git's own list of files that it hides, `info/exclude`, which is not part of any commit.

Our lines are one block at the top, so that removing it restores every other byte.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from csd_plugin import atomic
from csd_plugin.plain import read_text

logger = logging.getLogger(__name__)

_BEGIN, _END = "# csd link", "# end of csd link"
_BLOCK = re.compile(rf"{_BEGIN}\n(.*?\n)??{_END}\n", re.DOTALL)
_WORKTREE = re.compile(r'^\s*worktree\s*=\s*"?(.+?)"?\s*$', re.MULTILINE)


class Checkout:
    """A working tree of git: a clone, a worktree of one, or a submodule.

    Args:
        root: its folder.
        shared: the git folder of the clone, or of the submodule.
    """

    def __init__(self, root: Path, shared: Path) -> None:
        self.root = root
        self.shared = shared

    @property
    def exclude(self) -> Path:
        """The list."""
        return self.shared / "info" / "exclude"

    def hide(self, files: list[Path]) -> bool:
        """Make git hide these files of the checkout. Returns whether that was new. Raises OSError."""
        hidden = self._hidden()
        wanted = [self._pattern(file) for file in files]
        if set(wanted) <= set(hidden):
            return False
        self._write([*hidden, *(pattern for pattern in wanted if pattern not in hidden)])
        return True

    def show(self, files: list[Path]) -> None:
        """Undo `hide`, except for files that another worktree of the clone still has. Raises OSError."""
        hidden = self._hidden()
        gone = {
            self._pattern(file)
            for file in files
            if not any((root / file.relative_to(self.root)).exists() for root in self._roots())
        }
        if gone & set(hidden):
            self._write([pattern for pattern in hidden if pattern not in gone])

    def _roots(self) -> Iterator[Path]:
        """The working trees of the clone."""
        yield self.root
        yield self.shared.parent
        for link in self.shared.glob("worktrees/*/gitdir"):
            place = _text_of(link)
            if place is not None:
                yield (link.parent / place).parent

    def _pattern(self, file: Path) -> str:
        """The file's pattern, with special characters escaped."""
        relative = PurePosixPath(file.relative_to(self.root))
        return "/" + re.sub(r"([\\*?\[\]]| $)", r"\\\1", str(relative))

    def _text(self) -> str:
        return self.exclude.read_bytes().decode(errors="surrogateescape") if self.exclude.exists() else ""

    def _hidden(self) -> list[str]:
        found = _BLOCK.search(self._text())
        return (found[1] or "").splitlines() if found else []

    def _write(self, patterns: list[str]) -> None:
        block = "".join(f"{line}\n" for line in (_BEGIN, *patterns, _END)) if patterns else ""
        text = block + _BLOCK.sub("", self._text(), count=1)
        if text:
            self.exclude.parent.mkdir(exist_ok=True)
            with atomic.replacing(self.exclude) as draft:
                draft.write_bytes(text.encode(errors="surrogateescape"))
        else:
            self.exclude.unlink(missing_ok=True)


def checkout_of(path: Path) -> Checkout | None:
    """The working tree that contains `path`; None, with a warning, if its git folder may belong to another one."""
    for folder in (path, *path.parents):
        if (folder / ".git").exists():
            try:
                shared = _git_folder(folder)
            except (OSError, ValueError, RuntimeError):  # invalid names, and circular links
                shared = None
            if shared is not None:
                return Checkout(folder, shared)
            logger.warning(
                "%s: does not lead to a git folder of this working tree; git's list of hidden files is not changed",
                folder / ".git",
            )
            return None
    return None


def _git_folder(root: Path) -> Path | None:
    """The git folder that a working tree shares with others of its clone; None if that does not refer to this tree.

    A `.git` file, which may come from an untrusted clone, could point to any folder.
    """
    git = root / ".git"
    if git.is_symlink():
        return None
    if git.is_dir():
        shared: Path | None = git
    else:
        key, _, place = (_text_of(git) or "").partition(":")
        where = root / place.strip()
        shared = (_of_worktree(where, git) or _of_submodule(where, root)) if key == "gitdir" else None
    if shared is None or not os.path.lexists(shared / "HEAD") or (shared / "info").is_symlink():
        return None
    return shared


def _of_worktree(where: Path, git: Path) -> Path | None:
    """The clone's git folder, if it has `where` for the worktree with this `.git`."""
    back, common = _text_of(where / "gitdir"), _text_of(where / "commondir")
    if back is None or common is None:
        return None
    shared = (where / common).resolve()
    is_its = (where / back).resolve() == git.resolve() and where.resolve().parent == shared / "worktrees"
    return shared if is_its else None


def _of_submodule(where: Path, root: Path) -> Path | None:
    """`where`, if that is the git folder of the submodule in `root`."""
    found = _WORKTREE.search(_text_of(where / "config") or "")
    return where.resolve() if found and (where / found[1]).resolve() == root.resolve() else None


def _text_of(file: Path) -> str | None:
    """The text of a file; None if there is no file, or if it is not text."""
    try:
        return read_text(file).strip() if file.is_file() else None
    except (OSError, ValueError):
        return None

"""Git's own list of files that it does not show, `info/exclude`, which is not part of any commit.

Our lines are one block at the top, so that taking it away leaves every other byte as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from csd_plugin import atomic

_BEGIN, _END = "# csd link", "# end of csd link"
_BLOCK = re.compile(rf"{_BEGIN}\n(.*?\n)??{_END}\n", re.DOTALL)


class Checkout:
    """A working tree of git: a clone, a worktree of one, or a submodule.

    Args:
        root: its folder.

    Attributes:
        git: its `.git`.
        shared: the `.git` of the clone that it is a worktree of, else the same.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.git = root / ".git"
        if self.git.is_file():  # "gitdir: PATH", of a worktree or a submodule
            self.git = root / self.git.read_text(encoding="utf-8").partition(":")[2].strip()
        common = self.git / "commondir"
        self.shared = self.git / common.read_text(encoding="utf-8").strip() if common.is_file() else self.git

    @property
    def exclude(self) -> Path:
        """The list."""
        return self.shared / "info" / "exclude"

    def hide(self, files: list[Path]) -> bool:
        """Let git not list these files of the checkout. Returns whether that was new. Raises OSError."""
        hidden = self._hidden()
        wanted = [self._pattern(file) for file in files]
        if set(wanted) <= set(hidden):
            return False
        self._write([*hidden, *(pattern for pattern in wanted if pattern not in hidden)])
        return True

    def show(self, files: list[Path]) -> None:
        """The opposite of `hide`, except for files that another worktree of the clone still has. Raises OSError."""
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
            yield Path(link.read_text(encoding="utf-8").strip()).parent

    def _pattern(self, file: Path) -> str:
        """With what has a meaning in patterns taken literally."""
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
    """The working tree that `path` lies in."""
    for folder in (path, *path.parents):
        if (folder / ".git").exists():
            return Checkout(folder)
    return None

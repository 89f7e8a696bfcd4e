"""Reports everything that is wrong with an option file as one error: every problem with its file, line and key.

Nothing here needs torch or the toolbox, so a launcher can report an unreadable file without them.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from csd_plugin.errors import CSDError, one_line, refused_by_disk, suggestion
from csd_plugin.limited_yaml import LimitedLoader

_KEY = re.compile(r"\w+(\.[\w/-]+)*")
_MOST_SHOWN = 100
_SINGLE_KEYS = "; --force_yml takes no sections, only single keys of them: section:name:key=value"

FILE_ERRORS = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    UnicodeDecodeError,
    yaml.YAMLError,
)
"""The errors of reading an option file, in addition to CSDError."""

T = TypeVar("T")


def named_in(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The option file of a launcher's command line, if it has one, and the changes by --force_yml."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-opt", type=Path)
    parser.add_argument("--force_yml", nargs="+", default=[])
    given = parser.parse_known_args(argv)[0]
    return given.opt, given.force_yml


def check_readable(argv: Sequence[str]) -> None:
    """Raise CSDError if the option file of a command line cannot be read, or is not YAML, whatever its content."""
    file = named_in(argv)[0]
    if file is None:
        return
    try:
        with file.open(encoding="utf-8") as stream:
            LimitedLoader(stream).get_single_node()
    except (CSDError, *FILE_ERRORS) as error:
        raise CSDError(reading_error(error)) from error
    except RecursionError:
        pass  # reported later, by whatever reads the values


def reading_error(error: Exception) -> str:
    """The message for an error of reading an option file: one line, or one for each problem."""
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} does not exist; check the path"
    if isinstance(error, OSError):
        return refused_by_disk(error) or f"{str(error.strerror or error).lower()}; check the path"
    if isinstance(error, UnicodeDecodeError):
        return "the option file is not UTF-8 text; check the path"
    if isinstance(error, yaml.YAMLError):
        return "the option file is not valid YAML: " + " ".join(str(error).split())
    assert isinstance(error, CSDError)
    return str(error) if isinstance(error, ProblemsError) else one_line(error)


class ProblemsError(CSDError):
    """The problems of one file: one line if there is one, else a line that counts them and one line for each."""

    def __init__(self, source: str, lines: list[str]) -> None:
        self.lines = lines
        more = [f"{source}: and {len(lines) - _MOST_SHOWN} more"] if len(lines) > _MOST_SHOWN else []
        shown = [*lines[:_MOST_SHOWN], *more]
        super().__init__("\n".join(shown if len(lines) == 1 else [f"{source}: {len(lines)} problems", *shown]))


class Problems:
    """Collects problems; each begins with the path of its key, `train.optim_g.lr is -1: ..`.

    Args:
        source: the file with the problems, in which their lines are looked up; empty for none.
        forced: the changes by --force_yml, as `section:key=value`.
    """

    def __init__(self, source: str, forced: Iterable[str] = ()) -> None:
        self.source = source
        self._forced = {change.partition("=")[0].strip().replace(":", ".") for change in forced}
        self._found: dict[str, list[str]] = {}
        self._placed: list[tuple[int, str]] = []
        self._meant: set[str] = set()

    def add(self, key: str, text: str, meant: Iterable[str] = ()) -> None:
        """Add a problem, unless a mistyped key that was added before is its cause.

        Args:
            key: the section and key, joined by dots.
            text: the message for the user.
            meant: the right keys, if this one is mistyped.
        """
        if key not in self._meant and text not in self._found.get(key, []):
            self._found.setdefault(key, []).append(text)
        self._meant.update(meant)

    def add_at(self, line: int, text: str) -> None:
        """Add a problem that has a line but no key."""
        self._placed.append((line, text))

    def __bool__(self) -> bool:
        return bool(self._found or self._placed)

    def unknown(self, prefix: str, key: str, known: Collection[str]) -> None:
        """Add an unknown key of the section `prefix` (`train.`)."""
        meant = [f"{prefix}{name}" for name in difflib.get_close_matches(key, known, 1)]
        self.add(f"{prefix}{key}", f"{prefix}{key} is unknown{suggestion(key, known)}", meant)

    def sound(self, *sections: str) -> bool:
        """Whether nothing was found in these sections, in those around them, or in mistyped ones meant for them."""
        return not any(_meet(section, key) for section in sections for key in (*self._found, *self._meant))

    def attempt(self, needs: Iterable[str], function: Callable[..., T], *arguments: Any, **keywords: Any) -> T | None:
        """Call the function if the sections that it needs are sound; a CSDError that it raises becomes a problem."""
        if not self.sound(*needs):
            return None
        try:
            return function(*arguments, **keywords)
        except ProblemsError:
            raise
        except CSDError as error:
            text = str(error)
            key = _KEY.match(text)
            self.add(key[0] if key else "", text)
            return None

    def raise_any(self) -> None:
        """Raise ProblemsError with everything that was found, in the order of the file."""
        if not self:
            return
        lines = _Lines(self.source)
        placed: list[tuple[int | None, str]] = [*self._placed]
        inside = {key: texts for key, texts in self._found.items() if key not in self._forced}
        placed += [(lines.of(key), text) for key, texts in inside.items() for text in texts]
        placed.sort(key=lambda place: place[0] or 0)
        where = [(f"{self.source}: line {line}" if line else self.source, text) for line, text in placed]
        forced = [text for key, texts in self._found.items() if key not in inside for text in texts]
        where += [("--force_yml", text + (_SINGLE_KEYS if "valid dictionary" in text else "")) for text in forced]
        raise ProblemsError(self.source, [f"{place}: {text}" for place, text in where])


def _meet(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


class _Lines:
    """Finds the lines of a file's keys; none if there is no file."""

    def __init__(self, source: str) -> None:
        self._root: yaml.Node | None = None
        try:
            with Path(source).open(encoding="utf-8") as file:
                self._root = LimitedLoader(file).get_single_node()
        except (OSError, ValueError, yaml.YAMLError):
            pass

    def of(self, key: str) -> int | None:
        """The line of a key, or of the innermost section around it that exists."""
        node, line = self._root, None
        for part in key.split("."):
            node, mark = _inner(node, part)
            if mark is None:
                break
            line = mark.line + 1
        return line


def _inner(node: yaml.Node | None, part: str) -> tuple[yaml.Node | None, yaml.Mark | None]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if getattr(key, "value", None) == part:
                return value, key.start_mark
    if isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
        return node.value[int(part)], node.value[int(part)].start_mark
    return None, None

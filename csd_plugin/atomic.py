"""Outputs: files that appear whole or not at all, and never in the place of an input."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from csd_plugin.errors import CSDError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden name beside `path`, of its suffix, to write to: it takes the place of `path` at the end.

    After an error what was there before is there still, and nothing else. Processes do not meet under one name.
    """
    draft = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """The text in UTF-8, its lines ended as they are here."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise CSDError where an output is a file that is read, by whatever spelling, link or case.

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

"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST_NAME = 255
"""Bytes of a file's name, on every usual file system."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden name beside `path`, of its suffix, to write to: it takes the place of `path` at the end.

    After an error what was there before is there still, and nothing else. Processes do not meet under one name.
    """
    draft = draft_of(path)
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def draft_of(path: Path) -> Path:
    """A hidden name beside `path`, of its suffix, that no other process takes, and no longer than names may be."""
    tail = f".{os.getpid()}.part{path.suffix}"
    draft = path.with_name(f".{path.stem}{tail}")
    if len(os.fsencode(draft.name)) > _LONGEST_NAME:
        draft = path.with_name(f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}{tail}")
    return draft


def write_text(path: Path, text: str) -> None:
    """The text in UTF-8, its lines ended as they are here."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")

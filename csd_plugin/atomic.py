"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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

"""What frames were made by, kept in every file of frames, so that only the same run goes on with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from csd_plugin.data.images import NUMBER, images_in, numbered
from csd_plugin.errors import CSDError
from csd_plugin.plain import parse_json

_START = 2**20
"""Bytes of a video that tell it from others, with its size."""
_MOST_SHOWN = 80


class Origin(NamedTuple):
    """Something that frames depend on: what people call it, and what tells it from others of that name."""

    name: str
    identity: str

    def __str__(self) -> str:
        whole = self.name if self.name == self.identity else f"{self.name} ({self.identity})"
        return " ".join(whole.split())[:_MOST_SHOWN]


def origin_of_clip(path: Path) -> Origin | None:
    """Of a video, a folder or a pattern of images; None for what cannot be read. A clip that has grown is another."""
    with suppress(OSError, CSDError):
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(_START)
            return Origin(path.name, f"{_digest(start)}, {path.stat().st_size} bytes")
        files = images_in(path) if path.is_dir() else numbered(path) if NUMBER.search(path.name) else []
        if files:
            return Origin(path.resolve().name, f"{_digest(files[0].read_bytes())}, {len(files)} frames")
    return None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def as_note(made_by: Mapping[str, Origin]) -> str:
    """ASCII text that holds it."""
    return json.dumps({kind: list(origin) for kind, origin in made_by.items()})


def differs(note: str, made_by: Mapping[str, Origin]) -> str | None:
    """What is not as a frame's note has it, in words; empty where all is. None for a note that does not say."""
    try:
        then = parse_json(note or "{}")
    except ValueError:
        return None
    if not isinstance(then, dict) or not then:
        return None
    for kind in dict.fromkeys((*made_by, *map(str, then))):
        before, now = _read(then.get(kind)), made_by.get(kind)
        if (before and before.identity) != (now and now.identity):
            return f"its {kind[:_MOST_SHOWN]} was {before or 'none'}, now it is {now or 'none'}"
    return ""


def _read(value: object) -> Origin | None:
    return Origin(*map(str, value)) if isinstance(value, list) and len(value) == len(Origin._fields) else None

"""The origin of frames, stored in every file of frames, so that only the same run continues them."""

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
"""Bytes from a video's start that, with its size, identify it."""
_MOST_SHOWN = 80


class Origin(NamedTuple):
    """Something that frames depend on: its usual name, and an identifier among those of the same name."""

    name: str
    identity: str

    def __str__(self) -> str:
        whole = self.name if self.name == self.identity else f"{self.name} ({self.identity})"
        return " ".join(whole.split())[:_MOST_SHOWN]


def origin_of_clip(path: Path) -> Origin | None:
    """The origin for a video, a folder or a pattern; None if it cannot be read. A clip that has grown is another."""
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
    """The origins as ASCII text."""
    return json.dumps({kind: list(origin) for kind, origin in made_by.items()})


def differs(note: str, made_by: Mapping[str, Origin]) -> str | None:
    """How the origin in a frame's note differs, in words; empty if it does not. None if the note has no origin."""
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

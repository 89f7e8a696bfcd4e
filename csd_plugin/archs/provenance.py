"""The facts that a checkpoint states about the origin of its network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csd_plugin.archs.checkpoint import load_plain


def facts_in(checkpoint: Path) -> Mapping[str, Any]:
    """The entry `facts` of a checkpoint; empty if it has none. Raises CSDError if the file cannot be read."""
    content = load_plain(checkpoint, "checkpoint")
    facts = content.get("facts") if isinstance(content, Mapping) else None
    return facts if isinstance(facts, Mapping) else {}


def adapted_to(facts: Mapping[str, Any]) -> str:
    """The names of the clips to which `csd adapt` has adapted a network; empty for other networks."""
    adapted = facts.get("adapted")
    clips = adapted.get("clips") if isinstance(adapted, Mapping) else None
    named = [clip.get("name") for clip in clips if isinstance(clip, Mapping)] if isinstance(clips, list) else []
    return ", ".join(str(name) for name in named)

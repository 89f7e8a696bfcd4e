"""What a checkpoint says about itself: where its network comes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csd_plugin.archs.checkpoint import load_plain


def facts_in(checkpoint: Path) -> Mapping[str, Any]:
    """The entry `facts` of a checkpoint, empty where it has none. Raises CSDError where it cannot be read."""
    content = load_plain(checkpoint, "checkpoint")
    facts = content.get("facts") if isinstance(content, Mapping) else None
    return facts if isinstance(facts, Mapping) else {}


def adapted_to(facts: Mapping[str, Any]) -> str:
    """The clips that `csd adapt` has fitted a network to, as people name them; empty for other networks."""
    adapted = facts.get("adapted")
    clips = adapted.get("clips") if isinstance(adapted, Mapping) else None
    named = [clip.get("name") for clip in clips if isinstance(clip, Mapping)] if isinstance(clips, list) else []
    return ", ".join(str(name) for name in named)

"""The numbers of a network: a preset's, with single ones overridden."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from csd_plugin.errors import CSDError


def resolve_preset(
    family: str,
    presets: Mapping[str, Mapping[str, Any]],
    preset: str | None,
    given: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All numbers of a network of windows.

    Args:
        family: the class's name, which begins the messages.
        presets: name -> numbers.
        preset: one of these, or None.
        given: every number by its name, None if it is the preset's; must contain num_frame.
        defaults: for numbers that are neither given nor in the preset.

    Raises:
        CSDError: the preset is unknown, a number is missing, or num_frame is even.
    """
    if preset is not None and preset not in presets:
        raise CSDError(f"{family}: unknown preset {preset!r}, expected one of {', '.join(presets)}")
    numbers = dict(defaults or {}) | dict(presets[preset] if preset else {})
    numbers |= {name: value for name, value in given.items() if value is not None}
    missing = [name for name in given if name not in numbers]
    if missing:
        raise CSDError(f"{family}: without a preset, {', '.join(missing)} must be given")
    if numbers["num_frame"] % 2 == 0 or numbers["num_frame"] < 1:
        raise CSDError(f"{family}: num_frame is {numbers['num_frame']}, expected an odd number")
    return numbers

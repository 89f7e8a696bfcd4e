"""One option in a dataclass of options."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(
    default: Any, description: str = "", *, required: bool = False, each: dict[str, Any] | None = None, **limits: Any
) -> Any:
    """A field of a dataclass of options.

    Args:
        default: for option files that do not give it.
        description: what it means, for the table of options/README.md.
        required: option files have to give it; the default is for those who build the data set themselves.
        each: limits of every number of a tuple: `gt`, `ge`, `lt`, `le`.
        limits: the same of the value itself.
    """
    about = {"required": required, "each": each, "limits": limits, "description": description}
    return field(default=default, metadata=about)

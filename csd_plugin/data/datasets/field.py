"""One option in a dataclass of options."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(
    default: Any, description: str = "", *, required: bool = False, each: dict[str, Any] | None = None, **limits: Any
) -> Any:
    """A field of a dataclass of options.

    Args:
        default: the value if an option file does not give one.
        description: for the table of options/README.md.
        required: option files must give it; the default serves those who construct the data set themselves.
        each: limits of every number of a tuple: `gt`, `ge`, `lt`, `le`.
        limits: the same limits, of the value itself.
    """
    about = {"required": required, "each": each, "limits": limits, "description": description}
    return field(default=default, metadata=about)

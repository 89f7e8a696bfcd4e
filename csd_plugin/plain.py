"""Text files of strangers, read within limits: JSON and lists. For YAML see `limited_yaml`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from csd_plugin.errors import CSDError

MOST_TEXT = 2**26
"""Characters of a file."""


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The content of a file. Raises OSError, UnicodeDecodeError, and CSDError for a file that is too large."""
    with path.open(encoding=encoding) as file:
        text = file.read(MOST_TEXT + 1)
    if len(text) > MOST_TEXT:
        raise CSDError(f"{path}: more than {MOST_TEXT >> 20} MB of text; is it the right file?")
    return text


def parse_json(text: str | bytes) -> Any:
    """As `json.loads`, but that any text that it does not read raises ValueError, nested ones and long numbers too."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error

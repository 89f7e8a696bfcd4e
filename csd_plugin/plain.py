"""Untrusted text files, read within limits: JSON and lists. For YAML see `limited_yaml`.

The functions below `parse_json` check the values of such a file. Each returns a value of one kind within bounds, or
raises a ValueError that names the wrong value; the caller adds the name of the file.
"""

from __future__ import annotations

import json
import math
import reprlib
import sys
from pathlib import Path
from typing import Any

from csd_plugin.errors import CSDError

MOST_TEXT = 2**26
"""The largest file, in characters."""
_MOST_DIGITS = 300
"""The most digits of a whole number; a float can hold such a number."""
_LONGEST_NAME = 200
"""Bytes of a file name, so that there is room for a suffix."""


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The content of a file. Raises OSError, UnicodeDecodeError, and CSDError for a file that is too large."""
    with path.open(encoding=encoding) as file:
        text = file.read(MOST_TEXT + 1)
    if len(text) > MOST_TEXT:
        raise CSDError(f"{path}: more than {MOST_TEXT >> 20} MB of text; is it the right file?")
    return text


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """Like `json.loads`, but raises ValueError for all text that it cannot read, also deep nesting and long numbers.

    Args:
        finite: also refuse NaN and infinities, which strict JSON lacks, and numbers too large for a float.
    """
    if not isinstance(text, str):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    try:
        return (_FINITE if finite else _ANY).decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is not a JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse(reprlib.repr(digits))


def _short(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits is too long")
    return int(digits)


_ANY = json.JSONDecoder()
_FINITE = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite, parse_int=_short)


def as_json_has_it(value: Any) -> Any:
    """Nested dicts and lists, with strings for what JSON has no numbers for: nan, inf and -inf (see `score_number`)."""
    if isinstance(value, dict):
        return {key: as_json_has_it(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json_has_it(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def score_number(value: Any, what: str) -> float:
    """A number that may be infinite: the strings 'inf' and '-inf' in JSON."""
    infinite = value in ("inf", "-inf") or (isinstance(value, float) and math.isinf(value))
    return float(value) if infinite else number(value, what, -math.inf, math.inf)


def number(value: Any, what: str, least: float, most: float) -> float:
    """A finite number between bounds, inclusive."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{what} is {reprlib.repr(value)}, not a number")
    if not (least <= value <= most and abs(value) <= sys.float_info.max):
        raise ValueError(f"{what} is {reprlib.repr(value)}, not from {least:g} to {most:g}")
    return float(value)


def whole_number(value: Any, what: str, least: int, most: int) -> int:
    """A whole number between bounds, inclusive; 3.0 and true are not whole numbers."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{what} is {reprlib.repr(value)}, not a whole number from {least} to {most}")
    return value


def plain_text(value: Any, what: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{what} is {reprlib.repr(value)}, not text")
    return value


def file_name(value: Any, what: str) -> str:
    """A plain file name, not a path, short enough to take a suffix."""
    name = plain_text(value, what)
    if not name.isprintable() or name in ("", ".", "..") or set(name) & set("/\\:"):
        raise ValueError(f"{what} is {reprlib.repr(name)}, not a file name")
    if len(name.encode()) > _LONGEST_NAME:
        raise ValueError(f"{what} is {reprlib.repr(name)}, too long for a file name")
    return name


def entries(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} is {reprlib.repr(value)}, not a list")
    return value


def section(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {reprlib.repr(value)}, not a section of keys and values")
    return value


def section_of(value: Any, what: str, keys: frozenset[str]) -> dict[str, Any]:
    """A section with exactly these keys."""
    content = section(value, what)
    for key in sorted(keys ^ content.keys()):
        raise ValueError(f"{what} {'lacks' if key in keys else 'has the unknown key'} {reprlib.repr(key)}")
    return content

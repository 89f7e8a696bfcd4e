"""Tables and counts as text, for terminals, Markdown and HTML."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from typing import Any

from csd_plugin.errors import CSDError
from csd_plugin.spreadsheets import markdown_row


def counted(number: int, noun: str) -> str:
    """'1 clip', '2 clips'."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    """'0.4 s', '28 s', '5 min', '3 h 20 min'."""
    if seconds < 100:
        return f"{seconds:.{0 if seconds >= 10 else 1}f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def three_digits(number: float) -> str:
    """A number to three significant digits, without an exponent: '0.00784', '1.50', '1234'."""
    exponent = int(f"{number:.2e}".partition("e")[2])  # of the rounded number: 9.996 is 10.0
    return f"{number:.{max(0, 2 - exponent)}f}"


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """One line per row, with aligned columns: those in `left` to the left, all others to the right."""
    widths = [max(map(_columns, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(range(len(row)), row, widths, strict=True)
        padded = (_padded(cell, width, left=column in left) for column, cell, width in cells)
        lines.append("  ".join(padded).rstrip())
    return lines


def _padded(cell: str, width: int, *, left: bool) -> str:
    spaces = " " * (width - _columns(cell))
    return cell + spaces if left else spaces + cell


def _columns(text: str) -> int:
    """Columns of a terminal that a text takes: Chinese, Japanese and Korean characters take two, accents none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table; all but the first `text_columns` columns are numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    return "\n".join(map(markdown_row, (head, rule, *rows)))


def html(template: str, **values: Any) -> str:
    """A page from a template of jinja2, which comes with torch. Raises CSDError if it is not installed."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ModuleNotFoundError as error:
        raise CSDError("HTML pages need jinja2: pip install jinja2") from error
    return Environment(autoescape=True, undefined=StrictUndefined).from_string(template).render(**values)

"""Tables as CSV that spreadsheet programs show as it is written, and the rows of tables in Markdown."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

_FORMULA = re.compile(r"[=+\-@\t\r\n]")
"""What makes a spreadsheet program compute a cell, if it begins with it."""
_HARMLESS = re.compile(r"-|[+-](\d+(\.\d+)?|inf)( ± \d+(\.\d+)?)?")
"""Our own cells that begin like this: nothing, a number, a mean with its deviation."""


def as_csv(rows: Iterable[Sequence[object]]) -> str:
    """The rows as CSV, one per line.

    A text such as the clip name `=1+1` gets an apostrophe before it: a spreadsheet program would run it as a formula.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_shown(cell) for cell in row] for row in rows)
    return text.getvalue()


def _shown(cell: object) -> object:
    runs = isinstance(cell, str) and _FORMULA.match(cell) and not _HARMLESS.fullmatch(cell)
    return f"'{cell}" if runs else cell


def markdown_row(cells: Iterable[str]) -> str:
    """A row of a Markdown table, in one line: a folder's name may have line breaks and bars, which would end a cell."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

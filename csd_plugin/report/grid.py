"""A table of text cells, written as Markdown, CSV, LaTeX and one self-contained HTML page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from csd_plugin import spreadsheets
from csd_plugin.report.text import html, markdown


@dataclass(frozen=True)
class Grid:
    """A table to be written in several formats.

    Attributes:
        title: above the table.
        head, rows: cells, the same number in each.
        text_columns: the number of text columns, from the left.
        best: (row, column) of cells to emphasise.
        notes: lines below the table.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1
    best: frozenset[tuple[int, int]] = frozenset()
    notes: Sequence[str] = field(default_factory=tuple)


def as_markdown(grid: Grid) -> str:
    """A title in bold, the table with the best cells in bold, and the notes as a list."""
    body = [
        [f"**{cell}**" if (r, c) in grid.best else cell for c, cell in enumerate(row)]
        for r, row in enumerate(grid.rows)
    ]
    table = markdown(grid.head, body, grid.text_columns)
    notes = "\n".join(f"- {note}" for note in grid.notes)
    return "\n\n".join(part for part in (f"**{grid.title}**" if grid.title else "", table, notes) if part) + "\n"


def as_csv(grid: Grid) -> str:
    """Head and rows only."""
    return spreadsheets.as_csv([grid.head, *grid.rows])


def as_latex(grid: Grid) -> str:
    """A `table` environment with booktabs' rules; the notes are comments above it."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    columns = "l" * grid.text_columns + "r" * (len(grid.head) - grid.text_columns)
    body = [
        [rf"\textbf{{{_latex(cell)}}}" if (r, c) in grid.best else _latex(cell) for c, cell in enumerate(row)]
        for r, row in enumerate(grid.rows)
    ]
    lines = [f"% {note}" for note in grid.notes]
    lines += [r"% \usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{_latex(grid.title)}}}"]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line([_latex(cell) for cell in grid.head]), r"\midrule"]
    lines += [*map(line, body), r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "Δ": r"$\Delta$",
}  # fmt: skip


def _latex(text: str) -> str:
    return re.sub("|".join(map(re.escape, _LATEX)), lambda match: _LATEX[match[0]], text)


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ grid.title }}</title>
<style>
  :root { color-scheme: light dark; --line: #8884; --soft: #8881; }
  body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
  h1 { font-size: 1.3rem; }
  .wide { overflow-x: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
  th, td { text-align: right; padding: .3rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
  th { border-bottom-width: 2px; }
  .text { text-align: left; }
  tr:hover td { background: var(--soft); }
</style>
<h1>{{ grid.title }}</h1>
<div class="wide"><table>{% set text = ' class="text"' | safe %}
<tr>{% for cell in grid.head %}<th{{ text if loop.index0 < grid.text_columns else '' }}>{{ cell }}</th>{% endfor %}</tr>
{% for row in grid.rows %}{% set r = loop.index0 %}
<tr>{% for cell in row %}<td{{ text if loop.index0 < grid.text_columns else '' }}>
{%- if (r, loop.index0) in grid.best %}<b>{{ cell }}</b>{% else %}{{ cell }}{% endif %}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% if grid.notes %}<ul>{% for note in grid.notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}
</html>
"""


def as_html(grid: Grid) -> str:
    """The page. Raises CSDError like `report.text.html`."""
    return html(_PAGE, grid=grid)


FORMATS = {".md": as_markdown, ".csv": as_csv, ".tex": as_latex, ".html": as_html}

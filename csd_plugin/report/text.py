"""Tables and counts as text, for terminals and Markdown."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def counted(number: int, noun: str) -> str:
    """'1 clip', '2 clips'."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """A line for every row, columns below each other: those whose numbers are in `left` begin, all others end so."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(range(len(row)), row, widths, strict=True)
        padded = (cell.ljust(width) if column in left else cell.rjust(width) for column, cell, width in cells)
        lines.append("  ".join(padded).rstrip())
    return lines


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table; all but the first `text_columns` columns are numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in (head, rule, *rows)
    )

"""Tables of text cells in their formats."""

from __future__ import annotations

import csv
import io

import pytest

from csd_plugin.report.grid import Grid, as_csv, as_markdown
from csd_plugin.report.text import aligned, three_digits


def test_csv_keeps_numbers_and_has_no_formulas():
    cells = ["=HYPERLINK(1)", "-", "-0.12", "+0.50 ± 0.03", "-inf", "+1+1", "30.00 ± 0.10"]
    grid = Grid("t", ["row", "=2", *"abcde"], [cells])
    shown = ["'=HYPERLINK(1)", "-", "-0.12", "+0.50 ± 0.03", "-inf", "'+1+1", "30.00 ± 0.10"]
    assert list(csv.reader(io.StringIO(as_csv(grid)))) == [["row", "'=2", *"abcde"], shown]
    assert "| =HYPERLINK(1) |" in as_markdown(grid)


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0.00784, "0.00784"), (0.9996, "1.00"), (9.996, "10.0"), (99.96, "100"), (1234.4, "1234"), (0.0, "0.00")],
)
def test_three_digits_are_those_of_the_rounded_number(number, shown):
    assert three_digits(number) == shown


def test_columns_are_aligned_as_a_terminal_shows_them():
    rows = [["clip", "frames"], ["雨の街", "12"], ["cafe\u0301", "345"]]
    assert aligned(rows) == ["clip    frames", "雨の街      12", "cafe\u0301       345"]

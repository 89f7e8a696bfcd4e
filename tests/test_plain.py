"""Files of strangers: what is read from JSON is of the kind and size that it is read as."""

from __future__ import annotations

import json
import math

import pytest

from csd_plugin.plain import (
    as_json_has_it,
    file_name,
    number,
    parse_json,
    plain_text,
    score_number,
    section_of,
    whole_number,
)


@pytest.mark.parametrize("text", ["[" * 10**5, "NaN", "-Infinity", "1e999", "9" * 400, "-" + "9" * 5000, ""])
def test_what_is_no_json_or_no_number_is_a_value_error(text):
    for given in (text, text.encode()):
        with pytest.raises(ValueError):
            parse_json(given)


def test_numbers_that_a_float_holds_are_read():
    content = {"a": [1.5, -2, 2**63, 1e308, 10**299, 0.0, True, None], "b": "Infinity"}
    assert parse_json(json.dumps(content)) == parse_json(json.dumps(content).encode("utf-16")) == content
    assert parse_json("[Infinity]", finite=False) == [math.inf]


@pytest.mark.parametrize("value", [True, "3", 3.0, None, [3], -1, 11, math.nan])
def test_whole_numbers_are_no_others(value):
    assert whole_number(0, "x", 0, 10) == 0 and whole_number(10, "x", 0, 10) == 10
    with pytest.raises(ValueError, match="x is "):
        whole_number(value, "x", 0, 10)


@pytest.mark.parametrize("value", [True, "3", None, [3], math.nan, math.inf, -0.1, 10**400])
def test_numbers_are_finite(value):
    assert number(3, "x", 0, 10) == 3 and number(0.5, "x", 0, 10) == 0.5
    with pytest.raises(ValueError, match="x is "):
        number(value, "x", 0, 10)


def test_infinite_scores_are_texts_in_between():
    scores = {"a": [math.inf, 1.5], "b": {"c": -math.inf, "d": "e", "f": None}}
    text = json.dumps(as_json_has_it(scores), allow_nan=False)
    assert text == '{"a": ["inf", 1.5], "b": {"c": "-inf", "d": "e", "f": null}}'
    assert [score_number(value, "x") for value in ("inf", -math.inf, 1.5)] == [math.inf, -math.inf, 1.5]
    for value in ("nan", "3", math.nan, True, None, [], {}):
        with pytest.raises(ValueError, match="x is "):
            score_number(value, "x")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/a", "a\\b", "C:a", "a\0", "a\n", "\ud800", "a\u202eb", "x" * 201, 5, None]
)
def test_names_of_files_are_no_paths(name):
    assert file_name("1-garden.v2-000060", "x") == "1-garden.v2-000060"
    with pytest.raises(ValueError, match="x is "):
        file_name(name, "x")


def test_sections_have_the_keys_that_are_read():
    keys = frozenset(("a", "b"))
    assert section_of({"a": 1, "b": 2}, "x", keys) == {"a": 1, "b": 2}
    for value, said in (
        ({"a": 1}, "x lacks 'b'"),
        ({"a": 1, "b": 2, "c": 3}, "x has the unknown key 'c'"),
        ([], "x is"),
    ):
        with pytest.raises(ValueError, match=said):
            section_of(value, "x", keys)
    with pytest.raises(ValueError, match="x is "):
        plain_text("a\0b", "x")

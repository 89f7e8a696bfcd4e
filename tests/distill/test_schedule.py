"""Weights that change: where they start, where they end, what lies between, and when they are never on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csd_plugin.distill.schedule import SCHEDULES, check_weight, is_ever_on, weight_at
from csd_plugin.distill.settings import teacher_labels, teacher_shares
from csd_plugin.errors import CSDError

numbers = st.floats(0, 2, allow_nan=False)


def scheduled(name, start=0.3, end=0.1, iters=4):
    return {"schedule": name, "start": start} | ({} if name == "constant" else {"end": end, "iters": iters})


def test_a_number_is_itself():
    assert weight_at(0.1, 1) == weight_at(0.1, 10**6) == 0.1
    assert is_ever_on(0.1) and not is_ever_on(0)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("constant", [0.3] * 6),
        ("linear", [0.3, 0.25, 0.2, 0.15, 0.1, 0.1]),
        ("cosine", [0.3, 0.2 + 0.1 * 0.5**0.5, 0.2, 0.2 - 0.1 * 0.5**0.5, 0.1, 0.1]),
        ("stop_at", [0.3, 0.3, 0.3, 0.3, 0.1, 0.1]),
    ],
)
def test_schedules(name, values):
    assert [weight_at(scheduled(name), i) for i in range(1, 7)] == pytest.approx(values)


def test_the_end_is_zero_unless_it_is_given():
    assert weight_at({"schedule": "stop_at", "start": 0.1, "iters": 3}, 4) == 0
    assert weight_at({"schedule": "linear", "start": 0.1, "iters": 3}, 4) == 0


@given(st.sampled_from(sorted(SCHEDULES)), numbers, numbers, st.integers(1, 50))
def test_what_holds_for_all(name, start, end, iters):
    weight = scheduled(name, start, end, iters)
    check_weight(weight)
    values = [weight_at(weight, i) for i in range(1, iters + 3)]
    assert values[0] == start
    assert values[-1] == (start if name == "constant" else end)
    low, high = min(start, end) - 1e-12, max(start, end) + 1e-12
    assert all(low <= value <= high for value in values)
    assert is_ever_on(weight) == any(values)


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        ({"schedule": "cosin", "start": 1.0}, "'cosin' is unknown; did you mean cosine"),
        ({"schedule": "linear", "start": 1.0}, "linear needs iters"),
        ({"schedule": "constant", "start": 1.0, "end": 0.0}, "takes no end"),
        (-0.1, "a weight is -0.1, expected 0 or more"),
        ({"schedule": "linear", "start": -1.0, "iters": 5}, "a weight is -1.0"),
        ({"schedule": "linear", "start": 1.0, "end": -0.5, "iters": 5}, "a weight is -0.5"),
        ({"balance": -0.3}, "a weight is -0.3"),
        (float("nan"), "a weight is nan"),
        (float("inf"), "a weight is inf"),
    ],
)
def test_keys_that_do_not_go_together(weight, words):
    with pytest.raises(CSDError, match=words):
        check_weight(weight)


def test_labels_of_teachers_go_by_their_numbers():
    keys = ["network_t10", "network_g", "network_t2", "network_t", "network_t1", "network_t02", "network_tx", "path"]
    assert teacher_labels(keys) == ["t", "t2", "t10"]


def test_shares_of_teachers():
    assert teacher_shares(["t"], None) == teacher_shares(["t"], {"t": 0.3}) == {"t": 1.0}
    assert teacher_shares(["t", "t2"], None) == {"t": 0.5, "t2": 0.5}
    assert teacher_shares(["t", "t2", "t3"], {"t": 1, "t2": 0.0, "t3": 3}) == {"t": 0.25, "t3": 0.75}


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"t": 1.0, "t3": 1.0}, "'t3' is unknown"),
        ({"t": 1.0}, "'t2' has no weight"),
        ({"t": 0.0, "t2": 0.0}, "at least one must be above 0"),
        ({"t": 2.0, "t2": -1.0}, "must be 0 or more"),
    ],
)
def test_wrong_weights_of_teachers(weights, words):
    with pytest.raises(CSDError, match=words):
        teacher_shares(["t", "t2"], weights)

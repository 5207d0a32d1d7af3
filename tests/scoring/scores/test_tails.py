"""Tails: empirical probabilities that neither tie nor stop at the largest value seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covary.scoring.scores.tails import Tail


def test_at_the_values_themselves_it_is_the_share_at_least_as_large():
    values = np.array([3.0, -1.0, 0.5, 7.0, 2.0])
    found = np.exp(Tail().fit(values).log_p(values))
    for value, p in zip(values, found, strict=True):
        assert p == pytest.approx((sum(v >= value for v in values) - 0.5) / (len(values) + 1))


def test_equal_values_share_one_probability():
    values = np.array([1.0, 1.0, 1.0, 2.0])
    assert np.exp(Tail().fit(values).log_p(np.array([1.0])))[0] == pytest.approx((4 - 0.5) / 5)


def test_beyond_the_largest_value_it_goes_on_at_one_nat_a_standard_deviation():
    values = np.random.default_rng(0).normal(size=50)
    tail = Tail().fit(values)
    top, sd = values.max(), values.std()
    beyond = tail.log_p(top + sd * np.array([0.0, 1e-6, 1.0, 2.0, 50.0, 1e4]))
    np.testing.assert_allclose(beyond - beyond[0], [0, -1e-6, -1, -2, -50, -1e4], rtol=1e-6, atol=1e-9)
    assert beyond[0] <= math.log(1 / 51), "no more likely than what conformal ranking says of the largest"
    assert (np.diff(beyond) < 0).all()


def test_below_the_smallest_value_it_approaches_one():
    values = np.random.default_rng(0).normal(size=50)
    p = np.exp(Tail().fit(values).log_p(values.min() - np.array([0.0, 0.5, 1.0, 5.0])))
    assert (np.diff(p) > 0).all()
    assert (p < 1).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    values=st.lists(st.integers(-1000, 1000), min_size=2, max_size=40),
    queries=st.lists(st.integers(-3000, 3000), min_size=2, max_size=20, unique=True),
)
def test_strictly_falling_everywhere(values, queries):
    table = np.array(values, float) / 7
    if len(set(values)) == 1:
        return
    queries = np.sort(np.array(queries, float) / 7)
    # Towards p = 1 the steps sink below what a double can tell apart; not a matter of the tail that counts.
    queries = queries[queries > table.min() - 20 * table.std()]
    assert (np.diff(Tail().fit(table).log_p(queries)) < 0).all()


def test_constant_values_stay_finite():
    found = Tail().fit(np.full(10, 2.0)).log_p(np.array([1.0, 2.0, 3.0]))
    assert np.isfinite(found).all()
    assert found[2] < found[1] <= found[0]

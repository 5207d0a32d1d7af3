"""Intervals and tests beside slow obvious ones and published examples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from covary.runs.figures.rate_tests import (
    difference_interval,
    exact_interval,
    rate_test,
    shift_test,
    superiority,
    wilson_interval,
)


def flags(k, n):
    return np.arange(n) < k


def pairs(both, first, second, neither):
    before = np.repeat([True, True, False, False], [both, first, second, neither])
    after = np.repeat([True, False, True, False], [both, first, second, neither])
    return before, after


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 40), (3, 40), (40, 40), (499, 1000)])
def test_exact_and_score_intervals_are_scipy_s(k, n):
    for ours, method in ((exact_interval, "exact"), (wilson_interval, "wilson")):
        theirs = stats.binomtest(k, n).proportion_ci(0.95, method)
        assert ours(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_the_difference_of_newcombe_s_example():
    """56 of 70 against 48 of 80: 0.0524 to 0.3339 by his method 10."""
    low, high = difference_interval(flags(48, 80), flags(56, 70), False)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_the_paired_difference_covers():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        before = rng.random(150) < 0.1
        after = np.where(rng.random(150) < 0.8, before, rng.random(150) < 0.3)
        low, high = difference_interval(before, after, True)
        hits += low <= 0.2 * (0.3 - 0.1) <= high
    assert hits >= 370  # 95 % of 400, less four standard deviations
    assert difference_interval(flags(0, 30), flags(0, 30), True) == pytest.approx(
        difference_interval(flags(0, 30), flags(0, 30), False)
    )


def test_agreement_narrows_the_paired_interval():
    before, after = pairs(30, 2, 5, 63)
    inner, outer = difference_interval(before, after, True), difference_interval(before, after, False)
    assert outer[0] < inner[0] < 0.03 < inner[1] < outer[1]


def test_flips_in_both_directions_count_against_each_other():
    def oracle(up, down):
        n = up + down
        tail = sum(stats.binom.pmf(i, n, 0.5) for i in range(min(up, down) + 1))
        return min(1.0, 2 * tail)

    for up, down in ((0, 0), (5, 0), (9, 2), (4, 4)):
        assert rate_test(*pairs(10, down, up, 100), True) == pytest.approx(oracle(up, down) if up + down else 1.0)
    assert rate_test(flags(1, 50), flags(9, 60), False) == pytest.approx(stats.fisher_exact([[1, 49], [9, 51]])[1])


def test_shift_and_its_size():
    rng = np.random.default_rng(1)
    before = np.round(rng.normal(size=60), 1)
    other = np.round(rng.normal(0.8, size=45), 1)
    by_hand = np.mean([(b > a) + 0.5 * (b == a) for a in before for b in other])
    area, (low, high) = superiority(before, other, False)
    assert area == pytest.approx(by_hand)
    assert low < area < high
    assert shift_test(before, other, False) < 0.01
    after = before + rng.choice([0.0, 0.1], 60)
    share, _ = superiority(before, after, True)
    assert share == pytest.approx(((after > before) + 0.5 * (after == before)).mean())
    assert shift_test(before, after, True) < 1e-3
    assert shift_test(before, before, True) == 1.0
    assert superiority(before, before, True)[0] == 0.5


def test_the_interval_of_the_area_covers():
    rng = np.random.default_rng(2)
    truth = stats.norm.cdf(0.5 / np.sqrt(2))
    hits = 0
    for _ in range(300):
        low, high = superiority(rng.normal(size=60), rng.normal(0.5, size=80), False)[1]
        hits += low <= truth <= high
    assert hits >= 270

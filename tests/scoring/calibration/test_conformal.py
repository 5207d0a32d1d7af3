"""Calibration: p-values by counting, their validity by simulation, Benjamini-Hochberg against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from covary.scoring.calibration.conformal import (
    benjamini_hochberg,
    class_groups,
    conformal_p,
    cross_conformal_bound,
    cross_conformal_p,
    false_alarm_interval,
    grouped_p,
    least_flagged_for_fdr,
    needed,
    rank_of_threshold,
    rate_interval,
    resolve,
    smallest_p,
)

# Simulations: a mean over repetitions may exceed its law by this many of its own standard errors.
SIGMAS = 4.0
scores = st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=30).map(np.array)


def slow_p(score: float, calibration: np.ndarray) -> float:
    return (1 + sum(1 for c in calibration if c >= score)) / (1 + len(calibration))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(queries=scores, calibration=scores)
def test_conformal_p_by_counting(queries, calibration):
    found = conformal_p(queries, calibration)
    for score, p in zip(queries, found, strict=True):
        assert p == pytest.approx(slow_p(score, calibration))
    assert (found > 0).all()
    assert (found <= 1).all()
    ordered = conformal_p(np.sort(queries), calibration)
    assert (np.diff(ordered) <= 0).all(), "a higher score never has a higher p"


def test_ties_with_calibration_count_against_the_alarm():
    assert conformal_p(np.array([3.0]), np.array([1.0, 3.0, 3.0]))[0] == 3 / 4
    assert conformal_p(np.array([4.0]), np.array([1.0, 3.0, 3.0]))[0] == 1 / 4 == smallest_p(3)


def test_conformal_p_is_super_uniform_and_not_wasteful():
    rng = np.random.default_rng(0)
    repetitions, n, q = 4000, 39, 5
    p = np.stack([conformal_p(rng.gumbel(size=q), rng.gumbel(size=n)) for _ in range(repetitions)])
    for alpha in (0.025, 0.05, 0.1, 0.33):
        rates = (p <= alpha + 1e-12).mean(1)
        exact = math.floor(alpha * (n + 1) + 1e-9) / (n + 1)
        assert abs(rates.mean() - exact) < SIGMAS * rates.std() / math.sqrt(repetitions)


def test_needed_and_resolution():
    assert [needed(a) for a in (0.01, 0.05, 0.1, 0.03, 1 / 3)] == [99, 19, 9, 33, 2]
    for alpha in (0.01, 0.05, 0.1, 0.03, 0.2, 0.007):
        n = needed(alpha)
        assert smallest_p(n) <= alpha * (1 + 1e-9) < smallest_p(n - 1)
    fine = resolve(0.01, 99)
    assert (fine.fpr, fine.p_min, fine.statement) == (0.01, 0.01, "")
    coarse = resolve(0.01, 49)
    assert coarse.fpr == coarse.p_min == 0.02
    for part in ("49", "0.01", "0.02", "99"):
        assert part in coarse.statement


def test_groups_of_classes():
    # At 10 % a class needs 9; classes 2 and 3 are thin and together have 10.
    classes = np.repeat([0, 1, 2, 3], [30, 9, 6, 4])
    assert class_groups(classes, 0.1) == {0: 0, 1: 1, 2: -1, 3: -1}
    # Together 8: too few, so nobody is ranked apart, not even class 0.
    assert class_groups(np.repeat([0, 1, 2, 3], [30, 9, 5, 3]), 0.1) is None
    assert class_groups(np.repeat([0, 1], [30, 9]), 0.1) == {0: 0, 1: 1}
    assert class_groups(np.repeat([0, 1], [30, 9]), 0.01) is None
    assert class_groups(np.repeat([0, 1], [60, 60]), 0.01) == {0: -1, 1: -1}


def test_ranks_within_the_own_group():
    classes = np.repeat([0, 1, 2], [10, 6, 5]).astype(np.int64)
    calibration = np.random.default_rng(0).normal(size=21)
    queries, query_classes = np.array([0.3, 0.3, 0.3, 0.3]), np.array([0, 1, 2, 9])
    found = grouped_p(queries[None], query_classes, calibration, np.zeros(21, int), classes, {0: 0, 1: -1, 2: -1})
    thin = slow_p(0.3, calibration[classes != 0])
    assert found.tolist() == pytest.approx([slow_p(0.3, calibration[:10]), thin, thin, thin])
    alone = grouped_p(queries[None], query_classes, calibration, np.zeros(21, int), classes, {0: 0, 1: 1, 2: 2})
    assert alone[3] == pytest.approx(slow_p(0.3, calibration)), "an unknown class, nothing thin: among all"


def test_ranks_within_the_own_group_across_folds():
    rng = np.random.default_rng(3)
    classes, folds, calibration = np.repeat([0, 1, 2], [9, 7, 5]), np.arange(21) % 3, rng.normal(size=21)
    queries, query_classes = rng.normal(size=(3, 8)), rng.integers(0, 3, 8)
    groups = {0: 0, 1: -1, 2: -1}
    found = grouped_p(queries, query_classes, calibration, folds, classes, groups)
    for q in range(8):
        peers = [i for i in range(21) if groups[int(classes[i])] == groups[int(query_classes[q])]]
        beaten = sum(calibration[i] >= queries[folds[i], q] for i in peers)
        assert found[q] == pytest.approx((1 + beaten) / (1 + len(peers)))


def test_the_rate_of_one_detector_by_simulation():
    # Uniform scores: the rate of a detector is 1 - its threshold, the j-th largest of n.
    n, fpr = 150, 0.02
    rates = 1 - np.sort(np.random.default_rng(4).random((20_000, n)), axis=1)[:, -rank_of_threshold(fpr, n)]
    np.testing.assert_allclose(rate_interval(fpr, n), np.quantile(rates, [0.005, 0.995]), rtol=0.1)
    assert rate_interval(0.001, n) == (0.0, 0.0)


def test_class_conditional_ranking_holds_in_every_group_where_pooling_does_not():
    # Class 2 scores much higher; nominal 10 %. Pooled ranking alarms on it far too often, group ranking does not.
    rng = np.random.default_rng(1)
    repetitions, mix = 1500, [0.6, 0.3, 0.1]
    rates = {"pooled": [], 0: [], 1: [], 2: []}
    for _ in range(repetitions):
        classes = rng.choice(3, 150, p=mix)
        query_classes = np.repeat([0, 1, 2], 10)
        calibration = rng.normal(size=150) + 2 * (classes == 2)
        queries = rng.normal(size=30) + 2 * (query_classes == 2)
        groups = class_groups(classes, 0.1)
        p = (
            conformal_p(queries, calibration)
            if groups is None
            else grouped_p(queries[None], query_classes, calibration, np.zeros(150, int), classes, groups)
        )
        if groups is not None:
            for label in range(3):
                rates[label].append((p[query_classes == label] <= 0.1).mean())
            rates["pooled"].append((conformal_p(queries[20:], calibration) <= 0.1).mean())
    assert len(rates[0]) > 1000
    for label in range(3):
        own = np.array(rates[label])
        assert own.mean() <= 0.1 + SIGMAS * own.std() / math.sqrt(len(own))
        assert own.mean() > 0.07
    assert np.mean(rates["pooled"]) > 0.3


@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=st.integers(5, 25), q=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_cross_conformal_p_by_counting(n, q, seed):
    rng = np.random.default_rng(seed)
    folds = rng.permutation(np.arange(n) % 5)
    queries, calibration = rng.integers(0, 9, size=(5, q)).astype(float), rng.integers(0, 9, size=n).astype(float)
    found = cross_conformal_p(queries, calibration, folds)
    for j in range(q):
        beaten = sum(calibration[i] >= queries[folds[i], j] for i in range(n))
        assert found[j] == pytest.approx((1 + beaten) / (1 + n))


def test_cross_conformal_with_one_detector_is_split_conformal():
    rng = np.random.default_rng(0)
    queries, calibration = rng.normal(size=7), rng.normal(size=33)
    found = cross_conformal_p(np.tile(queries, (5, 1)), calibration, np.arange(33) % 5)
    np.testing.assert_allclose(found, conformal_p(queries, calibration))


@pytest.mark.parametrize(
    ("n", "term"),
    [
        # min{2 (1 - 1/K) / (n/K + 1), (1 - K/n) / (K + 1)} at K = 5, worked by hand.
        (100, 1.6 / 21),
        (300, 1.6 / 61),
        (20, (1 - 0.25) / 6),
        (5, 0.0),  # leave one out
        (103, 1.6 / (103 / 5 + 1)),
        (23, 1.6 / (23 / 5 + 1)),  # folds of unequal size: the first term alone
    ],
)
def test_cross_conformal_bound_is_the_theorems(n, term):
    assert cross_conformal_bound(0.05, n, 5) == pytest.approx(0.1 + term)
    assert n % 5 or cross_conformal_bound(0.05, n, 5) <= 0.1 + math.sqrt(2 / n)


def test_cross_conformal_bound_leaves_room_for_the_worst_average_of_p_values():
    # The folds' p-values p_k = (1 + count) / (1 + m) give (1 + n) p = (n + K) mean(p_k) - (K - 1), and a mean of
    # p-values is at worst half a p-value: P(p <= a) <= 2 ((1 + n) a + K - 1) / (n + K).
    for n in (50, 100, 200, 325):
        for alpha in (0.01, 0.05, 0.1):
            by_averages = 2 * ((1 + n) * alpha + 4) / (n + 5)
            assert cross_conformal_bound(alpha, n, 5) >= min(by_averages, 2 * alpha + (1 - 5 / n) / 6) - 1e-12


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=40), st.sampled_from([0.01, 0.05, 0.1, 0.3]))
def test_benjamini_hochberg_against_scipy(p, rate):
    p = np.array(p)
    adjusted = false_discovery_control(p, method="bh")
    clear = np.abs(adjusted - rate) > 1e-12  # at equality rounding decides
    np.testing.assert_array_equal(benjamini_hochberg(p, rate)[clear], (adjusted <= rate)[clear])


def test_benjamini_hochberg_by_hand():
    # Thresholds .02 .04 .06 .08 .10: .03 fails at rank 1 but .035 passes at rank 2 and takes it along.
    assert benjamini_hochberg(np.array([0.5, 0.035, 0.9, 0.03, 0.7]), 0.1).tolist() == [False, True, False, True, False]
    assert not benjamini_hochberg(np.array([0.03, 0.5]), 0.05).any()
    assert benjamini_hochberg(np.array([0.02, 0.02, 0.02]), 0.02).all(), "ties go together"
    assert benjamini_hochberg(np.array([]), 0.1).tolist() == []


def test_benjamini_hochberg_holds_its_rate_on_conformal_p_values():
    rng = np.random.default_rng(2)
    shares = []
    for _ in range(800):
        queries = np.concatenate([rng.normal(size=80), rng.normal(size=20) + 4])
        flagged = benjamini_hochberg(conformal_p(queries, rng.normal(size=400)), 0.2)
        shares.append(flagged[:80].sum() / max(flagged.sum(), 1))
    assert np.mean(shares) <= 0.2 + SIGMAS * np.std(shares) / math.sqrt(len(shares))
    assert np.mean(shares) > 0.1


@pytest.mark.parametrize(("rate", "n_calibration", "n"), [(0.1, 99, 1000), (0.05, 420, 800), (0.2, 19, 7)])
def test_how_many_must_share_the_smallest_p(rate, n_calibration, n):
    p_min = smallest_p(n_calibration)
    least = least_flagged_for_fdr(rate, p_min, n)
    for count in range(1, min(least + 2, n + 1)):
        p = np.ones(n)
        p[:count] = p_min
        assert benjamini_hochberg(p, rate).any() == (count >= least), count


@pytest.mark.parametrize(("fpr", "n", "clean"), [(0.01, 420, 800), (0.05, 60, 100), (0.1, 50, 1000)])
def test_false_alarm_interval_holds_the_simulated_rate(fpr, n, clean):
    rng = np.random.default_rng(3)
    repetitions = 4000
    low, high = false_alarm_interval(fpr, n, clean)
    realised = np.empty(repetitions)
    for i in range(repetitions):
        realised[i] = (conformal_p(rng.random(clean), rng.random(n)) <= fpr * (1 + 1e-9)).mean()
    inside = ((realised >= low - 1e-12) & (realised <= high + 1e-12)).mean()
    # 99 % promised; four standard errors of a share of 0.99 below it.
    assert inside >= 0.99 - SIGMAS * math.sqrt(0.99 * 0.01 / repetitions)
    # No wider than it must be: half a per cent lies outside on each side, up to the law's own steps.
    step = 1 / clean
    assert (realised < low + 2 * step).mean() > 0.001 or low == 0
    assert (realised > high - 2 * step).mean() > 0.001


def test_no_alarms_are_possible_below_the_resolution():
    assert false_alarm_interval(0.01, 50, 100) == (0.0, 0.0)
    assert false_alarm_interval(0.01, 100, 0) == (0.0, 0.0)

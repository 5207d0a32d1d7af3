"""Roles: shares, strata, and splits that depend on names alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covary.scoring.splits import CROSS_CONFORMAL_BELOW, FOLDS, SHARES, cross_folds, random_order, split


def names(n: int) -> list[str]:
    return [f"image-{i}.png" for i in range(n)]


def classes_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(5, size=n, p=[0.4, 0.3, 0.2, 0.08, 0.02]).astype(np.int64)


def test_the_published_shares():
    assert SHARES == {"reference": 0.35, "fit": 0.35, "calibration": 0.30}
    assert CROSS_CONFORMAL_BELOW == 330
    assert FOLDS == 5


@settings(max_examples=30, deadline=None, derandomize=True)
@given(n=st.integers(3, 300), seed=st.integers(0, 99))
def test_roles_are_disjoint_and_leave_nobody_out(n, seed):
    parts = split(names(n), classes_of(n, seed), seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))


@pytest.mark.parametrize("n", [400, 1400])
def test_shares_and_strata(n):
    classes = classes_of(n)
    parts = split(names(n), classes, 0)
    np.testing.assert_allclose([len(part) / n for part in parts], [0.35, 0.35, 0.30], atol=0.01)
    for label in range(5):
        own = int((classes == label).sum())
        counts = [int((classes[part] == label).sum()) for part in parts]
        if own >= 6:
            # A class dealt out on its own is within one sample of its shares.
            np.testing.assert_allclose(counts, own * np.array([0.35, 0.35, 0.30]), atol=1.001)
            assert min(counts) >= 2


def test_thin_classes_are_dealt_out_together():
    # 40 classes of three samples: no role can have two of each, but every role gets its share of them.
    classes = np.repeat(np.arange(40), 3).astype(np.int64)
    parts = split(names(120), classes, 1)
    assert [len(part) for part in parts] == [42, 42, 36]


def test_other_shares():
    parts = split(names(101), classes_of(101), 0, {"reference": 0.5, "fit": 0.5})
    assert len(parts) == 2
    assert abs(len(parts[0]) - len(parts[1])) <= 5


@settings(max_examples=25, deadline=None, derandomize=True)
@given(order=st.permutations(range(60)), seed=st.integers(0, 9))
def test_the_order_samples_come_in_changes_nothing(order, seed):
    ids, classes = names(60), classes_of(60)
    order = np.array(order)
    moved_ids = [ids[i] for i in order]
    for plain, moved in zip(split(ids, classes, seed), split(moved_ids, classes[order], seed), strict=True):
        assert [ids[i] for i in plain] == [moved_ids[i] for i in moved]
    plain, moved = cross_folds(ids, classes, seed), cross_folds(moved_ids, classes[order], seed)
    np.testing.assert_array_equal(moved, plain[order])


def test_the_seed_and_the_purpose_choose_the_split():
    ids, classes = names(200), classes_of(200)
    assert set(split(ids, classes, 0)[0].tolist()) != set(split(ids, classes, 1)[0].tolist())
    assert random_order(ids, 0, "roles").tolist() != random_order(ids, 0, "folds").tolist()
    assert sorted(random_order(ids, 0, "roles").tolist()) == list(range(200))


def test_positions_within_a_role_are_in_random_order():
    # Fit samples are put into folds by position, so the order must not follow classes or names.
    classes = np.repeat(np.arange(4), 100).astype(np.int64)
    fit = split(names(400), classes, 0)[1]
    folds = np.arange(len(fit)) % 5
    counts = np.array([[((classes[fit] == c) & (folds == f)).sum() for f in range(5)] for c in range(4)])
    assert counts.min() >= 2
    assert np.abs(np.corrcoef(np.arange(len(fit)), classes[fit])[0, 1]) < 0.3


def test_cross_folds_spread_classes_evenly():
    classes = classes_of(203)
    folds = cross_folds(names(203), classes, 0)
    assert np.bincount(folds).min() >= 40
    for label in range(5):
        counts = np.bincount(folds[classes == label], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_every_sample_calibrates_equally_often():
    # Within a class membership must be a matter of chance: over seeds each sample calibrates with its 30 %.
    ids, classes = names(50), np.repeat([0, 1], [40, 10]).astype(np.int64)
    seeds = 400
    often = np.zeros(50)
    for seed in range(seeds):
        often[split(ids, classes, seed)[2]] += 1
    # Five standard errors of a proportion.
    for label, share in ((0, 12 / 40), (1, 3 / 10)):
        error = np.sqrt(share * (1 - share) / seeds)
        assert np.abs(often[classes == label] / seeds - share).max() < 5 * error

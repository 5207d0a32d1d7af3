"""Roles: shares, strata, and splits that depend on names alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covary.errors import CovaryError
from covary.scoring.calibration.conformal import cross_conformal_bound, cross_conformal_p
from covary.scoring.calibration.splits import (
    CROSS_UP_TO,
    FOLDS,
    LEAST_SPLIT,
    SHARES,
    across,
    apart_size,
    calibrating,
    calibration_size,
    chosen_on,
    cross_folds,
    halves,
    never_calibrating,
    random_order,
    recorded,
    set_apart,
    split,
)


def names(n: int) -> list[str]:
    return [f"image-{i}.png" for i in range(n)]


def classes_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(5, size=n, p=[0.4, 0.3, 0.2, 0.08, 0.02]).astype(np.int64)


def test_the_published_shares():
    assert SHARES == {"reference": 0.35, "fit": 0.35, "calibration": 0.30}
    assert (LEAST_SPLIT, CROSS_UP_TO) == (330, 4000)
    assert FOLDS == 5


@settings(max_examples=30, deadline=None, derandomize=True)
@given(n=st.integers(3, 300), seed=st.integers(0, 99))
def test_roles_are_disjoint_and_leave_nobody_out(n, seed):
    split_roles = split(names(n), classes_of(n, seed), seed)
    parts = [split_roles.reference, split_roles.fit, split_roles.calibration]
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    apart = split(names(n), classes_of(n, seed), seed, calibration_apart=True)
    assert len(apart.calibration) == 0
    assert sorted([*apart.reference, *apart.fit]) == list(range(n))


@pytest.mark.parametrize("n", [400, 1400])
def test_shares_and_strata(n):
    classes = classes_of(n)
    split_roles = split(names(n), classes, 0)
    assert len(split_roles.calibration) == calibration_size(n) == round(0.3 * n)
    np.testing.assert_allclose([len(split_roles.reference) / n, len(split_roles.fit) / n], 0.35, atol=0.01)
    for label in range(5):
        counts = [int((classes[part] == label).sum()) for part in (split_roles.reference, split_roles.fit)]
        if sum(counts) >= 4:
            assert abs(counts[0] - counts[1]) <= 1
            assert min(counts) >= 2


def test_classes_choose_nothing_about_who_calibrates():
    n = 400
    one, other = (split(names(n), classes, 0) for classes in (classes_of(n), np.zeros(n, np.int64)))
    np.testing.assert_array_equal(one.calibration, other.calibration)
    for split_roles in (across(names(n), classes_of(n), 0), across(names(n), np.zeros(n, np.int64), 0)):
        np.testing.assert_array_equal(split_roles[2].calibration, np.flatnonzero(cross_folds(names(n), 0) == 2))


def test_thin_classes_are_dealt_out_together():
    # 40 classes of three samples: no half can have two of each, but both get their share of them.
    classes = np.repeat(np.arange(40), 3).astype(np.int64)
    assert [len(half) for half in halves(names(120), classes, 1)] == [60, 60]


@pytest.mark.parametrize("classes", [10, 43])
def test_folds_agree_on_who_is_reference_and_who_fits(classes):
    labels = np.random.default_rng(0).integers(0, classes, 500)
    every = across(names(500), labels, 0)
    for one in every:
        assert abs(len(one.reference) - len(one.fit)) <= classes
        for other in every:
            stay = np.intersect1d(one.reference, np.concatenate([other.reference, other.fit]))
            assert np.isin(stay, other.reference).mean() > 0.85


def test_recorded_roles_are_obeyed():
    ids, classes = names(200), classes_of(200)
    split_roles = across(ids, classes, 3)
    roles = {
        f"{role} {k}": [ids[i] for i in getattr(one, role)]
        for k, one in enumerate(split_roles)
        for role in ("reference", "fit", "calibration")
    }
    for one, again in zip(split_roles, recorded(ids, roles), strict=True):
        for role in ("reference", "fit", "calibration"):
            np.testing.assert_array_equal(getattr(one, role), getattr(again, role))
    with pytest.raises(CovaryError, match=r"'image-0.png' has the role"):
        recorded(ids[1:], roles)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(order=st.permutations(range(60)), seed=st.integers(0, 9))
def test_the_order_samples_come_in_changes_nothing(order, seed):
    ids, classes = names(60), classes_of(60)
    order = np.array(order)
    moved_ids = [ids[i] for i in order]
    one, other = split(ids, classes, seed), split(moved_ids, classes[order], seed)
    assert [ids[i] for i in one.calibration] == [moved_ids[i] for i in other.calibration]
    for role in ("reference", "fit"):
        assert [ids[i] for i in getattr(one, role)] == [moved_ids[i] for i in getattr(other, role)]
    np.testing.assert_array_equal(cross_folds(moved_ids, seed), cross_folds(ids, seed)[order])


def test_the_seed_and_the_purpose_choose_the_split():
    ids, classes = names(200), classes_of(200)
    assert set(split(ids, classes, 0).reference.tolist()) != set(split(ids, classes, 1).reference.tolist())
    assert random_order(ids, 0, "roles").tolist() != random_order(ids, 0, "folds").tolist()
    assert sorted(random_order(ids, 0, "roles").tolist()) == list(range(200))


def test_positions_within_a_role_are_in_random_order():
    # Fit samples are put into folds by position, so the order must not follow classes or names.
    classes = np.repeat(np.arange(4), 100).astype(np.int64)
    fit = split(names(400), classes, 0).fit
    folds = np.arange(len(fit)) % 5
    counts = np.array([[((classes[fit] == c) & (folds == f)).sum() for f in range(5)] for c in range(4)])
    assert counts.min() >= 2
    assert np.abs(np.corrcoef(np.arange(len(fit)), classes[fit])[0, 1]) < 0.3


def test_folds_are_of_one_size():
    assert np.bincount(cross_folds(names(203), 0)).tolist() == [41, 41, 41, 40, 40]


def test_every_sample_calibrates_equally_often():
    ids, classes = names(50), np.repeat([0, 1], [40, 10]).astype(np.int64)
    # Membership is a matter of chance alone: over seeds each sample calibrates with its 30 %, and any two of a class
    # together as often as any two others.
    seeds = 400
    member = np.zeros((seeds, 50))
    for seed in range(seeds):
        member[seed, split(ids, classes, seed).calibration] = 1
    # Five standard errors of a proportion.
    assert np.abs(member.mean(0) - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / seeds)
    rare = member[:, 40:].sum(1)
    expected = 10 * 0.3 * 0.7 * 40 / 49  # hypergeometric
    assert rare.var() == pytest.approx(expected, rel=0.35)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(n=st.integers(20, 2000), seed=st.integers(0, 99))
def test_inputs_set_apart_never_calibrate_and_all_others_do_once(n, seed):
    ids, classes = names(n), classes_of(n, seed)
    apart = set_apart(ids, seed)
    assert len(apart) == apart_size(n) == min(round(0.15 * n), 200)
    held = np.concatenate([split_roles.calibration for split_roles in across(ids, classes, seed, apart)])
    assert sorted([*apart.tolist(), *held.tolist()]) == list(range(n))
    assert len(held) == calibrating(n, "cross", chosen=True)
    for split_roles in across(ids, classes, seed, apart):
        assert set(apart.tolist()) <= {*split_roles.reference.tolist(), *split_roles.fit.tolist()}
    # Nor do they by one split, whose reference and fit choose.
    assert not set(apart.tolist()) & set(split(ids, classes, seed).calibration.tolist())
    assert set(apart.tolist()) <= set(chosen_on(ids, classes, seed, "split").tolist())
    assert chosen_on(ids, classes, seed, "cross").tolist() == apart.tolist()


def test_a_fit_done_again_chooses_on_what_did_not_calibrate_then():
    ids, classes = names(300), classes_of(300)
    split_roles = split(ids, classes, 0)
    roles = {role: [ids[i] for i in getattr(split_roles, role)] for role in ("reference", "fit", "calibration")}
    assert never_calibrating(ids, roles).tolist() == chosen_on(ids, classes, 0, "split").tolist()
    crossed = {f"calibration {k}": [ids[i] for i in own.calibration] for k, own in enumerate(across(ids, classes, 0))}
    assert len(never_calibrating(ids, crossed)) == 300


def realised(chosen_apart: bool, n: int = 340, fresh: int = 300, columns: int = 60, deals: int = 250) -> np.ndarray:
    """Rates of p-values up to 1 and 5 % over many deals, by the least dangerous of many numbers, chosen greedily.

    The chooser takes the number whose largest values on its inputs are the least: the worst it could do to a rate. Each
    fold standardises the number by its own reference and fit.
    """
    rng = np.random.default_rng(4)
    rates = []
    for seed in range(deals):
        x = rng.standard_exponential((n + fresh, columns))
        ids = names(n)
        apart = set_apart(ids, seed) if chosen_apart else None
        looked_at = np.arange(n) if apart is None else apart
        top = np.sort(x[looked_at], axis=0)[-max(1, len(looked_at) // 100)]
        number = x[:, int(top.argmin())]
        folds, scores, queries = np.full(n, -1), np.empty(n), []
        for k, split_roles in enumerate(across(ids, np.zeros(n, np.int64), seed, apart)):
            inside = number[np.concatenate([split_roles.reference, split_roles.fit])]
            folds[split_roles.calibration] = k
            scores[split_roles.calibration] = (number[split_roles.calibration] - inside.mean()) / inside.std()
            queries.append((number[n:] - inside.mean()) / inside.std())
        held = folds >= 0
        p = cross_conformal_p(np.stack(queries), scores[held], folds[held])
        rates.append([(p <= 0.01).mean(), (p <= 0.05).mean()])
    return np.array(rates)


def test_crossing_over_all_but_the_inputs_that_settings_were_chosen_on_keeps_its_rates():
    valid, invalid = realised(True), realised(False)
    n = calibrating(340, "cross", chosen=True)
    for rates, alpha in zip(valid.T, (0.01, 0.05), strict=True):
        error = rates.std(ddof=1) / np.sqrt(len(rates))
        assert rates.mean() < alpha + 4 * error
        assert rates.mean() > 0.6 * alpha
        assert rates.mean() < cross_conformal_bound(alpha, n, FOLDS)
    # Chosen on all of them the rate does not hold.
    error = invalid[:, 0].std(ddof=1) / np.sqrt(len(invalid))
    assert invalid[:, 0].mean() > 0.01 + 6 * error

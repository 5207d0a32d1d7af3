"""Class-wise standardisation against a transcription with loops and an own Ledoit-Wolf."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

import slow
from covary.scoring.scores.standardise import (
    ClassStandardiser,
    Precision,
    held_out,
    held_out_residuals,
    shrunk,
    spread_folds,
)


def numbers(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    classes = rng.choice(4, size=n, p=[0.5, 0.3, 0.15, 0.05])
    mixed = rng.normal(size=(n, d)) @ rng.normal(size=(d, d))
    return mixed * np.linspace(0.1, 5, d) + 3 * classes[:, None], classes.astype(np.int64)


@pytest.mark.parametrize(("n", "d"), [(60, 7), (25, 12), (9, 1), (20, 31)])
def test_against_the_transcription(n, d):
    table, classes = numbers(n, d, n)
    queries, query_classes = numbers(15, d, 99)
    query_classes[:3] = 7  # never seen: takes the common mean
    found = ClassStandardiser().fit(table, classes)
    expected = slow.Standardised(table, classes)
    distances, residuals = found.distance(queries, query_classes), found.residuals(queries, query_classes)
    for i in range(15):
        label = int(query_classes[i])
        np.testing.assert_allclose(residuals[i], expected.residual(queries[i], label), rtol=1e-8)
        assert distances[i] == pytest.approx(expected.distance(queries[i], label), rel=1e-6)


def test_class_means_are_pulled_to_the_common_mean_by_hand():
    table = np.concatenate([np.zeros((20, 1)), np.full((60, 1), 4.0)])
    classes = np.repeat([0, 1], [20, 60])
    found = ClassStandardiser().fit(table, classes)
    # m = 3; w_0 = 20 / 40, so 0 -> 1.5; w_1 = 60 / 80, so 4 -> 3.75.
    assert found.mean_[0] == 3.0
    assert found.class_means_[0][0] == pytest.approx(1.5)
    assert found.class_means_[1][0] == pytest.approx(3.75)
    spread = math.sqrt((20 * 1.5**2 + 60 * 0.25**2) / 80)
    assert found.spread_[0] == pytest.approx(spread), "about the pulled means, not about the classes' own"
    assert found.distance(np.array([[1.5 + spread]]), np.array([0]))[0] == pytest.approx(1.0)
    assert found.residuals(np.array([[3.0]]), np.array([5]))[0, 0] == 0.0


def test_distance_does_not_depend_on_units():
    table, classes = numbers(50, 5, 3)
    scales, offsets = np.array([1.0, 100.0, 0.05, 3.0, 10.0]), np.array([0.0, 5.0, -3.0, 1000.0, 1.0])
    plain = ClassStandardiser().fit(table, classes).distance(table, classes)
    other = ClassStandardiser().fit(table * scales + offsets, classes).distance(table * scales + offsets, classes)
    np.testing.assert_allclose(plain, other, rtol=1e-6)


def test_constant_numbers_neither_divide_by_zero_nor_dominate():
    table, classes = numbers(400, 4, 5)
    table[:, 2] = 7.0
    found = ClassStandardiser().fit(table, classes)
    distances = found.distance(table, classes)
    assert np.isfinite(distances).all()
    other = ClassStandardiser().fit(table[:, [0, 1, 3]], classes).distance(table[:, [0, 1, 3]], classes)
    # The shrinkage's target changes a little with a dead dimension; the picture must not.
    np.testing.assert_allclose(distances, other, rtol=0.1)
    ClassStandardiser().fit(np.full((12, 3), 2.0), classes[:12]).distance(table[:, :3], classes)


def test_fewer_samples_than_dimensions_have_the_length_of_the_full_covariance():
    rng = np.random.default_rng(4)
    samples = rng.normal(size=(12, 40)) @ rng.normal(size=(40, 40))
    vectors = 3 * rng.normal(size=(6, 40)) @ rng.normal(size=(40, 40))
    found = Precision(samples)
    assert found.form.shape == (12, 40)
    full = np.linalg.inv(ledoit_wolf(samples, assume_centered=True)[0])
    np.testing.assert_allclose(found.length(vectors), np.sqrt(np.einsum("ni,ij,nj->n", vectors, full, vectors)))
    # Of samples that are all alike nothing but the ridge is left.
    assert np.isfinite(Precision(np.zeros((3, 8))).length(vectors[:, :8])).all()


def test_held_out_distances_come_from_the_other_folds():
    table, classes = numbers(24, 6, 8)
    residuals, distances = held_out(table, classes, spread_folds(24))
    slow_residuals, slow_distances = slow.held_out(table, classes)
    np.testing.assert_allclose(held_out_residuals(table, classes, spread_folds(24)), slow_residuals)
    np.testing.assert_allclose(residuals, slow_residuals, rtol=1e-7)
    np.testing.assert_allclose(distances, slow_distances, rtol=1e-6)
    inside = ClassStandardiser().fit(table, classes).distance(table, classes)
    assert distances.mean() > 1.1 * inside.mean(), "a covariance's own samples look too near to it"


def test_folds_are_five_and_even():
    assert np.bincount(spread_folds(23)).tolist() == [5, 5, 5, 4, 4]
    assert np.bincount(spread_folds(3)).tolist() == [1, 1, 1]


@pytest.mark.parametrize(("n", "d"), [(30, 4), (12, 40), (20, 1)])
def test_the_shrunk_covariance_is_that_of_scikit_learn(n, d):
    numbers = np.random.default_rng(n).normal(size=(n, d)) * np.arange(1, d + 1)
    expected = np.atleast_2d(ledoit_wolf(numbers, assume_centered=True)[0])
    np.testing.assert_allclose(shrunk(numbers), expected, rtol=1e-12)

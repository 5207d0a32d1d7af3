"""Explanations against solvers of the same problem by other hands, and against its optimality conditions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import nnls
from sklearn.linear_model import Lasso

from covary.scoring.scores.explained import PENALTY, Explanation, explain
from covary.scoring.scores.layers import unit


def problem(q: int = 6, r: int = 12, d: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Queries that lean on few references, with noise, among references that overlap."""
    rng = np.random.default_rng(seed)
    reference = unit(rng.normal(size=(r, d)) + 0.5)
    weights = rng.exponential(size=(q, r)) * (rng.random((q, r)) < 0.3)
    return unit(weights @ reference + 0.1 * rng.normal(size=(q, d))), reference


def by_position(found: Explanation, r: int) -> np.ndarray:
    weights = np.zeros((len(found.weights), r))
    np.put_along_axis(weights, found.candidates, found.weights, axis=1)
    return weights


@pytest.mark.parametrize("penalty", [PENALTY, 0.1])
@pytest.mark.parametrize("shape", [(6, 12, 20), (4, 30, 12)])
def test_against_coordinate_descent(penalty, shape):
    queries, reference = problem(*shape)
    found = explain(queries, reference, penalty=penalty)
    weights = by_position(found, len(reference))
    for i, x in enumerate(queries):
        # scikit-learn divides the squares by the number of equations.
        lasso = Lasso(alpha=penalty / len(x), positive=True, fit_intercept=False, tol=1e-10, max_iter=100_000)
        expected = lasso.fit(reference.T, x).coef_

        def objective(a: np.ndarray, x: np.ndarray = x) -> float:
            return float(np.square(x - a @ reference).sum() / 2 + penalty * a.sum())

        assert objective(weights[i]) <= objective(expected) + 1e-5
        assert found.unexplained[i] == pytest.approx(np.square(x - expected @ reference).sum(), abs=2e-3)
        if len(reference) < len(x):
            np.testing.assert_allclose(weights[i], expected, atol=2e-3)


def test_without_penalty_it_is_non_negative_least_squares():
    queries, reference = problem()
    found = explain(queries, reference, penalty=0.0, steps=2000)
    for i, x in enumerate(queries):
        expected, residual = nnls(reference.T, x)
        assert found.unexplained[i] == pytest.approx(residual**2, abs=1e-5)
        np.testing.assert_allclose(by_position(found, len(reference))[i], expected, atol=1e-3)


def test_optimality_conditions():
    queries, reference = problem(seed=4)
    found = explain(queries, reference)
    weights = by_position(found, len(reference))
    # Z (x - Z^T a) - penalty: zero where a > 0, never positive.
    slope = (queries - weights @ reference) @ reference.T - PENALTY
    assert (slope < 1e-3).all()
    assert np.abs(slope[weights > 1e-2]).max() < 1e-3
    assert (weights >= 0).all()
    assert (weights == 0).mean() > 0.2, "sparse"


def test_unexplained_is_what_the_weights_leave_over():
    queries, reference = problem(q=8, r=100, d=15, seed=2)
    found = explain(queries, reference)
    assert found.candidates.shape == (8, 64)
    left = np.square(queries - by_position(found, 100) @ reference).sum(1)
    np.testing.assert_allclose(found.unexplained, left, atol=1e-10)
    for i, x in enumerate(queries):
        np.testing.assert_array_equal(found.candidates[i], np.argsort(-(reference @ x))[:64])


def test_few_candidates_bound_the_whole_problem_from_above():
    queries, reference = problem(q=8, r=100, d=15, seed=2)
    some, every = explain(queries, reference, candidates=5), explain(queries, reference, candidates=100)
    assert (some.unexplained >= every.unexplained - 1e-3).all()
    assert some.candidates.shape == (8, 5)


def test_extremes():
    reference = np.eye(4)[:2]
    queries = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 0], [0, 0, 0, 0]])
    found = explain(queries, reference)
    # By hand: a = 1 - penalty, so penalty squared is left over.
    assert found.unexplained[0] == pytest.approx(PENALTY**2, abs=1e-6)
    assert by_position(found, 2)[0].tolist() == [pytest.approx(1 - PENALTY, abs=1e-5), 0]
    assert found.unexplained[1] == 1
    assert found.unexplained[2] == 1, "an opposite direction explains nothing"
    assert found.unexplained[3] == 1, "without a gradient there is nothing that a trusted sample accounts for"
    assert (found.weights[1:] == 0).all()


def test_order_of_reference_and_queries_changes_nothing():
    queries, reference = problem(q=8, r=30, seed=5)
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(8), rng.permutation(30)
    plain, moved = explain(queries, reference), explain(queries[rows], reference[columns])
    np.testing.assert_allclose(moved.unexplained, plain.unexplained[rows], atol=1e-10)
    np.testing.assert_allclose(by_position(moved, 30), by_position(plain, 30)[rows][:, columns], atol=1e-9)


def test_copies_in_the_reference_do_not_hinder_it():
    queries, reference = problem(q=4, r=10, seed=6)
    once, many = explain(queries, reference), explain(queries, np.tile(reference, (6, 1)))
    np.testing.assert_allclose(many.unexplained, once.unexplained, atol=2e-3)

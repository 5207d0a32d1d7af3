"""One contract for every score with every coupling, and the readings of a coupling matrix by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_cases import pick, synthetic
from covary.errors import CovaryError
from covary.runs.figures.quality import auroc
from covary.scoring.couplings import COUPLINGS
from covary.scoring.rows import Rows
from covary.scoring.scores import SCORES, Score, score_named
from covary.scoring.scores.coupling import class_max, mean, own_class, top_k

ENTRIES = [(score, coupling) for score in SCORES for coupling in COUPLINGS]
every_entry = pytest.mark.parametrize(("score", "coupling"), ENTRIES)

Reading = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def test_an_unknown_score_lists_the_known_ones():
    with pytest.raises(CovaryError, match="class-max"):
        score_named("max")


@pytest.fixture(scope="module")
def trusted() -> tuple[Rows, Rows]:
    return synthetic(80, 1)[0], synthetic(100, 2)[0]


@pytest.fixture(scope="module")
def queries() -> Rows:
    return synthetic(25, 3, wrong=0.1)[0]


@every_entry
def test_a_planted_foreign_mechanism_scores_higher(score, coupling, trusted):
    fitted = score_named(score, coupling).fit(*trusted)
    clean, odd = fitted.measure(synthetic(80, 5)[0]).score, fitted.measure(synthetic(40, 6, foreign=True)[0]).score
    found = auroc(np.concatenate([clean, odd]), np.repeat([0, 1], [80, 40]))
    assert found is not None
    assert found > 0.9, "higher = more anomalous"


@every_entry
def test_deterministic_shapes_and_a_score_for_everyone(score, coupling, trusted, queries):
    fitted = score_named(score, coupling)
    assert isinstance(fitted, Score)
    first = fitted.fit(*trusted).measure(queries)
    second = score_named(score, coupling).fit(*trusted).measure(queries)
    assert first.score.shape == (len(queries),)
    assert first.score.dtype == np.float64
    np.testing.assert_array_equal(first.score, second.score)
    assert set(first.parts) == set(first.residuals)
    for part in first.parts.values():
        assert part.shape == (len(queries),)
    assert len(np.unique(first.score)) > 20, "a score that tells inputs apart"


@every_entry
def test_one_row_at_a_time_in_any_order_equals_all_at_once(score, coupling, trusted, queries):
    fitted = score_named(score, coupling).fit(*trusted)
    together = fitted.measure(queries)
    order = np.random.default_rng(0).permutation(len(queries))
    for i in order:
        alone = fitted.measure(queries.take([i]))
        np.testing.assert_allclose(alone.score[0], together.score[i], rtol=1e-9, atol=1e-9)
        for kind, values in together.parts.items():
            np.testing.assert_allclose(alone.parts[kind][0], values[i], rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(alone.residuals[kind][0], together.residuals[kind][i], rtol=1e-7, atol=1e-9)
    moved = fitted.measure(queries.take(order))
    np.testing.assert_allclose(moved.score, together.score[order], rtol=1e-9, atol=1e-9)


@every_entry
def test_order_of_the_reference_changes_nothing(score, coupling, trusted, queries):
    reference, fit = trusted
    order = np.random.default_rng(1).permutation(len(reference))
    plain = score_named(score, coupling).fit(reference, fit).measure(queries).score
    moved = score_named(score, coupling).fit(reference.take(order), fit).measure(queries).score
    np.testing.assert_allclose(moved, plain, rtol=1e-6, atol=1e-6)


def silent(rows: Rows, layer: str, which: slice = slice(None)) -> Rows:
    """The rows with no gradient in one layer."""
    functional = {name: part.copy() for name, part in rows.functional.items()}
    functional[layer][which] = 0
    norms = rows.functional_norms.copy()
    norms[which, list(functional).index(layer)] = 0
    return replace(rows, functional=functional, functional_norms=norms)


def constant(rows: Rows) -> Rows:
    """The rows with a latent column, a latent layer, a norm and an energy that never change."""
    latent = {name: part.copy() for name, part in rows.latent.items()}
    latent["conv"][:, 1] = 3.0
    latent["norm"][:] = 2.0
    norms = rows.functional_norms.copy()
    norms[:, 0] = 5.0
    return replace(
        rows,
        latent=latent,
        functional_norms=norms,
        confidence={**rows.confidence, "energy": np.full(len(rows), -4.0)},
    )


ODD_CASES: dict[str, Callable[[Rows, Rows, Rows], tuple[Rows, Rows, Rows]]] = {
    "a query without gradient in one layer": lambda r, f, q: (r, f, silent(q, "conv", slice(0, 3))),
    "queries without any gradient": lambda r, f, q: (r, f, silent(silent(q, "conv"), "block.fc")),
    "a layer without gradient everywhere": lambda r, f, q: (silent(r, "conv"), silent(f, "conv"), silent(q, "conv")),
    "a layer that only queries use": lambda r, f, q: (silent(r, "conv"), silent(f, "conv"), q),
    "a class absent from the reference": lambda r, f, q: (pick(r, 0, 1, 2), f, q),
    "a class absent from fit": lambda r, f, q: (r, pick(f, 0, 1, 2), q),
    "a class absent from both": lambda r, f, q: (pick(r, 0, 1, 2), pick(f, 0, 1, 2), q),
    "a single class": lambda r, f, q: (pick(r, 0), pick(f, 0), pick(q, 0)),
    "a single trusted class, queries of others": lambda r, f, q: (pick(r, 0), pick(f, 0), q),
    "constant columns": lambda r, f, q: (constant(r), constant(f), constant(q)),
    "columns constant in trusted rows alone": lambda r, f, q: (constant(r), constant(f), q),
    "very few": lambda r, f, q: (r.take(np.arange(8)), f.take(np.arange(8)), q),
}


@pytest.mark.parametrize("odd", ODD_CASES)
@every_entry
def test_odd_but_legal_rows_give_finite_scores(score, coupling, odd, trusted, queries):
    reference, fit, query_rows = ODD_CASES[odd](*trusted, queries)
    found = score_named(score, coupling).fit(reference, fit).measure(query_rows)
    assert len(query_rows) > 0
    assert np.isfinite(found.score).all()
    for values in [*found.parts.values(), *found.residuals.values()]:
        assert np.isfinite(values).all()


def test_a_query_without_any_gradient_is_not_taken_for_explained(trusted, queries):
    dead = silent(silent(queries, "conv"), "block.fc")
    for name in ("mean", "class-max", "own-class", "top-k", "explained", "profile"):
        fitted = score_named(name).fit(*trusted)
        assert fitted.measure(dead).score.min() > np.median(fitted.measure(queries).score), name


# The readings of a coupling matrix, by hand.
K = np.array([[0.9, 0.1, 0.2, 0.4], [-0.5, 0.3, 0.0, 0.8]])
R = np.array([0, 0, 1, 2])


def test_readings_by_hand():
    predicted = np.array([0, 1])
    np.testing.assert_allclose(mean(K, predicted, R), [-0.4, -0.15])
    np.testing.assert_allclose(class_max(K, predicted, R), [-0.5, -0.8], err_msg="over all classes")
    np.testing.assert_allclose(own_class(K, predicted, R), [-0.5, -0.0])
    np.testing.assert_allclose(own_class(K, np.array([7, 2]), R), [-0.4, -0.8], err_msg="unknown class: all")
    np.testing.assert_allclose(top_k(K, predicted, R), [-0.4, -0.15], err_msg="fewer than ten: all of them")
    wide = np.concatenate([np.linspace(0, 0.1, 30), np.full(10, 0.7)])[None]
    np.testing.assert_allclose(top_k(wide, np.array([0]), np.zeros(40, int)), [-0.7])


def slow_reading(name: str, k: np.ndarray, predicted: np.ndarray, classes: np.ndarray) -> list[float]:
    result = []
    for row, label in zip(k.tolist(), predicted.tolist(), strict=True):
        groups: dict[int, list[float]] = {}
        for value, c in zip(row, classes.tolist(), strict=True):
            groups.setdefault(c, []).append(value)
        kept = {
            "mean": row,
            "own-class": groups.get(label, row),
            "top-k": sorted(row)[-10:],
            "class-max": max(groups.values(), key=lambda g: sum(g) / len(g)),
        }[name]
        result.append(-sum(kept) / len(kept))
    return result


READINGS: dict[str, Reading] = {"mean": mean, "class-max": class_max, "own-class": own_class, "top-k": top_k}


@pytest.mark.parametrize("name", READINGS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(q=st.integers(1, 5), r=st.integers(1, 25), seed=st.integers(0, 10**6))
def test_readings_by_loops_whatever_the_order(name, q, r, seed):
    rng = np.random.default_rng(seed)
    k, predicted, classes = rng.normal(size=(q, r)), rng.integers(0, 4, q), rng.integers(0, 3, r)
    found = READINGS[name](k, predicted, classes)
    np.testing.assert_allclose(found, slow_reading(name, k, predicted, classes), atol=1e-12)
    rows, columns = rng.permutation(q), rng.permutation(r)
    moved = READINGS[name](k[rows][:, columns], predicted[rows], classes[columns])
    np.testing.assert_allclose(moved, found[rows], atol=1e-12)

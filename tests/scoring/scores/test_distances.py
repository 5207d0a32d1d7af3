"""Standardised log distances, over all numbers and layer by layer."""

from __future__ import annotations

import math

import numpy as np
import pytest

import slow
from covary.scoring.scores.distances import FullDistance, LayersDistance, Standardised, TopLayersDistance

LAYERS = 8


def numbers(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3 * LAYERS)) * np.linspace(0.1, 3, 3 * LAYERS), rng.integers(0, 3, n)


def slow_full(fit: np.ndarray, classes: np.ndarray, queries: np.ndarray, query_rows: np.ndarray) -> list[np.ndarray]:
    logs = np.log(slow.held_out(fit, classes)[1])
    full = slow.Standardised(fit, classes)
    found = np.array([math.log(full.distance(row, int(c))) for row, c in zip(queries, query_rows, strict=True)])
    return [(logs - logs.mean()) / logs.std(), (found - logs.mean()) / logs.std()]


def test_standardised_by_hand():
    found = Standardised().fit(np.array([1.0, 3.0, 5.0, 7.0]))
    np.testing.assert_allclose(found.fit_, np.array([-3, -1, 1, 3]) / math.sqrt(5))
    np.testing.assert_allclose(found(np.array([9.0])), 5 / math.sqrt(5))
    assert np.isfinite(Standardised().fit(np.ones(4))(np.array([2.0]))).all()


def test_whole_distance_uses_held_out_fit_samples_and_the_full_fit_for_queries():
    (fit, classes), (queries, query_rows) = numbers(40, 1), numbers(10, 2)
    found = FullDistance().fit(fit, classes)
    of_fit, of_queries = slow_full(fit, classes, queries, query_rows)
    np.testing.assert_allclose(found.fit_, of_fit, atol=1e-6)
    np.testing.assert_allclose(found(queries, query_rows), of_queries, atol=1e-6)


def test_the_five_most_striking_layers_by_definition():
    (fit, classes), (queries, query_rows) = numbers(40, 1), numbers(10, 2)
    found = TopLayersDistance().fit(fit, classes)
    by_layer = []
    for layer in range(LAYERS):
        own = [layer, LAYERS + layer, 2 * LAYERS + layer]
        by_layer.append(slow_full(fit[:, own], classes, queries[:, own], query_rows))
    of_fit = np.array([sum(sorted(layer[0][i] for layer in by_layer)[-5:]) for i in range(40)])
    of_queries = np.array([sum(sorted(layer[1][i] for layer in by_layer)[-5:]) for i in range(10)])
    np.testing.assert_allclose(found.fit_, (of_fit - of_fit.mean()) / of_fit.std(), atol=1e-6)
    np.testing.assert_allclose(found(queries, query_rows), (of_queries - of_fit.mean()) / of_fit.std(), atol=1e-6)


@pytest.mark.parametrize("kind", [FullDistance, TopLayersDistance])
def test_fresh_samples_look_like_held_out_ones_and_odd_ones_higher(kind):
    (fit, classes), (fresh, query_rows) = numbers(80, 3), numbers(400, 4)
    found = kind().fit(fit, classes)
    plain = found(fresh, query_rows)
    assert abs(plain.mean()) < 0.45
    odd = fresh.copy()
    odd[:, [1, LAYERS + 1]] += 2 * np.linspace(0.1, 3, 3 * LAYERS)[[1, LAYERS + 1]]
    assert (found(odd, query_rows) - plain).mean() > 0.3


def test_vectors_by_layer_have_each_layers_own_distance_and_a_constant_layer_has_none():
    (fit, classes), (queries, query_rows) = numbers(30, 1), numbers(10, 2)
    widths, columns = (4, 12, 8), (range(4), range(16, 24))
    fit[:, 4:16], queries[:, 4:16] = 7.0, 9.0
    found = LayersDistance(widths).fit(fit, classes)
    by_layer = [slow_full(fit[:, own], classes, queries[:, own], query_rows) for own in columns]
    for i, values in enumerate((found.fit_, found(queries, query_rows))):
        np.testing.assert_allclose(values, np.stack([layer[i] for layer in by_layer], axis=1), atol=1e-6)
    nothing = LayersDistance([2]).fit(np.ones((8, 2)), classes[:8])
    np.testing.assert_array_equal(nothing(queries[:, :2], query_rows), 0.0)

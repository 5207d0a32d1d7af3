"""The layer profile against its definition, and the closed forms behind it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import slow
from core_cases import pick, synthetic
from covary.scoring.scores.layers import (
    LAMBDA,
    LayerProfile,
    Unaccounted,
    functional_numbers,
    latent_numbers,
    per_layer_deviation,
    unit,
)


def units(n: int, k: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, k)) + 0.5)


@pytest.mark.parametrize(("r", "k"), [(5, 20), (20, 5), (8, 8), (1, 3), (40, 2)])
def test_share_unaccounted_is_one_minus_what_the_reference_predicts(r, k):
    reference, queries = units(r, k, 1), units(7, k, 2)
    found = Unaccounted(reference).log(queries)
    for i, x in enumerate(queries):
        assert found[i] == pytest.approx(math.log(slow.share_unaccounted(x, list(reference))), rel=1e-8)
        # The same as a quadratic form in x alone.
        inner = np.linalg.inv(reference.T @ reference + 0.1 * np.eye(k))
        assert found[i] == pytest.approx(math.log(0.1 * x @ inner @ x), rel=1e-8)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(r=st.integers(1, 30), k=st.integers(1, 30), seed=st.integers(0, 10**6))
def test_share_unaccounted_is_within_its_bounds(r, k, seed):
    reference = units(r, k, seed)
    form = Unaccounted(reference)
    u = np.exp(form.log(np.concatenate([reference, units(5, k, seed + 1)])))
    assert (u >= LAMBDA / (LAMBDA + r) - 1e-12).all()
    assert (u <= 1).all()
    # A sample of the reference itself is never less accounted for than by itself alone.
    assert (u[:r] <= LAMBDA / (LAMBDA + 1) + 1e-12).all()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(r=st.integers(2, 20), k=st.integers(2, 20), seed=st.integers(0, 10**6))
def test_more_reference_never_leaves_more_unaccounted(r, k, seed):
    reference, x = units(r, k, seed), units(4, k, seed + 1)
    assert (Unaccounted(reference).log(x) <= Unaccounted(reference[1:]).log(x) + 1e-9).all()


def test_many_copies_of_one_direction_stay_positive():
    # 1 - s^T (G + lambda I)^-1 s taken literally cancels here; the quadratic form does not.
    for k in (3, 2000):
        reference = np.tile(units(1, k, 0), (1000, 1))
        assert Unaccounted(reference).log(reference[:1])[0] == pytest.approx(math.log(0.1 / 1000.1), rel=1e-6)


def test_directions_without_a_reference_are_wholly_unaccounted_for():
    reference = np.eye(4)[:2]
    for r in (reference, np.tile(reference, (5, 1))):
        log = Unaccounted(r).log(np.array([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]))
        assert log[0] == pytest.approx(0, abs=1e-12)
        assert log[1] == 0, "no direction at all: nothing about it is accounted for"
        assert log[2] < -2


def test_unit_rows_scale_to_one_and_zeros_stay():
    found = unit(np.array([[3.0, 4.0], [0.0, 0.0], [1e-6, 0.0]], np.float32))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0], [1, 0]])


@pytest.mark.parametrize("kind", ["functional", "latent"])
def test_profile_numbers_by_definition(kind):
    reference, _ = synthetic(30, 1)
    reference = pick(reference, 0, 1, 2)  # class 3 is absent from the reference
    queries, _ = synthetic(40, 2)
    queries = queries.take(np.concatenate([np.flatnonzero(queries.predicted == c)[:2] for c in range(4)]))
    assert set(queries.predicted.tolist()) == {0, 1, 2, 3}
    if kind == "functional":
        found = functional_numbers(LayerProfile().fit(reference.functional, reference.predicted), queries)
        expected = slow.functional_profile(reference, queries)
    else:
        found = latent_numbers(LayerProfile(centred=True).fit(reference.latent, reference.predicted), queries)
        expected = slow.latent_profile(reference, queries)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    layers = found.shape[1] // 3
    absent = queries.predicted == 3
    np.testing.assert_array_equal(found[absent, layers : 2 * layers], found[absent, 2 * layers :])
    assert (found[~absent, layers : 2 * layers] < found[~absent, 2 * layers :]).all(), "o has less to explain with"


def test_exact_norms_enter_n_alone():
    reference, _ = synthetic(30, 1)
    queries, _ = synthetic(5, 2)
    profile = LayerProfile().fit(reference.functional, reference.predicted)
    plain = profile.numbers(queries.functional, queries.predicted, queries.functional_norms)
    other = profile.numbers(queries.functional, queries.predicted, 100 * queries.functional_norms)
    np.testing.assert_allclose(other[:, :2] - plain[:, :2], math.log(100))
    np.testing.assert_array_equal(other[:, 2:], plain[:, 2:])


def test_a_layer_without_gradient_is_finite_and_unaccounted_for():
    reference, _ = synthetic(30, 1)
    queries, _ = synthetic(4, 2)
    queries.functional["conv"][1] = 0
    queries.functional_norms[1, 0] = 0
    found = functional_numbers(LayerProfile().fit(reference.functional, reference.predicted), queries)
    assert np.isfinite(found).all()
    assert found[1, 0] < -20
    assert found[1, 2] == found[1, 4] == 0


def test_per_layer_deviation_is_the_root_mean_square_of_a_layers_three_numbers():
    residuals = np.array([[1.0, 0.0, 2.0, 0.0, 2.0, 6.0]])
    np.testing.assert_allclose(per_layer_deviation(residuals), [[math.sqrt(9 / 3), math.sqrt(36 / 3)]])

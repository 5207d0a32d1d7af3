"""Couplings against two loops over pairs, and what they promise whatever the rows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from core_cases import synthetic
from covary.errors import CovaryError
from covary.scoring.couplings import COUPLINGS, ccc, cosine, couple, covariance, vectors

SIGMA = 0.01


def slow_covariance(x, z, mean_x, mean_z):
    return sum(a * b for a, b in zip(x, z, strict=True))


def slow_cosine(x, z, mean_x, mean_z):
    lengths = [math.sqrt(sum(a * a for a in v)) + 1e-8 for v in (x, z)]
    return slow_covariance(x, z, 0, 0) / lengths[0] / lengths[1]


def slow_ccc(x, z, mean_x, mean_z):
    moved = SIGMA**2 * np.array([slow_covariance(a, b, 0, 0) for a, b in ((x, z), (x, x), (z, z))])
    return 2 * moved[0] / (moved[1] + moved[2] + (mean_x - mean_z) ** 2 + 1e-8)


SLOW = {"covariance": slow_covariance, "cosine": slow_cosine, "ccc": slow_ccc}


@pytest.mark.parametrize("name", COUPLINGS)
def test_against_two_loops(name):
    queries, _ = synthetic(6, 1)
    reference, _ = synthetic(9, 2)
    found = couple(name, queries, reference)
    assert found.shape == (6, 9)
    for i in range(6):
        for j in range(9):
            x = [float(v) for part in queries.functional.values() for v in part[i]]
            z = [float(v) for part in reference.functional.values() for v in part[j]]
            expected = SLOW[name](x, z, queries.observable[i], reference.observable[j])
            assert found[i, j] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_vectors_are_all_layers_side_by_side_in_double_precision():
    rows, _ = synthetic(3, 1)
    found = vectors(rows)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found[:, :10], rows.functional["conv"])
    np.testing.assert_array_equal(found[:, 10:], rows.functional["block.fc"])


def test_on_traces_they_are_the_published_moments():
    # Rows of centred traces over sqrt(S): population moments of Pearson and, with sigma = 1, of Lin's concordance.
    rng = np.random.default_rng(0)
    draws, samples = 30, 5
    traces = rng.normal(size=(draws, samples)) + rng.normal(size=(draws, 1)) + np.arange(samples)
    mean = traces.mean(0)
    rows = ((traces - mean) / math.sqrt(draws)).T
    pearson, concordance = cosine(rows, rows, mean, mean), ccc(rows, rows, mean, mean, sigma=1.0)
    for i in range(samples):
        for j in range(samples):
            cov = sum((a - mean[i]) * (b - mean[j]) for a, b in zip(traces[:, i], traces[:, j], strict=True)) / draws
            sd_i, sd_j = traces[:, i].std(), traces[:, j].std()
            assert covariance(rows, rows, mean, mean)[i, j] == pytest.approx(cov)
            assert pearson[i, j] == pytest.approx(cov / (sd_i + 1e-8) / (sd_j + 1e-8))
            lin = 2 * cov / (sd_i**2 + sd_j**2 + (mean[i] - mean[j]) ** 2 + 1e-8)
            assert concordance[i, j] == pytest.approx(lin)


def test_the_scale_comes_with_the_rows():
    # Gradients are moved by sigma = 0.01, traces by the draws themselves; the two never meet.
    gradients, _ = synthetic(5, 3)
    traces = replace(gradients, sigma=1.0)
    means = gradients.observable
    for rows in (gradients, traces):
        expected = ccc(vectors(rows), vectors(rows), means, means, sigma=rows.sigma)
        np.testing.assert_array_equal(couple("ccc", rows, rows), expected)
    assert not np.allclose(couple("ccc", traces, traces), couple("ccc", gradients, gradients))
    assert traces.take([1]).sigma == type(traces).concatenate([traces, traces]).sigma == 1.0
    for name in COUPLINGS:
        with pytest.raises(CovaryError, match=r"scale 1 against a reference of scale 0\.01"):
            couple(name, traces, gradients)


def test_a_coupling_with_itself():
    rows, _ = synthetic(5, 3)
    np.testing.assert_allclose(np.diag(couple("cosine", rows, rows)), 1, atol=1e-6)
    np.testing.assert_allclose(np.diag(couple("covariance", rows, rows)), np.square(vectors(rows)).sum(1))
    assert (np.diag(couple("ccc", rows, rows)) > 0.99).all()


def test_unknown_coupling_lists_the_valid_ones():
    rows, _ = synthetic(2, 1)
    with pytest.raises(CovaryError, match="covariance, cosine, ccc"):
        couple("pearson", rows, rows)


finite = st.floats(-1e3, 1e3, allow_subnormal=False)
matrices = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4)).flatmap(
    lambda n: st.tuples(
        arrays.arrays(np.float64, (n[0], n[2]), elements=finite),
        arrays.arrays(np.float64, (n[1], n[2]), elements=finite),
        arrays.arrays(np.float64, n[0], elements=finite),
        arrays.arrays(np.float64, n[1], elements=finite),
        st.permutations(range(n[0])),
        st.permutations(range(n[1])),
    )
)


@pytest.mark.parametrize("name", COUPLINGS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(case=matrices)
def test_permuting_samples_permutes_the_matrix(name, case):
    x, z, mean_x, mean_z, rows, columns = case
    rows, columns = np.array(rows), np.array(columns)
    found = COUPLINGS[name](x, z, mean_x, mean_z)
    moved = COUPLINGS[name](x[rows], z[columns], mean_x[rows], mean_z[columns])
    np.testing.assert_allclose(moved, found[np.ix_(rows, columns)], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(COUPLINGS[name](z, x, mean_z, mean_x), found.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["cosine", "ccc"])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(case=matrices)
def test_within_minus_one_and_one_and_never_nan(name, case):
    x, z, mean_x, mean_z, _, _ = case
    found = COUPLINGS[name](x, z, mean_x, mean_z)
    assert np.isfinite(found).all(), "rows of zeros included"
    assert (np.abs(found) <= 1 + 1e-9).all()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(case=matrices, scale=st.floats(1e-3, 1e3))
def test_cosine_knows_no_scale(case, scale):
    x, z, mean_x, mean_z, _, _ = case
    x, z = x + np.sign(x), z + np.sign(z)
    # With 1e-8 added to each norm, the invariance is to a part in 1e-8 over the smallest norm.
    np.testing.assert_allclose(cosine(scale * x, z, mean_x, mean_z), cosine(x, z, mean_x, mean_z), atol=1e-4)


def test_concordance_falls_with_the_gap_between_means_where_cosine_does_not():
    x = np.array([[3.0, 4.0]])
    none = np.zeros(1)
    values = [float(ccc(x, x, none, none + gap)[0, 0]) for gap in (0.0, 0.05, 0.5)]
    assert values[0] > values[1] > values[2] > 0
    # By hand: 2 * 1e-4 * 25 / (2 * 1e-4 * 25 + 0.05^2 + 1e-8).
    assert values[1] == pytest.approx(0.005 / (0.005 + 0.0025 + 1e-8))

"""Numbers at equal length: against a loop, and what goes with length alone is gone."""

from __future__ import annotations

import numpy as np
import pytest

from covary.scoring.conditional.lengths import AtEqualLengths


def material(n, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 40, (n, 2)).astype(float)
    numbers = np.stack([np.log(lengths[:, 0]), lengths[:, 1] / 9, np.zeros(n)], 1) + rng.normal(size=(n, 3))
    return numbers, lengths


def test_moments_are_those_of_a_loop_over_like_texts():
    numbers, lengths = material(30)
    found = AtEqualLengths().fit(numbers, lengths)

    def rank(value, column):
        return np.mean([(other < value) + 0.5 * (other == value) for other in lengths[:, column]])

    ranks = [[rank(a, 0), rank(b, 1)] for a, b in lengths]
    for i in (0, 7):
        weights = [np.exp(-sum((x - y) ** 2 for x, y in zip(ranks[i], r, strict=True)) / (2 * 0.15**2)) for r in ranks]
        whole = np.average(numbers, axis=0, weights=weights)
        spread = np.sqrt(np.average((numbers - whole) ** 2, axis=0, weights=weights))
        np.testing.assert_allclose(found(numbers[i : i + 1], lengths[i : i + 1])[0], (numbers[i] - whole) / spread)
        weights[i] = 0.0
        others = np.average(numbers, axis=0, weights=weights)
        spread = np.sqrt(np.average((numbers - others) ** 2, axis=0, weights=weights))
        np.testing.assert_allclose(found.fit_[i], (numbers[i] - others) / spread)


def test_what_goes_with_length_alone_is_gone():
    found = AtEqualLengths().fit(*material(400))
    numbers, lengths = material(400, 1)
    for column in (0, 1):
        before = abs(np.corrcoef(numbers[:, column], lengths[:, column])[0, 1])
        after = abs(np.corrcoef(found(numbers, lengths)[:, column], lengths[:, column])[0, 1])
        assert before > 0.5
        assert after < 0.25


@pytest.mark.parametrize("asked", [(41.0, 5.0), (4000.0, 5.0), (4000.0, 70.0), (1.0, 5.0)])
def test_beyond_the_longest_the_trend_goes_on_and_is_trusted_no_further_than_it_moves(asked):
    numbers, lengths = material(50)
    found = AtEqualLengths().fit(numbers, lengths)
    logs = np.log1p(lengths)
    design = np.column_stack([np.ones(len(logs)), logs])
    trend = np.linalg.solve(design.T @ design, design.T @ numbers)[1:]  # the normal equations

    nearest = np.clip(asked, lengths.min(0), lengths.max(0))
    zero, one = found(np.stack([np.zeros(3), np.ones(3)]), np.tile(nearest, (2, 1)))
    spread = 1 / (one - zero)
    mean = -zero * spread
    e = np.log1p(asked) - np.log1p(nearest)
    moved = np.array([sum((e[c] * trend[c, j]) ** 2 for c in (0, 1)) for j in range(3)])
    expected = (numbers[0] - mean - e @ trend) / np.sqrt(spread**2 + moved)
    np.testing.assert_allclose(found(numbers[:1], np.array([asked]))[0], expected, rtol=1e-9)


def test_a_clean_text_far_longer_than_any_is_not_odd_and_an_odd_one_is_by_what_does_not_go_with_length():
    numbers, lengths = material(200)
    found = AtEqualLengths().fit(numbers, lengths)
    far = np.array([[400.0, 20.0]])
    clean = np.array([[np.log(400.0), 20 / 9, 0.0]])
    assert np.abs(found(clean, far)).max() < 1.5
    clean[0, 2] += 9.0
    assert found(clean, far)[0, 2] > 6


def test_where_all_are_as_long_nothing_is_conditioned_on():
    numbers, lengths = material(50)
    found = AtEqualLengths().fit(numbers, np.full_like(lengths, 24.0))
    expected = (numbers - numbers.mean(0)) / numbers.std(0)
    np.testing.assert_allclose(found(numbers, lengths), expected)


def test_rounding_of_a_number_that_never_changes_is_no_deviation():
    numbers, lengths = material(50)
    numbers[:, 2] = -27.63 + 1e-14 * numbers[:, 0]
    numbers[:, 1] = 3.0 + 1e-6 * numbers[:, 0]
    found = AtEqualLengths().fit(numbers, lengths)
    assert not found(numbers, lengths)[:, 2].any()
    assert not found.fit_[:, 2].any()
    assert np.abs(found.fit_[:, 1]).max() < 1e-4
    assert found(numbers[:1] + 1.0, lengths[:1])[0, 2] > 0.9  # and what does change is

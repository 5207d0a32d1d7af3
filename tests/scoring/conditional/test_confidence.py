"""A statistic at equal confidence, against its slow oracle and on what it is for."""

from __future__ import annotations

import numpy as np

from covary.scoring.conditional.confidence import AtEqualConfidence


def slow(value: float, rank: float, values: np.ndarray, ranks: np.ndarray, bandwidth: float) -> float:
    """One sample at a time, as it is written."""
    weights = [np.exp(-0.5 * ((rank - other) / bandwidth) ** 2) for other in ranks]
    mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    square = sum(w * v * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    return (value - mean) / np.sqrt(square - mean * mean)


def test_it_is_what_the_slow_oracle_says():
    rng = np.random.default_rng(0)
    margins, values = rng.standard_normal(50), rng.standard_normal(50)
    conditional = AtEqualConfidence().fit(values, margins)
    fresh, at = rng.standard_normal(9), rng.standard_normal(9)
    expected = [
        slow(v, r, values, conditional.rank(margins), 0.15) for v, r in zip(fresh, conditional.rank(at), strict=True)
    ]
    np.testing.assert_allclose(conditional(fresh, at), expected, rtol=1e-9)


def test_a_fit_sample_is_held_against_the_others_only():
    rng = np.random.default_rng(1)
    margins, values = rng.standard_normal(40), rng.standard_normal(40)
    found = AtEqualConfidence().fit(values, margins).fit_[7]
    rest = np.arange(40) != 7
    ranks = AtEqualConfidence().fit(values, margins).rank(margins)
    np.testing.assert_allclose(found, slow(values[7], ranks[7], values[rest], ranks[rest], 0.15), rtol=1e-9)


def test_unsure_inputs_are_flagged_no_more_often_than_sure_ones():
    """A statistic that grows as the margin falls flags the unsure alone; at equal confidence it flags alike."""
    rng = np.random.default_rng(2)
    margins = rng.standard_normal(4000)
    values = -0.7 * margins + rng.standard_normal(4000) * (1 - 0.5 * np.tanh(margins))
    conditional = AtEqualConfidence().fit(values[:1000], margins[:1000])
    unsure = margins[1000:] < np.quantile(margins, 0.1)
    plain = values[1000:] > np.quantile(values[:1000], 0.95)
    flagged = conditional(values[1000:], margins[1000:]) > np.quantile(conditional.fit_, 0.95)
    assert plain[unsure].mean() > 0.2
    assert flagged[unsure].mean() < 0.14
    assert 0.03 < flagged.mean() < 0.08

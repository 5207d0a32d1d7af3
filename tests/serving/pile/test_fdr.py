"""Benjamini-Hochberg by counts is Benjamini-Hochberg on everything at once, to the bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from covary.scoring.calibration.conformal import benjamini_hochberg
from covary.serving.pile.fdr import NONE, counts_of, merged, threshold


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 60), st.floats(0.001, 0.9), st.integers(1, 5))
def test_counts_decide_as_all_p_values_together(seed, inputs, n, rate, pieces):
    rng = np.random.default_rng(seed)
    # Some piles with many small p-values, some with none.
    p = np.ceil(rng.random(inputs) ** rng.integers(1, 5) * (n + 1)).clip(1) / (n + 1)
    counts = merged(counts_of(piece) for piece in np.array_split(p, pieces))
    assert sum(counts.values()) == len(p)
    limit = threshold(counts, rate)
    np.testing.assert_array_equal(p <= limit, benjamini_hochberg(p, rate))


def test_nobody_and_everybody():
    assert threshold(merged([counts_of(np.array([0.5, 0.9]))]), 0.05) == NONE
    assert threshold(merged([]), 0.05) == NONE
    assert threshold(merged([counts_of(np.full(10, 0.01))]), 0.05) == 0.01

"""Benjamini-Hochberg by counts is Benjamini-Hochberg on everything at once, to the bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from covary.calibration import benjamini_hochberg
from covary.pile.fdr import NONE, counts_of, merged, threshold


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=200), st.integers(40, 60), st.floats(0.001, 0.9),
    st.integers(1, 5),
)  # fmt: skip
def test_counts_decide_as_all_p_values_together(ranks, n, rate, pieces):
    p = np.array(ranks) / (n + 1)
    counts = merged(counts_of(piece) for piece in np.array_split(p, pieces))
    assert sum(counts.values()) == len(p)
    limit = threshold(counts, rate)
    np.testing.assert_array_equal(p <= limit, benjamini_hochberg(p, rate))


def test_nobody_and_everybody():
    assert threshold(merged([counts_of(np.array([0.5, 0.9]))]), 0.05) == NONE
    assert threshold(merged([]), 0.05) == NONE
    assert threshold(merged([counts_of(np.full(10, 0.01))]), 0.05) == 0.01

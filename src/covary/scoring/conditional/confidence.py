"""A statistic at equal confidence: what is odd among inputs the network is as sure of."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Values = Float[np.ndarray, " n"]

# Width of the Gaussian kernel, in ranks of the margin between 0 and 1.
BANDWIDTH = 0.15
LEAST_SPREAD = 1e-6
AT_ONCE = 4096


class AtEqualConfidence:
    """(t - m(r)) / s(r): a statistic t against its mean and spread among trusted samples of like margin.

    m and s are Gaussian-kernel moments of t over the rank r of the margin on the fit samples, bandwidth 0.15 ranks.
    Unsure inputs are odd in many ways while nothing else is behind their answer; what is left here is odd among its
    like. Unit: standard deviations; higher = more anomalous.
    """

    def __init__(self, bandwidth: float = BANDWIDTH) -> None:
        self.bandwidth = bandwidth

    def fit(self, values: Values, margins: Values) -> AtEqualConfidence:
        """Learns from fit samples; `fit_` are their own values, each against the others."""
        self.values_, self.margins_ = np.asarray(values, np.float64), np.sort(np.asarray(margins, np.float64))
        self.ranks_ = self.rank(margins)
        kernel = self._kernel(self.ranks_)
        if len(values) > 1:
            np.fill_diagonal(kernel, 0.0)
        self.fit_ = self._standardised(self.values_, kernel)
        return self

    def rank(self, margins: Values) -> Values:
        """Share of the fit samples with a smaller margin, in [0, 1]; 0 = the least sure."""
        n = len(self.margins_)
        return np.interp(margins, self.margins_, (np.arange(n) + 0.5) / n)

    def __call__(self, values: Values, margins: Values) -> Values:
        """The statistic at equal confidence."""
        found = np.empty(len(values))
        for start in range(0, len(values), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            found[some] = self._standardised(values[some], self._kernel(self.rank(margins[some])))
        return found

    def _kernel(self, ranks: Values) -> Float[np.ndarray, "n m"]:
        return np.exp(-0.5 * np.square((ranks[:, None] - self.ranks_) / self.bandwidth))

    def _standardised(self, values: Values, kernel: Float[np.ndarray, "n m"]) -> Values:
        weights = kernel / kernel.sum(1, keepdims=True)
        mean = weights @ self.values_
        spread = np.sqrt(np.maximum(weights @ np.square(self.values_) - np.square(mean), LEAST_SPREAD))
        return (values - mean) / spread

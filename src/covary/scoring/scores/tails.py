"""Empirical tail probabilities of trusted samples that go on, strictly, beyond the largest one seen."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Values = Float[np.ndarray, " _"]


class Tail:
    """log p(s): how likely a trusted sample scores at least s, continuous and strictly falling in s.

    At the i-th largest of n sorted values p = (i + 1/2) / (n + 1); between neighbours log p is interpolated, so
    nothing ties; beyond the largest value it goes on as -(s - s_max) / sd, never clipped, and below the smallest
    likewise towards p = 1. Without that, every strong anomaly would tie at 1 / (n + 1) and a strict false-alarm rate
    would flag none or all of them.
    """

    def fit(self, values: Values) -> Tail:
        """Learns the tail of held-out values of trusted samples."""
        self.knots_, counts = np.unique(values, return_counts=True)
        at_least = np.cumsum(counts[::-1])[::-1]
        self.log_p_ = np.log((at_least - 0.5) / (len(values) + 1))
        self.scale_ = max(float(np.std(values)), 1e-12)
        return self

    def log_p(self, values: Values) -> Values:
        """Natural log of the tail probability, < 0; smaller = further out."""
        inside = np.interp(values, self.knots_, self.log_p_)
        above = np.maximum(values - self.knots_[-1], 0.0) / self.scale_
        below = np.maximum(self.knots_[0] - values, 0.0) / self.scale_
        return inside * np.exp(-below) - above

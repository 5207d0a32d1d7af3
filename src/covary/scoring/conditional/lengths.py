"""Numbers at equal length: what is odd among trusted texts whose prompts and answers are about as long."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covary.scoring.conditional.confidence import BANDWIDTH
from covary.scoring.scores.standardise import LEAST_SPREAD

Numbers = Float[np.ndarray, "n d"]
Lengths = Float[np.ndarray, "n c"]

AT_ONCE = 1024
ROUNDING = 1e-9


class AtEqualLengths:
    """(z_j - m_j(r)) / s_j(r): each number against its mean and spread among trusted texts of like lengths.

    m and s are moments under the kernel exp(-|r - r'|^2 / (2 h^2)) over the ranks r of the lengths on the fit samples,
    one rank a length, h = 0.15 ranks. Where all trusted texts are equally long nothing is conditioned on. Unit:
    standard deviations.

    For a text longer than every trusted one (or shorter), by e in log(1 + length), r is that of the longest; the mean
    goes on along the trend b_j, the least-squares slope over the fit samples, and is trusted no further than it moves:

        mean = m_j + b_j e,    spread^2 = s_j^2 + (b_j e)^2

    So a number that changes with length is believed less and less beyond what is known, one that does not change as
    before. Two lengths add up.
    """

    def __init__(self, bandwidth: float = BANDWIDTH) -> None:
        self.bandwidth = bandwidth

    def fit(self, numbers: Numbers, lengths: Lengths) -> AtEqualLengths:
        """Learns from fit samples; `fit_` are their own numbers, each against the others."""
        self.numbers_ = np.asarray(numbers, np.float64)
        self.known_: list[tuple[np.ndarray, np.ndarray]] = []
        for own in np.asarray(lengths, np.float64).T:
            values, counts = np.unique(own, return_counts=True)
            self.known_.append((values, (np.cumsum(counts) - counts / 2) / len(own)))
        self.ranks_ = self.rank(lengths)
        kernel = self._kernel(self.ranks_)
        if len(kernel) > 1:
            np.fill_diagonal(kernel, 0.0)
        logs = np.log1p(np.asarray(lengths, np.float64))
        self.shortest_, self.longest_ = logs.min(0), logs.max(0)
        # Of a length that all have rounding is left, along which no trend may be drawn.
        apart = np.where(self.longest_ > self.shortest_, logs - logs.mean(0), 0.0)
        self.trend_ = np.linalg.lstsq(apart, self.numbers_ - self.numbers_.mean(0))[0]
        self.fit_ = self._standardised(self.numbers_, kernel, np.zeros_like(logs))
        return self

    def rank(self, lengths: Lengths) -> Lengths:
        """Share of the fit samples that are shorter, half of those as long added, in [0, 1], per length."""
        columns = [np.interp(lengths[:, c], *known) for c, known in enumerate(self.known_)]
        return np.stack(columns, axis=1)

    def __call__(self, numbers: Numbers, lengths: Lengths) -> Numbers:
        """The numbers at equal length."""
        ranks, beyond = self.rank(lengths), self.beyond(lengths)
        parts = [slice(start, start + AT_ONCE) for start in range(0, max(len(ranks), 1), AT_ONCE)]
        return np.concatenate(
            [self._standardised(numbers[some], self._kernel(ranks[some]), beyond[some]) for some in parts]
        )

    def beyond(self, lengths: Lengths) -> Lengths:
        """How much longer than every fit sample, in log(1 + length); negative where shorter, 0 within their range."""
        logs = np.log1p(np.asarray(lengths, np.float64))
        return logs - np.clip(logs, self.shortest_, self.longest_)

    def _kernel(self, ranks: Lengths) -> Float[np.ndarray, "n m"]:
        apart = np.square(ranks[:, None, :] - self.ranks_[None]).sum(-1)
        return np.exp(-0.5 * apart / self.bandwidth**2)

    def _standardised(self, numbers: Numbers, kernel: Float[np.ndarray, "n m"], beyond: Lengths) -> Numbers:
        weights = kernel / np.maximum(kernel.sum(1, keepdims=True), 1e-300)
        mean = weights @ self.numbers_
        apart = numbers - mean - beyond @ self.trend_
        # Of a number that never changes rounding is left, which must not become a deviation; what changes as little as
        # rounding in float32 stays in its own unit, where `ClassStandardiser` knows it.
        apart[np.abs(apart) < ROUNDING] = 0.0
        within = np.maximum(weights @ np.square(self.numbers_) - np.square(mean), 0.0)
        spread = np.sqrt(within + np.square(beyond) @ np.square(self.trend_))
        return apart / np.where(spread < LEAST_SPREAD, 1.0, spread)

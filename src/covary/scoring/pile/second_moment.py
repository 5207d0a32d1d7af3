"""Pile evidence: what many inputs show together that none of them shows alone.

Anomalies of one mechanism push the second moment of a pile in a direction that trusted inputs do not know, however
small the push of each one. Quantum entropy scoring (Dong, Hopkins and Li 2019, arXiv 1906.11366) looks along all such
directions at once. The moment is taken over calibration samples and pile together: what is learned treats both alike,
so clean inputs and calibration samples stay exchangeable and conformal p-values exact (the argument of AdaDetect,
Marandon et al., arXiv 2208.06685). A moment of the pile alone would break that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.linalg import eigh, solve_triangular
from sklearn.covariance import ledoit_wolf_shrinkage

from covary.scoring.scores.standardise import LEAST_SPREAD, spread_folds

Numbers = Float[np.ndarray, "n d"]

# Published default of alpha (arXiv 1906.11366, section 5); tried on the tuning cells: 2 and 8 are no better.
SHARPNESS = 4.0
# Lengths beyond this quantile of held-out trusted ones are cut to it, so that no single odd input bends a direction.
LONGEST = 0.95
LEAST_EXCESS, LEAST_LENGTH = 1e-6, 1e-12


class Whitening:
    """Numbers in which trusted samples have unit covariance, no longer than nearly all of them are.

    x -> L^-1 (x - m) / s with means m and spreads s of trusted samples and C = L L^T their shrunk correlations,
    C = (1 - r) S + r I. The intensity r is the square root of Ledoit and Wolf's: theirs is best for the covariance as a
    whole, but the directions that matter here are those it gets most wrong, where fresh trusted samples are long.
    """

    def fit(self, numbers: Numbers) -> Whitening:
        """Learns from samples that do not calibrate; `held_` are their own, each whitened by the other folds, cut."""
        folds = spread_folds(len(numbers))
        self.held_ = np.empty_like(numbers, dtype=np.float64)
        for fold in np.unique(folds):
            self._learn(numbers[folds != fold])
            self.held_[folds == fold] = self._whiten(numbers[folds == fold])
        self.longest_ = max(float(np.quantile(np.linalg.norm(self.held_, axis=1), LONGEST)), LEAST_SPREAD)
        self.held_ = self._cut(self.held_)
        self._learn(numbers)
        return self

    def __call__(self, numbers: Numbers) -> Numbers:
        """Whitened numbers, (n, d)."""
        return self._cut(self._whiten(numbers))

    def _learn(self, numbers: Numbers) -> None:
        self.mean_ = numbers.mean(0)
        self.spread_ = np.maximum(numbers.std(0), LEAST_SPREAD)
        scaled = (numbers - self.mean_) / self.spread_
        intensity = np.sqrt(ledoit_wolf_shrinkage(scaled, assume_centered=True))
        correlations = (1 - intensity) * scaled.T @ scaled / len(scaled) + intensity * np.eye(scaled.shape[1])
        # Never singular where the intensity is 0: as many samples as numbers and more.
        self.factor_ = np.linalg.cholesky(correlations + 1e-9 * np.eye(len(correlations)))

    def _whiten(self, numbers: Numbers) -> Numbers:
        return solve_triangular(self.factor_, ((numbers - self.mean_) / self.spread_).T, lower=True).T

    def _cut(self, whitened: Numbers) -> Numbers:
        lengths = np.linalg.norm(whitened, axis=1, keepdims=True)
        return whitened * np.minimum(1.0, self.longest_ / np.maximum(lengths, LEAST_SPREAD))


@dataclass(frozen=True)
class SecondMoment:
    """Sum of x x^T over n samples: sums of parts add up to that of the whole, to rounding.

    Added in one order, parts give the same bits wherever each was made.
    """

    n: int
    total: Float[np.ndarray, "d d"]

    @staticmethod
    def of(whitened: Numbers) -> SecondMoment:
        """Of some samples."""
        return SecondMoment(len(whitened), whitened.T @ whitened)

    def __add__(self, other: SecondMoment) -> SecondMoment:
        return SecondMoment(self.n + other.n, self.total + other.total)

    def __sub__(self, other: SecondMoment) -> SecondMoment:
        """Without samples that it holds, as when a window slides on."""
        return SecondMoment(self.n - other.n, self.total - other.total)

    @staticmethod
    def sum(parts: Iterable[SecondMoment]) -> SecondMoment:
        """Of all parts, in their order."""
        coming = iter(parts)
        first = next(coming)
        n, total = first.n, first.total.copy()
        for part in coming:
            n, total = n + part.n, total + part.total
        return SecondMoment(n, total)


class Directions:
    """Along which a pile is longer than trusted samples, and how much that of each sample adds up to.

    S = sum x x^T / n = sum_i l_i u_i u_i^T over calibration samples and pile; with g_i = exp(alpha (l_i - 1) /
    (l_max - 1)), q(x) = log sum_i g_i (u_i^T x)^2 in nats; higher = more anomalous. 1 is what trusted samples have.

    Args:
        moment: of calibration samples and pile together, whitened.
        sharpness: alpha; 0 gives the plain length, infinity the first direction alone.
    """

    def __init__(self, moment: SecondMoment, sharpness: float = SHARPNESS) -> None:
        self.values, self.vectors = eigh(moment.total / max(moment.n, 1))
        excess = self.values - 1.0
        self.weights = np.exp(sharpness * excess / max(float(excess[-1]), LEAST_EXCESS))

    def evidence(self, whitened: Numbers) -> Float[np.ndarray, " n"]:
        """q of every sample; higher = further along the pile's own directions."""
        return np.log(np.maximum(np.square(whitened @ self.vectors) @ self.weights, LEAST_LENGTH))

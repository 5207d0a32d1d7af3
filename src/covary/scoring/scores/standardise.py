"""Class-wise standardisation and the distance of a sample from what trusted samples look like."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import solve_triangular
from sklearn.covariance import ledoit_wolf_shrinkage

Numbers = Float[np.ndarray, "n d"]
Classes = Int[np.ndarray, " n"]

SHRINK = 20.0
# In the numbers' own unit (mostly nats): a spread below this is rounding, not variation.
LEAST_SPREAD = 1e-4
RIDGE = 1e-9


class ClassStandardiser:
    """Standardises numbers per predicted class and measures Mahalanobis distances.

    Mean of class c: w_c m_c + (1 - w_c) m with w_c = n_c / (n_c + 20); a class never seen takes the common mean m.
    Spread d and Ledoit-Wolf covariance S (mean taken as known) come from the residuals; the distance is
    sqrt(r^T S^-1 r) of the residual r in units of d: >= 0, higher = further from the trusted samples.
    """

    mean_: Float[np.ndarray, " d"]
    class_means_: dict[int, Float[np.ndarray, " d"]]
    spread_: Float[np.ndarray, " d"]

    def fit(self, numbers: Numbers, classes: Classes) -> ClassStandardiser:
        """Learns means, spreads and covariance of trusted samples."""
        offsets = self._fit_moments(numbers, classes)
        self.precision_ = Precision(offsets / self.spread_)
        return self

    def fit_moments(self, numbers: Numbers, classes: Classes) -> ClassStandardiser:
        """Learns means and spreads alone, where residuals are all that is asked for."""
        self._fit_moments(numbers, classes)
        return self

    def _fit_moments(self, numbers: Numbers, classes: Classes) -> Numbers:
        self.mean_ = numbers.mean(0)
        self.class_means_ = {}
        for label in np.unique(classes):
            own = numbers[classes == label]
            weight = len(own) / (len(own) + SHRINK)
            self.class_means_[int(label)] = weight * own.mean(0) + (1 - weight) * self.mean_
        offsets = numbers - self._means(classes)
        self.spread_ = np.maximum(np.sqrt(np.square(offsets).mean(0)), LEAST_SPREAD)
        return offsets

    def residuals(self, numbers: Numbers, classes: Classes) -> Numbers:
        """Distance from the class's mean in units of the trusted spread, signed."""
        return (numbers - self._means(classes)) / self.spread_

    def distance(self, numbers: Numbers, classes: Classes) -> Float[np.ndarray, " n"]:
        """Mahalanobis distance, >= 0; higher = more anomalous."""
        return self.precision_.length(self.residuals(numbers, classes))

    def _means(self, classes: Classes) -> Numbers:
        labels, place = np.unique(classes, return_inverse=True)
        return np.stack([self.class_means_.get(int(label), self.mean_) for label in labels])[place]


class Precision:
    """The length sqrt(r^T S^-1 r) of vectors under Ledoit and Wolf's covariance S of samples around 0 (see `shrunk`).

    Of fewer samples X than dimensions S = b X^T X + a I is never made: S^-1 = (I - X^T (X X^T + a / b I)^-1 X) / a
    (Woodbury), as large as the samples are many. A hidden state has thousands of dimensions.
    """

    def __init__(self, samples: Numbers) -> None:
        n, d = samples.shape
        if n >= d:
            # Rows of the inverse Cholesky factor: |L^-1 r|^2 = r^T S^-1 r, positive by construction.
            self.scale = 1.0
            self.form = np.linalg.inv(np.linalg.cholesky(shrunk(samples) + RIDGE * np.eye(d)))
            self.dual = False
            return
        intensity = float(ledoit_wolf_shrinkage(samples, assume_centered=True))
        self.scale = intensity * float(np.square(samples).mean()) + RIDGE
        ridge = self.scale * n / max(1.0 - intensity, RIDGE)
        factor = np.linalg.cholesky(samples @ samples.T + ridge * np.eye(n))
        self.form = solve_triangular(factor, samples, lower=True)
        self.dual = True

    def length(self, vectors: Numbers) -> Float[np.ndarray, " n"]:
        """>= 0; higher = further out."""
        squares = np.square(vectors @ self.form.T).sum(1)
        if self.dual:
            squares = np.maximum(np.square(vectors).sum(1) - squares, 0.0) / self.scale
        return np.sqrt(squares)


def shrunk(numbers: Numbers) -> Float[np.ndarray, "d d"]:
    """Ledoit and Wolf's covariance of numbers around 0.

    (1 - r) S + r tr(S) / d I, the intensity r by scikit-learn; its own estimator checks its input over and over, which
    takes longer than the arithmetic on trusted sets of some hundred samples.
    """
    intensity = ledoit_wolf_shrinkage(numbers, assume_centered=True)
    covariance = (1.0 - intensity) * (numbers.T @ numbers / len(numbers))
    covariance.flat[:: len(covariance) + 1] += intensity * np.square(numbers).mean()
    return covariance


def held_out_residuals(numbers: Numbers, classes: Classes, folds: Int[np.ndarray, " n"]) -> Numbers:
    """The residuals of `held_out` alone."""
    residuals = np.empty_like(numbers)
    for fold in np.unique(folds):
        own = folds == fold
        standardiser = ClassStandardiser().fit_moments(numbers[~own], classes[~own])
        residuals[own] = standardiser.residuals(numbers[own], classes[own])
    return residuals


def held_out(
    numbers: Numbers, classes: Classes, folds: Int[np.ndarray, " n"]
) -> tuple[Numbers, Float[np.ndarray, " n"]]:
    """Residuals and distances of the fit samples, each by a standardiser that has not seen it.

    Distances to a covariance fitted on the very same samples are too small, which would make every fresh clean input
    look odd; whatever is ranked on the fit set uses these.
    """
    residuals, distances = np.empty_like(numbers), np.empty(len(numbers))
    for fold in np.unique(folds):
        own = folds == fold
        standardiser = ClassStandardiser().fit(numbers[~own], classes[~own])
        residuals[own] = standardiser.residuals(numbers[own], classes[own])
        distances[own] = standardiser.distance(numbers[own], classes[own])
    return residuals, distances


def spread_folds(n: int, folds: int = 5) -> Int[np.ndarray, " n"]:
    """Fold of each of n samples, in turn; the samples' order is already random."""
    return np.arange(n) % min(folds, max(n, 1))

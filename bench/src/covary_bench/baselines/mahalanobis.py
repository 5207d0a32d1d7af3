"""Mahalanobis distance to the nearest class in the last features (Lee et al. 2018, arXiv 1807.03888, eqs. 1 and 2)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from sklearn.covariance import ledoit_wolf

from covary.scoring.scores.standardise import spread_folds
from covary_bench.baselines.material import Material

Features = Float[np.ndarray, "_ d"]
Classes = Int[np.ndarray, " _"]


class TiedGaussians:
    """One Gaussian a class with a common covariance, which is shrunk (Ledoit-Wolf): the paper had 50,000 samples."""

    def fit(self, x: Features, classes: Classes) -> TiedGaussians:
        """Learns class means and the common covariance."""
        self.labels_ = np.unique(classes)
        self.means_ = np.stack([x[classes == label].mean(0) for label in self.labels_])
        centred = x - self.means_[np.searchsorted(self.labels_, classes)]
        scale = max(float(np.sqrt(np.square(centred).mean())), 1e-12)
        covariance = np.atleast_2d(ledoit_wolf(centred / scale, assume_centered=True)[0]) * scale**2
        self.precision_ = np.linalg.pinv(covariance + 1e-9 * scale**2 * np.eye(x.shape[1]), hermitian=True)
        return self

    def distances(self, x: Features) -> Float[np.ndarray, "_ classes"]:
        """(x - mu_c)^T S^-1 (x - mu_c) for every class."""
        offsets = x[:, None] - self.means_[None]
        return np.maximum(np.einsum("ncd,de,nce->nc", offsets, self.precision_, offsets, optimize=True), 0.0)

    def nearest(self, x: Features) -> Float[np.ndarray, " _"]:
        """Distance to the nearest class, >= 0."""
        return self.distances(x).min(1)


def log_distances(
    trusted: Features, classes: Classes, queries: Features
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " q"]]:
    """Log distances of held-out trusted samples (5 folds) and of the queries."""
    held_out, folds = np.empty(len(trusted)), spread_folds(len(trusted))
    for fold in np.unique(folds):
        own = folds == fold
        held_out[own] = TiedGaussians().fit(trusted[~own], classes[~own]).nearest(trusted[own])
    return np.log(held_out + 1e-12), np.log(TiedGaussians().fit(trusted, classes).nearest(queries) + 1e-12)


def one_sided(m: Material) -> Float[np.ndarray, " q"]:
    """min over classes of the squared distance; higher = more anomalous."""
    return TiedGaussians().fit(m.trusted_features, m.trusted.predicted).nearest(m.query_features)


def two_sided(m: Material) -> Float[np.ndarray, " q"]:
    """|log d - median| over held-out trusted samples: too near to a class mean counts, too, as backdoors can be."""
    held_out, queries = log_distances(m.trusted_features, m.trusted.predicted, m.query_features)
    return np.abs(queries - np.median(held_out))

"""Quantum entropy scores of whitened features (Hayase et al. 2021, SPECTRE, arXiv 2104.11315, section 3.2)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from sklearn.covariance import ledoit_wolf

from covary_bench.baselines.material import Material

ALPHA = 4.0


def scores(whitened: Float[np.ndarray, "n d"], alpha: float = ALPHA) -> Float[np.ndarray, " n"]:
    """h^T Q h / Tr Q with Q = exp(alpha (S - I) / (|S| - 1)), S the mean of h h^T and |S| its largest eigenvalue.

    Where nothing is longer than trusted samples are (|S| <= 1), Q = I: the squared length over d.
    """
    values, vectors = np.linalg.eigh(whitened.T @ whitened / len(whitened))
    excess = float(values[-1]) - 1
    # Shifted by its largest exponent, which cancels in Q / Tr Q and cannot overflow.
    weights = np.exp(alpha * ((values - 1) / excess - 1)) if excess > 0 else np.ones(len(values))
    return np.square(whitened @ vectors) @ weights / weights.sum()


def quantum_entropy(m: Material) -> Float[np.ndarray, " q"]:
    """Quantum entropy score of each query among the pile's inputs of its predicted class; higher = more anomalous.

    Made for poisoned training sets, whose part the pile plays: calibration samples and inputs together. Departures:
    mean and covariance of clean samples come from trusted ones (the paper estimates them robustly from the poisoned
    set); the covariance is common to all classes and shrunk (Ledoit-Wolf), and no leading directions are picked first.
    """
    trusted, queries = (np.asarray(x, np.float64) for x in (m.trusted_features, m.query_features))
    labels = np.unique(m.trusted.predicted)
    means = {int(label): trusted[m.trusted.predicted == label].mean(0) for label in labels}
    centred = trusted - np.stack([means[int(label)] for label in m.trusted.predicted])
    scale = max(float(np.sqrt(np.square(centred).mean())), 1e-12)
    covariance = np.atleast_2d(ledoit_wolf(centred / scale, assume_centered=True)[0])
    values, vectors = np.linalg.eigh(covariance)
    whiten = vectors / np.sqrt(np.maximum(values, 1e-9))
    result = np.empty(len(queries))
    for label in np.unique(m.queries.predicted):
        own = m.queries.predicted == label
        mean = means.get(int(label), trusted.mean(0))
        result[own] = scores((queries[own] - mean) / scale @ whiten)
    return result

"""SCALE: energy after features are scaled by how evenly they are spread (Xu et al. 2024, arXiv 2310.00227, eq. 7)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covary_bench.baselines.images.head import Head
from covary_bench.baselines.material import Material

PERCENTILE = 0.85


def scaled(features: Float[np.ndarray, "n d"], percentile: float = PERCENTILE) -> Float[np.ndarray, "n d"]:
    """z exp(r), r = the sum over all features by the sum over the largest 1 - `percentile` of them."""
    x = np.asarray(features, np.float64)
    kept = max(x.shape[1] - round(x.shape[1] * percentile), 1)
    largest = np.sort(x, axis=1)[:, -kept:].sum(1)
    # Features after a ReLU are never negative; all zero they stay as they are.
    ratio = np.divide(x.sum(1), largest, out=np.zeros(len(x)), where=largest > 0)
    return x * np.exp(ratio)[:, None]


def scale(m: Material) -> Float[np.ndarray, " q"]:
    """-log sum exp of W z exp(r) + b; higher = more anomalous. Percentile 85, the paper's for most networks."""
    return -Head.of(m.network).energy(scaled(m.query_features))

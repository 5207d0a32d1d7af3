"""Mahalanobis distance layer by layer on pooled activations (Lee et al. 2018, arXiv 1807.03888, section 2.2)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covary_bench.baselines.mahalanobis import log_distances
from covary_bench.baselines.material import Material


def by_layer(m: Material, sides: int = 1) -> Float[np.ndarray, " q"]:
    """Sum over layers of z = (log d - mean) / sd, or of |z| with two sides, standardised on held-out trusted samples.

    The paper weighs layers by a logistic regression on known anomalies; here nobody knows any, so all weigh the same.
    """
    total = np.zeros(len(m.queries))
    for layer, trusted in m.trusted.latent.items():
        pair = np.asarray(trusted, np.float64), np.asarray(m.queries.latent[layer], np.float64)
        held_out, queries = log_distances(pair[0], m.trusted.predicted, pair[1])
        z = (queries - held_out.mean()) / max(float(held_out.std()), 1e-6)
        total += np.abs(z) if sides == 2 else z
    return total

"""SCALE-UP: a trigger's prediction survives multiplied pixels (Guo et al. 2023, arXiv 2302.03251, eqs. 1 to 3)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covary_bench.baselines.material import Material, Pixels, Probe


def consistency(probe: Probe, pixels: Pixels, factors: tuple[int, ...]) -> Float[np.ndarray, " n"]:
    """Scaled prediction consistency: share of the factors n with f(clip(n x)) = f(x), in [0, 1]."""
    before = probe.predicted(pixels)
    return np.mean([probe.predicted((factor * pixels).clamp(0, 1)) == before for factor in factors], axis=0)


def scale_up(
    m: Material, factors: tuple[int, ...] = (3, 5, 7, 9, 11), data_limited: bool = True
) -> Float[np.ndarray, " q"]:
    """Scaled prediction consistency; data-limited: standardised by trusted images of the same predicted class.

    Higher = more anomalous. A class with fewer than five trusted images takes mean and spread of all.
    """
    probe = m.network
    queries = consistency(probe, probe.queries, tuple(factors))
    if not data_limited:
        return queries
    trusted, result = consistency(probe, probe.trusted, tuple(factors)), np.empty(len(queries))
    for label in np.unique(m.queries.predicted):
        own = trusted[m.trusted.predicted == label]
        own = own if len(own) >= 5 else trusted
        chosen = m.queries.predicted == label
        result[chosen] = (queries[chosen] - own.mean()) / (own.std() + 0.1)
    return result

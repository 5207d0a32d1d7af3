"""The layer profile of the functional part, on activations instead of gradients: what moving from one to other buys."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covary.scoring.scores.distances import FullDistance
from covary.scoring.scores.layers import LayerProfile, latent_numbers
from covary_bench.baselines.material import Material


def profile_on_activations(m: Material) -> Float[np.ndarray, " q"]:
    """Standardised log Mahalanobis distance of (n, v, o) of all layers' pooled activations.

    The same numbers, roles and distance as the score `profile` takes of gradients (arXiv 2604.18970 has neither).
    """
    reference, fit = m.roles
    profile = LayerProfile(centred=True).fit(reference.latent, reference.predicted)
    distance = FullDistance().fit(latent_numbers(profile, fit), fit.predicted)
    return distance(latent_numbers(profile, m.queries), m.queries.predicted)

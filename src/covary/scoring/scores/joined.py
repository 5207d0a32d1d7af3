"""How several pieces of evidence become one score: their cubic norm, in nats of held-out tails."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

# Chosen on the tuning cells among 1, 1.5, 2, 3 and 4 (see docs/pile.md).
POWER = 3.0


def joined(evidence: Sequence[Float[np.ndarray, " n"]], power: float = POWER) -> Float[np.ndarray, " n"]:
    """(sum_j e_j^3)^(1/3) of pieces e_j = -log p_j >= 0 in nats; higher = more anomalous.

    Between a sum, in which blind pieces drown a clear one, and a maximum, in which several weak ones never add up. A
    piece that is blind or points the wrong way adds next to nothing and takes nothing away.
    """
    return np.sum([np.power(np.maximum(piece, 0.0), power) for piece in evidence], axis=0) ** (1.0 / power)

"""Energy of the logits (Liu et al. 2020, arXiv 2010.03759)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covary.scoring.rows import Rows


def energy(queries: Rows) -> Float[np.ndarray, " q"]:
    """-logsumexp of the logits; higher = more anomalous. Sees the unsure; blind to confident attacks."""
    return np.asarray(queries.confidence["energy"], np.float64)

"""Maximum softmax probability (Hendrycks and Gimpel 2017, arXiv 1610.02136)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covary.scoring.rows import Rows


def max_softmax(queries: Rows) -> Float[np.ndarray, " q"]:
    """Minus the predicted class's log-odds, which orders inputs as 1 - max p does and does not saturate."""
    return -np.asarray(queries.confidence["margin"], np.float64)

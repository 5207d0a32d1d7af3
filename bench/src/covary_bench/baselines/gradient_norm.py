"""Norm of the whole gradient of the observable, the simplest thing a backward pass can say."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covary.scoring.rows import Rows


def gradient_norm(queries: Rows) -> Float[np.ndarray, " q"]:
    """log |g| over all layers; higher = more anomalous. A backdoor's can be lower: the sign is fixed beforehand."""
    return 0.5 * np.log(np.square(np.asarray(queries.functional_norms, np.float64)).sum(1) + 1e-30)

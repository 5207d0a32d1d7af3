"""Class-max cosine: the first-order limit of the published score (arXiv 2604.18970, CLC)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covary.scoring.couplings import couple
from covary.scoring.rows import Rows
from covary.scoring.scores.coupling import class_max


def class_max_cosine(trusted: Rows, queries: Rows) -> Float[np.ndarray, " q"]:
    """Minus the largest class mean of gradient cosines with trusted samples; higher = more anomalous."""
    return class_max(couple("cosine", queries, trusted), queries.predicted, trusted.predicted)

"""Baselines: what a detector has to beat, each on the same trusted and query samples, higher = more anomalous."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from covary.bench.baselines.class_max import class_max_cosine
from covary.bench.baselines.energy import energy
from covary.bench.baselines.gradient_norm import gradient_norm
from covary.bench.baselines.knn import nearest_neighbours
from covary.bench.baselines.max_softmax import max_softmax
from covary.types import Rows


@dataclass(frozen=True)
class Material:
    """What every baseline gets: trusted rows (reference and fit together), query rows, and both's last features."""

    trusted: Rows
    queries: Rows
    trusted_features: Float[np.ndarray, "n d"]
    query_features: Float[np.ndarray, "q d"]


# name -> score of the queries; adding one is one file and one line.
BASELINES: dict[str, Callable[[Material], Float[np.ndarray, " q"]]] = {
    "gradient norm": lambda m: gradient_norm(m.queries),
    "max softmax": lambda m: max_softmax(m.queries),
    "energy": lambda m: energy(m.queries),
    "KNN on features": lambda m: nearest_neighbours(m.trusted_features, m.query_features),
    "class-max cosine": lambda m: class_max_cosine(m.trusted, m.queries),
}

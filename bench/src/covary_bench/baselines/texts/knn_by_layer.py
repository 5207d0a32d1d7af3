"""Distance to the k-th nearest trusted hidden state (Sun et al. 2022, arXiv 2204.06507), layer by layer."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from sklearn.neighbors import NearestNeighbors

from covary_bench.baselines.images.knn import K
from covary_bench.baselines.texts.material import TextMaterial


def knn_by_layer(m: TextMaterial, k: int = K) -> Float[np.ndarray, " q"]:
    """Sum over layers and positions of z = (log d_k - mean) / sd, standardised on trusted texts without themselves.

    d_k is the distance to the k-th nearest trusted state, states scaled to length one. The paper takes the last layer;
    which one tells is not known beforehand, so all weigh the same. Higher = more anomalous.
    """
    total = np.zeros(len(m.queries))
    for name, trusted in m.known.states.items():
        known, query_states = (_unit(np.asarray(part, np.float64)) for part in (trusted, m.query_texts.states[name]))
        near = min(k, len(known) - 1)
        found = NearestNeighbors(n_neighbors=near).fit(known)
        # Asked without points, scikit-learn leaves every trusted text out of its own neighbours.
        own, queries = (np.log(found.kneighbors(x)[0][:, -1] + 1e-12) for x in (None, query_states))
        total += (queries - own.mean()) / max(float(own.std()), 1e-6)
    return total


def _unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

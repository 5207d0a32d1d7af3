"""NNGuide: energy guided by nearest trusted neighbours (Park et al. 2023, arXiv 2309.14888, section 4)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covary_bench.baselines.images.head import Head
from covary_bench.baselines.material import Material

K = 10


def nnguide(m: Material, k: int = K) -> Float[np.ndarray, " q"]:
    """-E(x) times the mean of the k largest E(t) cos(z, z_t) over trusted t, E the log sum exp of the logits.

    Higher = more anomalous. The bank is every trusted sample, where the paper takes a hundredth of the training set.
    """
    head = Head.of(m.network)
    bank = _unit(m.trusted_features) * head.energy(m.trusted_features)[:, None]
    similar = _unit(m.query_features) @ bank.T
    return -head.energy(m.query_features) * np.sort(similar, axis=1)[:, -min(k, len(bank)) :].mean(1)


def _unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

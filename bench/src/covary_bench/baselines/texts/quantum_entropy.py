"""Quantum entropy: directions in which the pile is longer than trusted texts (Hayase et al. 2021, arXiv 2104.11315)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.linalg import expm
from sklearn.covariance import ledoit_wolf

from covary_bench.baselines.texts.material import TextMaterial

ALPHA, DIRECTIONS = 4.0, 64


def entropy_scores(
    trusted: Float[np.ndarray, "n d"], pile: Float[np.ndarray, "q d"], alpha: float = ALPHA, k: int = DIRECTIONS
) -> Float[np.ndarray, " q"]:
    """x^T Q x / tr Q, Q = exp(alpha (S - I) / (|S| - 1)), S the covariance of the pile's numbers x; higher = odder.

    x are the pile's offsets from the trusted mean along the pile's first k principal directions, whitened by the
    trusted texts' covariance there (algorithm 2). The paper estimates mean and covariance of clean samples robustly out
    of the pile; here trusted ones are at hand. k = 64 is the most that the paper tries.
    """
    centred = pile - pile.mean(0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:k]
    known, x = ((part - trusted.mean(0)) @ directions.T for part in (trusted, pile))
    scale = max(float(np.sqrt(np.square(known).mean())), 1e-12)
    covariance = np.atleast_2d(ledoit_wolf(known / scale, assume_centered=True)[0])
    values, vectors = np.linalg.eigh(covariance)
    x = (x / scale) @ vectors / np.sqrt(np.maximum(values, 1e-9))
    s = np.atleast_2d(np.cov(x.T))
    # Less |S| in place of less one, which the trace divides out: exp(0) is the most there is.
    most = float(np.linalg.eigvalsh(s)[-1])
    q = expm(alpha * (s - most * np.eye(len(s))) / max(most - 1, 1e-6))
    return np.einsum("nd,de,ne->n", x, q, x) / np.trace(q)


def quantum_entropy(m: TextMaterial) -> Float[np.ndarray, " q"]:
    """Mean of `entropy_scores` over layers and positions, since nobody knows which layer tells."""
    pairs = [(np.asarray(own, np.float64), np.asarray(m.query_texts.states[name], np.float64))
             for name, own in m.known.states.items()]  # fmt: skip
    return np.mean([entropy_scores(trusted, pile) for trusted, pile in pairs], axis=0)

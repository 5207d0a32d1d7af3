"""Explanation of a query by trusted samples: a non-negative sparse sum of their gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

PENALTY = 0.01
CANDIDATES = 64
STEPS = 200
# Up to this many reference samples all inner products are taken at once; beyond it, those of each query's candidates.
FULL_GRAM, QUERIES = 4096, 16


@dataclass(frozen=True)
class Explanation:
    """Which reference samples rebuild each query's direction.

    Attributes:
        candidates: reference positions considered for each query, by falling coupling, (q, c).
        weights: their weights, >= 0 and mostly zero, (q, c).
        unexplained: share of the unit query direction left over, in [0, 1]; higher = more anomalous.
    """

    candidates: Int[np.ndarray, "q c"]
    weights: Float[np.ndarray, "q c"]
    unexplained: Float[np.ndarray, " q"]


def explain(
    queries: Float[np.ndarray, "q d"],
    reference: Float[np.ndarray, "r d"],
    *,
    penalty: float = PENALTY,
    candidates: int = CANDIDATES,
    steps: int = STEPS,
) -> Explanation:
    """min over a >= 0 of |x - Z^T a|^2 / 2 + penalty sum(a), for unit rows x and Z, all queries at once.

    Solved by accelerated projected gradient (Beck and Teboulle 2009) on the `candidates` reference samples with the
    largest cosine, which hold most of a non-negative solution's support: with more of them `unexplained` =
    |x - Z^T a|^2 can only fall. A query of zeros has no direction: nothing about it is explained, 1.
    """
    queries = queries.astype(reference.dtype, copy=False)
    reach = queries @ reference.T
    c = min(candidates, reference.shape[0])
    order = np.argsort(-reach, axis=1, kind="stable")[:, :c]
    linear = np.take_along_axis(reach, order, axis=1) - penalty
    gram = _gram(reference, order)
    step = 1.0 / np.maximum(np.abs(gram).sum(2).max(1), 1e-12)[:, None]
    weights = np.zeros_like(linear)
    ahead, momentum = weights, 1.0
    for _ in range(steps):
        gradient = np.einsum("qij,qj->qi", gram, ahead) - linear
        new = np.maximum(ahead - step * gradient, 0.0)
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (momentum - 1) / following * (new - weights)
        weights, momentum = new, following
    fit = np.einsum("qi,qij,qj->q", weights, gram, weights) - 2 * (weights * (linear + penalty)).sum(1)
    own = np.square(queries).sum(1)
    return Explanation(order, weights, np.where(own > 0, np.clip(own + fit, 0.0, 1.0), 1.0))


def _gram(reference: Float[np.ndarray, "r d"], order: Int[np.ndarray, "q c"]) -> Float[np.ndarray, "q c c"]:
    """Inner products among each query's candidates."""
    if len(reference) <= FULL_GRAM:
        return (reference @ reference.T)[order[:, :, None], order[:, None, :]]
    parts = []
    for start in range(0, len(order), QUERIES):
        near = reference[order[start : start + QUERIES]]
        parts.append(near @ near.transpose(0, 2, 1))
    return np.concatenate(parts) if parts else np.zeros((0, order.shape[1], order.shape[1]))

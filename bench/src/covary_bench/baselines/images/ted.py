"""TED: the rank of the nearest trusted neighbour of one's own class, layer by layer (arXiv 2312.02673, section 4)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from sklearn.covariance import ledoit_wolf

from covary_bench.baselines.material import Material


def ranks(
    queries: Float[np.ndarray, "q d"],
    classes: Int[np.ndarray, " q"],
    trusted: Float[np.ndarray, "n d"],
    trusted_classes: Int[np.ndarray, " n"],
    same: bool = False,
) -> Float[np.ndarray, " q"]:
    """How many trusted samples of other classes lie nearer than the nearest of the predicted class; 0 = none.

    A class without trusted samples has the highest rank, n. `same`: queries are the trusted samples themselves.
    """
    distances = np.square(queries).sum(1)[:, None] - 2 * queries @ trusted.T + np.square(trusted).sum(1)[None]
    if same:
        np.fill_diagonal(distances, np.inf)
    own = classes[:, None] == trusted_classes[None]
    nearest = np.where(own, distances, np.inf).min(1)
    nearer = (distances < nearest[:, None]).sum(1)
    return np.where(np.isfinite(nearest), nearer, len(trusted)).astype(np.float64)


def outlyingness(
    known: Float[np.ndarray, "n layers"], queries: Float[np.ndarray, "q layers"]
) -> Float[np.ndarray, " q"]:
    """sum_j (u_j^T (r - mean))^2 / lambda_j over the principal components of trusted rank vectors r, >= 0.

    Shyu et al. 2003, which the paper's PCA detector is; eigenvalues are shrunk by Ledoit-Wolf, as trusted samples are
    few.
    """
    centre, spread = known.mean(0), np.maximum(known.std(0), 1e-3 * max(float(known.std()), 1e-3))
    covariance = np.atleast_2d(ledoit_wolf((known - centre) / spread)[0])
    offsets = (queries - centre) / spread
    return np.einsum("nd,de,ne->n", offsets, np.linalg.pinv(covariance, hermitian=True), offsets)


def ted(m: Material, logarithm: bool = False) -> Float[np.ndarray, " q"]:
    """Outlyingness of the vector of ranks over all layers, by the trusted samples' principal components."""
    for_trusted, for_queries = [], []
    for layer, rows in m.trusted.latent.items():
        trusted, queries = np.asarray(rows, np.float64), np.asarray(m.queries.latent[layer], np.float64)
        for_trusted.append(ranks(trusted, m.trusted.predicted, trusted, m.trusted.predicted, same=True))
        for_queries.append(ranks(queries, m.queries.predicted, trusted, m.trusted.predicted))
    known, query_ranks = np.stack(for_trusted, 1), np.stack(for_queries, 1)
    if logarithm:
        known, query_ranks = np.log1p(known), np.log1p(query_ranks)
    return outlyingness(known, query_ranks)

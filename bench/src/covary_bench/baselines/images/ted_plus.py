"""TED++: ranks of neighbours within a tube around each class's activations (Le et al. 2025, arXiv 2510.14299)."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int

from covary_bench.baselines.images.ted import outlyingness
from covary_bench.baselines.material import Material

SHARE = 0.5


def adaptive_ranks(
    queries: Float[np.ndarray, "q d"],
    classes: Int[np.ndarray, " q"],
    trusted: Float[np.ndarray, "n d"],
    trusted_classes: Int[np.ndarray, " n"],
    same: bool = False,
) -> Float[np.ndarray, " q"]:
    """TED's rank of the nearest trusted sample v of the own class, or n - 1 where the query lies outside v's tube.

    The tube of v is as thick as the distance to its ceil(m / 2)-th nearest neighbour among the other trusted samples
    of its class, which has m of them; a class with fewer than two has no tube, and one with none the rank n - 1.
    `same`: queries are the trusted samples themselves.
    """
    squares = np.square(trusted).sum(1)
    distances = np.square(queries).sum(1)[:, None] - 2 * queries @ trusted.T + squares[None]
    between = squares[:, None] - 2 * trusted @ trusted.T + squares[None]
    np.fill_diagonal(between, np.inf)
    if same:
        np.fill_diagonal(distances, np.inf)
    thickness = np.full(len(trusted), np.inf)
    for label in np.unique(trusted_classes):
        own = np.flatnonzero(trusted_classes == label)
        if len(own) > 1:
            place = min(math.ceil(SHARE * len(own)), len(own) - 1) - 1
            thickness[own] = np.sort(between[np.ix_(own, own)], axis=1)[:, place]
    theirs = np.where(classes[:, None] == trusted_classes[None], distances, np.inf)
    v = theirs.argmin(1)
    nearest = theirs[np.arange(len(queries)), v]
    rank = (distances < nearest[:, None]).sum(1)
    inside = np.isfinite(nearest) & (nearest <= thickness[v])
    return np.where(inside, rank, len(trusted) - 1).astype(np.float64)


def ted_plus(m: Material) -> Float[np.ndarray, " q"]:
    """Outlyingness of the vector of locally adaptive ranks over all layers; higher = more anomalous.

    Departures: activations are averaged over positions where the paper flattens them, as for TED here, and the
    components' eigenvalues are shrunk. A class has the trusted samples it has, where the paper draws 20 of each.
    """
    for_trusted, for_queries = [], []
    for layer, rows in m.trusted.latent.items():
        trusted, queries = np.asarray(rows, np.float64), np.asarray(m.queries.latent[layer], np.float64)
        for_trusted.append(adaptive_ranks(trusted, m.trusted.predicted, trusted, m.trusted.predicted, same=True))
        for_queries.append(adaptive_ranks(queries, m.queries.predicted, trusted, m.trusted.predicted))
    return outlyingness(np.stack(for_trusted, 1), np.stack(for_queries, 1))

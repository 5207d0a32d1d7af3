"""How many mechanisms are behind a pile of flagged inputs: clusters of the ways in which their explanation fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import cho_factor, cho_solve
from sklearn.cluster import HDBSCAN
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

from covary.judge import Verdicts
from covary.scores.layers import LAMBDA, Layers, unit
from covary.types import Rows

LEAST_MEMBERS, FEWEST = 8, 5
SHARE_OF_FLAGGED = 0.15
DIMENSIONS = 5
# Silhouette, times the share in a cluster, from which on several clusters are believed. On digits, with piles of
# 54 to 180, two backdoors gave 0.58 to 0.68 and one backdoor at most 0.26; by gradients alone it was 0.44 to 0.55
# and at most 0.31, with three times as many inputs in no cluster.
BELIEVED = 0.4
NOISE = -1


def unexplained_directions(rows: Rows, reference: Rows, lam: float = LAMBDA) -> Float[np.ndarray, "n d"]:
    """What the reference leaves over of each input's direction, layer by layer, as one unit vector an input.

    Per layer lam (Z^T Z + lam I)^-1 x for unit rows x and unit reference rows Z: the residual of the ridge
    reconstruction, long where nothing accounts for x. Half of the vector is of gradients, half of activations, less the
    reference's mean; rows without activations have the first half alone. Inputs whose explanation fails in the same
    directions of the same layers point the same way, whatever class they are given.
    """
    halves = [_left_over(rows.functional, reference.functional, False, lam)]
    if rows.latent:
        halves.append(_left_over(rows.latent, reference.latent, True, lam))
    return unit(np.concatenate(halves, axis=1))


def _left_over(
    own: Layers, known: Mapping[str, Float[np.ndarray, "r _"]], centred: bool, lam: float
) -> Float[np.ndarray, "n d"]:
    parts = []
    for name, rows in own.items():
        trusted = np.asarray(known[name], np.float64)
        centre = trusted.mean(0) if centred else 0.0
        x, z = unit(np.asarray(rows, np.float64) - centre), unit(trusted - centre)
        factor = cho_factor(z.T @ z + lam * np.eye(z.shape[1]))
        parts.append(lam * cho_solve(factor, x.T).T)
    return unit(np.concatenate(parts, axis=1))


def cluster(rows: Rows, reference: Rows, least: int | None = None) -> Int[np.ndarray, " n"]:
    """Cluster of each flagged input, 0 the largest; -1 = alone in how its explanation fails.

    HDBSCAN (Campello et al. 2013) on the leading principal components of `unexplained_directions`; `least` members
    make a mechanism, by default 15 % of the pile and at least eight. The number of clusters is not given
    beforehand; where their mean silhouette, times the share of inputs in one, is below 0.4 the pile counts as one
    mechanism, as does a pile of fewer than twice `least`. Fewer than five inputs are all alone.
    """
    n = len(rows)
    least = max(LEAST_MEMBERS, round(SHARE_OF_FLAGGED * n)) if least is None else least
    if n < 2 * least:
        return np.full(n, NOISE if n < FEWEST else 0, np.int64)
    directions = unexplained_directions(rows, reference)
    points = PCA(min(DIMENSIONS, n - 1, directions.shape[1]), random_state=0).fit_transform(directions)
    clusters: Any = HDBSCAN
    found = np.asarray(clusters(min_cluster_size=least, copy=True).fit_predict(points), np.int64)
    inside = found >= 0
    several = len(np.unique(found[inside])) > 1
    if not several or inside.mean() * silhouette_score(points[inside], found[inside]) < BELIEVED:
        return np.zeros(n, np.int64)
    return by_size(found)


def by_size(labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The same clusters numbered by falling size; noise stays -1."""
    names, counts = np.unique(labels[labels >= 0], return_counts=True)
    order = names[np.argsort(-counts, kind="stable")]
    number = {int(name): i for i, name in enumerate(order)}
    return np.array([number.get(int(label), NOISE) for label in labels], np.int64)


def uncertainty(verdicts: Verdicts) -> Float[np.ndarray, " n"]:
    """How far the margin lies below what trusted inputs of the predicted class show, in their standard deviations.

    Higher = the network is less sure; zeros where the score kept no confidence residuals.
    """
    residuals = verdicts.residuals.get("confidence")
    return np.zeros(len(verdicts)) if residuals is None else -residuals[:, 0]


def mechanism_axis(verdicts: Verdicts) -> Float[np.ndarray, " n"]:
    """The second axis: evidence of another mechanism minus being unsure, in trusted standard deviations.

    The mean of the functional and latent parts minus `uncertainty`; higher = another mechanism behind a sure answer,
    lower = an answer the network is unsure of, whose gradients and activations are odd for that alone.
    """
    parts = [values for kind, values in verdicts.parts.items() if kind != "confidence"]
    evidence = np.mean(parts, axis=0) if parts else np.zeros(len(verdicts))
    return evidence - uncertainty(verdicts)

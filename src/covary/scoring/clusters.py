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
from sklearn.neighbors import NearestNeighbors

from covary.scoring.judge import Verdicts
from covary.scoring.rows import Rows
from covary.scoring.scores.layers import LAMBDA, Layers, unit
from covary.scoring.scores.parts import PARTS

LEAST_MEMBERS, FEWEST = 8, 5
SHARE_OF_FLAGGED = 0.15
DIMENSIONS = 5
# Silhouette, times the share in a cluster, from which on several clusters are believed. Chosen on piles of digits, of
# CIFAR-10 and GTSRB with seed 11 and of texts with seeds 11 and 12: ten of several mechanisms gave 0.56 to 0.76, forty
# of one at most 0.33.
BELIEVED = 0.4
NEIGHBOURS, NEAR = 5, 3.0
NOISE = -1


def unexplained_directions(rows: Rows, reference: Rows, lam: float = LAMBDA) -> Float[np.ndarray, "n d"]:
    """What the reference leaves over of each input's direction, layer by layer, as one unit vector an input.

    Per layer lam (Z^T Z + lam I)^-1 x for unit gradients x and unit reference gradients Z: the residual of the ridge
    reconstruction, long where nothing accounts for x. Inputs whose explanation fails in the same directions of the
    same layers point the same way, whatever class they are given. Of rows without gradients the same of activations.
    """
    if not rows.functional:
        return _left_over(rows.latent, reference.latent, True, lam)
    return _left_over(rows.functional, reference.functional, False, lam)


def with_activations(
    directions: Float[np.ndarray, "n d"], rows: Rows, reference: Rows, lam: float = LAMBDA
) -> Float[np.ndarray, "n e"]:
    """`unexplained_directions` with the same of activations, less the reference's mean: half of a unit vector each."""
    return unit(np.concatenate([directions, _left_over(rows.latent, reference.latent, True, lam)], axis=1))


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

    HDBSCAN (Campello et al. 2013) on the leading principal components of `unexplained_directions`, of gradients and of
    gradients with activations; the clusters that stand further apart are kept: backdoors share activations,
    adversarial inputs of many classes do not. An input in no cluster joins the one of its nearest neighbours unless it
    lies far from them. `least` members make a mechanism, by default 15 % of the pile and at least eight. The number
    of clusters is not given beforehand; where their mean silhouette, times the share of inputs in one, is below 0.4
    the pile counts as one mechanism, as does a pile of fewer than twice `least`. Fewer than five inputs are all alone.
    """
    n = len(rows)
    least = max(LEAST_MEMBERS, round(SHARE_OF_FLAGGED * n)) if least is None else least
    if n < 2 * least:
        return np.full(n, NOISE if n < FEWEST else 0, np.int64)
    views = [unexplained_directions(rows, reference)]
    if rows.latent and rows.functional:
        views.append(with_activations(views[0], rows, reference))
    apart, points, found = max((_clusters(view, least) for view in views), key=lambda one: one[0])
    return by_size(adopted(points, found)) if apart >= BELIEVED else np.zeros(n, np.int64)


def _clusters(directions: Float[np.ndarray, "n d"], least: int) -> tuple[float, np.ndarray, np.ndarray]:
    """How far the clusters stand apart (mean silhouette times the share in one), the points, and their clusters."""
    points = PCA(min(DIMENSIONS, len(directions) - 1, directions.shape[1]), random_state=0).fit_transform(directions)
    clusters: Any = HDBSCAN
    found = np.asarray(clusters(min_cluster_size=least, copy=True).fit_predict(points), np.int64)
    inside = found >= 0
    if len(np.unique(found[inside])) < 2:
        return 0.0, points, found
    return float(inside.mean() * silhouette_score(points[inside], found[inside])), points, found


def adopted(points: Float[np.ndarray, "n p"], labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The same clusters with the stragglers that lie near: each joins the one most of its five nearest members have.

    Near = a mean distance to those five of at most three times what 95 % of that cluster's own members have.
    """
    inside = labels >= 0
    if inside.all() or not inside.any():
        return labels
    nearest = NearestNeighbors(n_neighbors=min(NEIGHBOURS, int(inside.sum()))).fit(points[inside])
    own = nearest.kneighbors(return_distance=True)[0].mean(1)
    distances, places = nearest.kneighbors(points[~inside])
    joined = np.array([np.bincount(near).argmax() for near in labels[inside][places]])
    reach = {k: NEAR * np.quantile(own[labels[inside] == k], 0.95) for k in np.unique(labels[inside])}
    far = distances.mean(1) > np.array([reach[k] for k in joined])
    result = labels.copy()
    result[~inside] = np.where(far, NOISE, joined)
    return result


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
    two_sided = [kind for kind in verdicts.parts if PARTS[kind].sides == "two" and not PARTS[kind].unsure]
    parts = [verdicts.parts[kind] for kind in two_sided]
    evidence = np.mean(parts, axis=0) if parts else np.zeros(len(verdicts))
    return evidence - uncertainty(verdicts)

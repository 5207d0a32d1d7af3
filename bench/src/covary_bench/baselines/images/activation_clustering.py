"""Activation Clustering: two clusters where a class should have one (Chen et al. 2018, arXiv 1811.03728, section 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

from covary_bench.baselines.material import Material

LEAST = 8


def activation_clustering(m: Material, components: int = 10) -> Float[np.ndarray, " q"]:
    """How much nearer an input is to its class's cluster with fewer trusted samples, times the silhouette, in [-1, 1].

    Made for poisoned training sets: the pile of queries plays their part, together with trusted samples of the same
    class, which say which cluster is whose (the paper goes by size). PCA to `components` where the paper takes ICA.
    Needs the whole pile at once. A class with fewer than eight members, or one cluster, scores 0.
    """
    result = np.zeros(len(m.queries))
    for label in np.unique(m.queries.predicted):
        own, known = m.queries.predicted == label, m.trusted.predicted == label
        x = np.concatenate([m.trusted_features[known], m.query_features[own]]).astype(np.float64)
        if len(x) < LEAST or own.sum() < 2 or x.std() < 1e-12:
            continue
        reduced = PCA(min(components, *x.shape), random_state=m.seed).fit_transform(x)
        clusters: Any = KMeans(2, random_state=m.seed).fit(reduced)
        if len(np.unique(clusters.labels_)) < 2:
            continue
        trusted = np.arange(len(x)) < known.sum()
        shares = [trusted[clusters.labels_ == k].mean() for k in (0, 1)]
        odd = int(np.argmin(shares))
        far, near = (np.linalg.norm(reduced - clusters.cluster_centers_[k], axis=1) for k in (1 - odd, odd))
        silhouette = max(float(silhouette_score(reduced, clusters.labels_)), 0.0)
        result[own] = (silhouette * (far - near) / np.maximum(far + near, 1e-12))[known.sum() :]
    return result

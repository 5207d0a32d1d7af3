"""Couplings of a whole pile in one picture: UMAP of all of them at once, then distances to trusted neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from covary.errors import CovaryError, missing_extra

NEIGHBOURS, DIMENSIONS = 15, 2
NEAREST = 10


def embedded(couplings: Float[np.ndarray, "n r"], seed: int) -> Float[np.ndarray, "n _"]:
    """UMAP (McInnes et al. 2018, arXiv 1802.03426) of couplings with r reference samples, in 2 dimensions.

    Of 15 neighbours each, on one thread and seeded, so that it can be repeated. Where a point lies depends on all
    others: nothing can be added later.

    Raises:
        CovaryError: fewer than 16 points, or the extra `offline` is missing.
    """
    if len(couplings) <= NEIGHBOURS:
        raise CovaryError(f"{len(couplings)} inputs to embed together", f"more than {NEIGHBOURS}")
    umap = _umap().UMAP(n_neighbors=NEIGHBOURS, n_components=DIMENSIONS, random_state=seed, n_jobs=1)
    return np.asarray(umap.fit_transform(np.ascontiguousarray(couplings, np.float32)), np.float64)


def distance_to_nearest(
    points: Float[np.ndarray, "n d"], trusted: Float[np.ndarray, "m d"], nearest: int = NEAREST
) -> Float[np.ndarray, " n"]:
    """Mean Euclidean distance to the 10 nearest trusted points, >= 0; higher = more anomalous."""
    from scipy.spatial import KDTree

    found, _ = KDTree(trusted).query(points, k=min(nearest, len(trusted)))
    return np.asarray(found, np.float64).reshape(len(points), -1).mean(1)


def _umap() -> Any:
    try:
        import umap
    except ImportError:
        raise missing_extra("umap-learn", "offline") from None
    return umap

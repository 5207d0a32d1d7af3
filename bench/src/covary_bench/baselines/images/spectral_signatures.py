"""Spectral signatures: poison stands out along the top singular direction of a class (Tran et al. 2018, 1811.00636)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covary_bench.baselines.material import Material


def spectral_signatures(m: Material, directions: int = 1, centre: str = "pile") -> Float[np.ndarray, " q"]:
    """Squared projection of centred features on the top right singular vectors of the class (Algorithm 1).

    Made for poisoned training sets: centre and directions are those of the pile's own inputs of the predicted class
    and its trusted samples together (`trusted` takes the centre from those alone, for piles that are mostly poison).
    Relative to the class's mean over trusted samples, so that classes compare.

    With the pile's centre the score asks that anomalies be few among those of a predicted class, as the paper does
    (its epsilon is a small share). Where they are most of a class the mean lies among them, clean inputs are the ones
    far along the top direction, and the order turns round: AUROC below one half is no error of sign.
    """
    result = np.zeros(len(m.queries))
    for label in np.unique(m.queries.predicted):
        own, known = m.queries.predicted == label, m.trusted.predicted == label
        x = np.concatenate([m.trusted_features[known], m.query_features[own]]).astype(np.float64)
        centred = x - (x[: known.sum()] if centre == "trusted" and known.any() else x).mean(0)
        top = np.linalg.svd(centred, full_matrices=False)[2][:directions]
        squares = np.square(centred @ top.T).sum(1)
        usual = squares[: known.sum()].mean() if known.any() else squares.mean()
        result[own] = squares[known.sum() :] / max(float(usual), 1e-12)
    return result

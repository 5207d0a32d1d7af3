"""Which directions of a pile are more than chance: the leading ones, as simple axes, each put to a permutation test."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.linalg import eigh

from covary.scoring.pile.second_moment import SecondMoment

ROTATIONS, SETTLED = 200, 1e-8
LEAST = 1e-12


def leading(moment: SecondMoment, most: int) -> Float[np.ndarray, "d k"]:
    """The directions in which a second moment is largest, at most so many, the largest first; unit columns."""
    d = len(moment.total)
    vectors = eigh(moment.total / max(moment.n, 1), subset_by_index=(max(d - most, 0), d - 1))[1]
    return vectors[:, ::-1]


def varimax(scores: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "k k"]:
    """Rotation R that maximises the summed variance of the squares in every column of scores R (Kaiser 1958).

    Where each sample is of one of several kinds, it turns principal components into one axis a kind (Rohe and Zeng
    2020, arXiv 2004.05387). Deterministic, and the same in whatever order samples stand.
    """
    n, k = scores.shape
    rotation, before = np.eye(k), 0.0
    for _ in range(ROTATIONS):
        turned = scores @ rotation
        target = scores.T @ (turned**3 - turned * (np.square(turned).sum(0) / n))
        left, values, right = np.linalg.svd(target)
        rotation = left @ right
        if values.sum() <= before * (1 + SETTLED):
            break
        before = float(values.sum())
    return rotation


def far_ends(
    scores: Float[np.ndarray, "n k"],
    in_pile: Bool[np.ndarray, " n"],
    rng: np.random.Generator,
    permutations: int,
) -> tuple[Float[np.ndarray, "n ends"], Float[np.ndarray, " ends"]]:
    """Projections on both ends of every simple axis, plus ends first, and the p-value of each end (see `min_p`).

    Args:
        scores: along directions learned from all samples alike.
        in_pile: which samples are the pile; the others are calibration samples.
        rng: gives the deals.
        permutations: number of deals.
    """
    turned = scores @ varimax(scores)
    ends = np.concatenate([turned, -turned], axis=1)
    return ends, min_p(np.square(np.maximum(ends, 0.0)), in_pile, rng, permutations)


def min_p(
    values: Float[np.ndarray, "n a"],
    in_pile: Bool[np.ndarray, " n"],
    rng: np.random.Generator,
    permutations: int,
) -> Float[np.ndarray, " a"]:
    """Permutation p-values of "the pile's mean is larger", one a column, that hold over all columns together.

    Which samples are the pile is dealt anew. A column's own p-value is its rank among the deals; the
    p-value told is the share of deals whose smallest own p-value is as small (Westfall and Young 1993, min P). In
    [1 / (permutations + 1), 1]: P(any column <= a) <= a where pile and the rest are exchangeable.
    """
    n_pile, n_rest = int(in_pile.sum()), int((~in_pile).sum())
    if not n_pile or not n_rest:
        return np.ones(values.shape[1])
    total = values.sum(0)

    def statistic(rest: Float[np.ndarray, " a"]) -> Float[np.ndarray, " a"]:
        return (total - rest) / n_pile - rest / n_rest

    found = np.empty((permutations + 1, values.shape[1]))
    found[0] = statistic(values[~in_pile].sum(0))
    for row in range(1, permutations + 1):
        drawn = rng.choice(len(values), n_rest, replace=False, shuffle=False)
        found[row] = statistic(values[drawn].sum(0))
    # Ties, which rounding would else break by chance, count against the pile.
    found = np.round(found, 12)
    ranks = np.empty_like(found)
    for column in range(found.shape[1]):
        ordered = np.sort(found[:, column])
        at_least = len(ordered) - np.searchsorted(ordered, found[:, column], side="left")
        ranks[:, column] = at_least / (permutations + 1)
    smallest = np.sort(ranks.min(1))
    return np.searchsorted(smallest, ranks[0], side="right") / (permutations + 1)

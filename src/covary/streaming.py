"""Couplings of any number of queries without storing their traces: running moments, one pass over the draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

EPSILON = 1e-8


@dataclass(frozen=True)
class Moments:
    """Running sums over draws of moved queries q_s = f(x_q; w_s) - f(x_q; w*) with reference traces r_s, float64.

    Attributes:
        draws: how many draws were added.
        total: sum of q, (Q,).
        squares: sum of q^2, (Q,).
        product: sum of q r, (Q, R), r being centred over all draws.
    """

    draws: int
    total: Float[np.ndarray, " Q"]
    squares: Float[np.ndarray, " Q"]
    product: Float[np.ndarray, "Q R"]


@dataclass(frozen=True)
class ReferenceTraces:
    """The kept side: reference traces, centred, with their mean and standard deviation over draws.

    Attributes:
        centred: (S, R), float64.
        mean: of f(x; w_s) - f(x; w*) over draws, (R,).
        deviation: population standard deviation, (R,).
        at_w_star: f(x; w*), (R,).
    """

    centred: Float[np.ndarray, "S R"]
    mean: Float[np.ndarray, " R"]
    deviation: Float[np.ndarray, " R"]
    at_w_star: Float[np.ndarray, " R"]


def keep_reference(moved: Float[np.ndarray, "S R"], at_w_star: Float[np.ndarray, " R"]) -> ReferenceTraces:
    """The reference side from traces of f(x; w_s) - f(x; w*)."""
    moved = np.asarray(moved, np.float64)
    mean = moved.mean(0)
    centred = moved - mean
    return ReferenceTraces(centred, mean, np.sqrt(np.square(centred).mean(0)), np.asarray(at_w_star, np.float64))


def begin(queries: int, reference: ReferenceTraces) -> Moments:
    """Moments of no draws yet."""
    return Moments(0, np.zeros(queries), np.zeros(queries), np.zeros((queries, reference.centred.shape[1])))


def add(moments: Moments, moved: Float[np.ndarray, "s Q"], reference: ReferenceTraces) -> Moments:
    """Moments after the next `s` draws, in the order in which the reference was recorded."""
    moved = np.asarray(moved, np.float64)
    stretch = slice(moments.draws, moments.draws + len(moved))
    return Moments(
        moments.draws + len(moved),
        moments.total + moved.sum(0),
        moments.squares + np.square(moved).sum(0),
        moments.product + moved.T @ reference.centred[stretch],
    )


def covariance(moments: Moments, reference: ReferenceTraces) -> Float[np.ndarray, "Q R"]:
    """Population covariance of query and reference traces; the centred reference makes the mean product zero."""
    return moments.product / moments.draws


def pearson(moments: Moments, reference: ReferenceTraces) -> Float[np.ndarray, "Q R"]:
    """Pearson's correlation, in [-1, 1]; 1e-8 is added to each standard deviation (arXiv 2604.18970)."""
    deviation = _deviation(moments)
    return covariance(moments, reference) / (deviation + EPSILON)[:, None] / (reference.deviation + EPSILON)[None, :]


def ccc(
    moments: Moments, reference: ReferenceTraces, at_w_star: Float[np.ndarray, " Q"]
) -> Float[np.ndarray, "Q R"]:
    """Lin's concordance 2 cov / (var_q + var_r + (mean_q - mean_r)^2 + 1e-8), in [-1, 1] (Lin 1989)."""
    means = moments.total / moments.draws + at_w_star
    gap = np.square(means[:, None] - (reference.mean + reference.at_w_star)[None, :])
    variances = np.square(_deviation(moments))[:, None] + np.square(reference.deviation)[None, :]
    return 2 * covariance(moments, reference) / (variances + gap + EPSILON)


def _deviation(moments: Moments) -> Float[np.ndarray, " Q"]:
    mean = moments.total / moments.draws
    return np.sqrt(np.maximum(moments.squares / moments.draws - np.square(mean), 0.0))

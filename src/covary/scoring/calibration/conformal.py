"""Calibration: from scores to p-values whose false-alarm rate holds, whatever the score."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import beta, betabinom

Scores = Float[np.ndarray, " _"]
Labels = Int[np.ndarray, " _"]


def conformal_p(queries: Scores, calibration: Scores) -> Float[np.ndarray, " q"]:
    """p = (1 + #{calibration scores >= score}) / (1 + n), in (0, 1]; smaller = more anomalous.

    Super-uniform for any score as long as the calibration samples were used for nothing else and are exchangeable
    with clean queries (Vovk, Gammerman and Shafer 2005).
    """
    ordered = np.sort(calibration)
    at_least = len(ordered) - np.searchsorted(ordered, queries, side="left")
    return (1.0 + at_least) / (1.0 + len(ordered))


def smallest_p(n: int) -> float:
    """The smallest p-value that n calibration samples can give, 1 / (n + 1)."""
    return 1.0 / (n + 1)


def needed(fpr: float) -> int:
    """Calibration samples needed to resolve a false-alarm rate: ceil(1 / fpr) - 1."""
    return math.ceil(1.0 / fpr - 1e-9) - 1


def class_groups(calibration_classes: Labels, fpr: float) -> dict[int, int] | None:
    """Group of each class for class-conditional ranking, or None where every class has to be ranked pooled.

    A class with at least ceil(1 / fpr) - 1 calibration samples is a group of its own; all others form one group,
    numbered -1. Where that group is itself too small, nothing is split: ranking only the thin classes against the
    pool would not be valid.
    """
    labels, counts = np.unique(calibration_classes, return_counts=True)
    enough = counts >= needed(fpr)
    rest = int(counts[~enough].sum())
    if 0 < rest < needed(fpr):
        return None
    return {int(label): int(label) if own else -1 for label, own in zip(labels, enough, strict=True)}


def cross_conformal_p(
    queries: Float[np.ndarray, "folds q"], calibration: Scores, folds: Int[np.ndarray, " _"]
) -> Float[np.ndarray, " q"]:
    """p = (1 + sum over folds k of #{i in k: s_i >= s_k(query)}) / (1 + n).

    Every calibration sample is scored by the detector fitted without its fold, every query by all of them. One fold is
    one split, whose p-values are valid as they are (see `conformal_p`). Several are valid
    up to a factor: P(p <= a) <= `cross_conformal_bound` (Vovk 2015; Barber et al. 2021, arXiv 1905.02928, eq. for
    CV+).
    """
    at_least = np.zeros(queries.shape[1])
    for k in np.unique(folds):
        own = np.sort(calibration[folds == k])
        at_least += len(own) - np.searchsorted(own, queries[k], side="left")
    return (1.0 + at_least) / (1.0 + len(calibration))


def grouped_p(
    queries: Float[np.ndarray, "folds q"],
    query_classes: Labels,
    calibration: Scores,
    folds: Int[np.ndarray, " _"],
    calibration_classes: Labels,
    groups: dict[int, int],
) -> Float[np.ndarray, " q"]:
    """(Cross-)conformal p-values within the query's own group of classes (see `class_groups`).

    A class no calibration sample was predicted as is ranked with the thin classes, or among all where none is thin.
    """
    p = np.empty(queries.shape[1])
    for own, peers in _among_peers(query_classes, calibration_classes, groups):
        p[own] = cross_conformal_p(queries[:, own], calibration[peers], folds[peers])
    return p


def _among_peers(
    query_classes: Labels, calibration_classes: Labels, groups: dict[int, int]
) -> Iterator[tuple[Bool[np.ndarray, " q"], Bool[np.ndarray, " _"]]]:
    """The queries of each group, with the calibration samples that they are ranked among."""
    own = np.array([groups.get(int(label), -1) for label in query_classes], dtype=np.int64)
    known = np.array([groups[int(label)] for label in calibration_classes], dtype=np.int64)
    for group in np.unique(own):
        yield own == group, known == group if (known == group).any() else np.ones(len(known), bool)


def margins(
    queries: Float[np.ndarray, "folds q"],
    calibration: Scores,
    folds: Int[np.ndarray, " _"],
    rate: float,
    by_class: tuple[Labels, Labels, dict[int, int]] | None = None,
) -> Float[np.ndarray, " q"]:
    """How far each query lies below its threshold: below 0 exactly where p <= rate, in units of the score.

    The j-th largest of s_i - s_k(query) over calibration samples i of fold k, j = floor(rate (n + 1)); under one split
    that is the threshold minus the score. Infinite where no score would be enough. `by_class` gives the classes of
    queries and of calibration samples and their groups (see `grouped_p`).
    """
    result = np.empty(queries.shape[1])
    if by_class is not None:
        for own, peers in _among_peers(*by_class):
            result[own] = margins(queries[:, own], calibration[peers], folds[peers], rate)
        return result
    j = rank_of_threshold(rate, len(calibration))
    if j < 1:
        result[:] = np.inf
        return result
    for i in range(queries.shape[1]):
        result[i] = np.partition(calibration - queries[folds, i], len(calibration) - j)[len(calibration) - j]
    return result


def cross_conformal_bound(alpha: float, n: int, folds: int) -> float:
    """What P(p <= alpha) can be at worst under cross-conformal ranking: 2 alpha plus a finite-sample term.

    The term is min{2 (1 - 1/K) / (n/K + 1), (1 - K/n) / (K + 1)} for K folds (Barber et al. 2021, Theorem 4), its
    second part for folds of equal size only; the realised rate is usually near alpha.
    """
    by_averages = 2 * (folds - 1) / (n + folds)
    return 2 * alpha + (by_averages if n % folds else min(by_averages, (1 - folds / n) / (folds + 1)))


def benjamini_hochberg(p: Float[np.ndarray, " n"], rate: float) -> Bool[np.ndarray, " n"]:
    """Which of a pile to flag so that the expected share of false alarms among the flagged stays under `rate`.

    Rejects the k smallest with k = max{i : p_(i) <= i rate / n} (Benjamini and Hochberg 1995); p-values that share a
    calibration set are positively dependent, under which it stays valid (Bates et al. 2023, arXiv 2104.08279).
    """
    n = len(p)
    order = np.argsort(p, kind="stable")
    passing = np.flatnonzero(p[order] <= rate * np.arange(1, n + 1) / n)
    flagged = np.zeros(n, dtype=bool)
    if len(passing):
        flagged[p <= p[order][passing[-1]]] = True
    return flagged


def rank_of_threshold(fpr: float, n: int) -> int:
    """Of n calibration scores, how many lie at or above the threshold: floor(fpr (n + 1))."""
    return math.floor(fpr * (n + 1) + 1e-9)


def rate_interval(fpr: float, n: int, level: float = 0.99) -> tuple[float, float]:
    """Interval of one detector's false-alarm rate, by chance of its n calibration samples alone, at that level.

    The rate is Beta(j, n + 1 - j) with j = floor(fpr (n + 1)) for one split and scores without ties; a yardstick for
    cross-conformal ranking.
    """
    j = rank_of_threshold(fpr, n)
    if j < 1:
        return 0.0, 0.0
    law, tail = beta(j, n + 1 - j), (1 - level) / 2
    return float(law.ppf(tail)), float(law.ppf(1 - tail))


def false_alarm_interval(fpr: float, calibration: int, clean: int, level: float = 0.99) -> tuple[float, float]:
    """Interval that holds the realised false-alarm rate on `clean` fresh clean inputs with probability >= `level`.

    With j = floor(fpr (n + 1)) the count of alarms is BetaBinomial(clean, j, n + 1 - j): both the calibration set and
    the inputs are finite. For scores without ties.
    """
    j = rank_of_threshold(fpr, calibration)
    if j < 1 or clean < 1:
        return 0.0, 0.0
    law = betabinom(clean, j, calibration + 1 - j)
    tail = (1 - level) / 2
    low = int(law.ppf(tail))
    return (low if law.cdf(low) > tail else low + 1) / clean, float(law.ppf(1 - tail)) / clean


@dataclass(frozen=True)
class Resolution:
    """What a calibration set can tell apart.

    Attributes:
        fpr: the false-alarm rate in force: the one asked for, or the smallest that can be resolved.
        p_min: the smallest p-value an input can get.
        statement: what to tell the user, empty where the rate asked for holds as it is.
    """

    fpr: float
    p_min: float
    statement: str


def resolve(fpr: float, calibration: int) -> Resolution:
    """The false-alarm rate in force with that many calibration samples."""
    p_min = smallest_p(calibration)
    if p_min <= fpr * (1 + 1e-9):
        return Resolution(fpr, p_min, "")
    return Resolution(
        p_min,
        p_min,
        f"{calibration} calibration samples cannot resolve a false-alarm rate of {fpr:.4g}: the smallest is "
        f"{p_min:.4g}, which is used. For {fpr:.4g}, calibrate on at least {needed(fpr)} samples.",
    )


def least_flagged_for_fdr(rate: float, p_min: float, n: int) -> int:
    """How many inputs must share the smallest p-value before Benjamini-Hochberg at `rate` can flag any."""
    return math.ceil(p_min * n / rate - 1e-9)

"""Rates and shifts between two sets of verdicts: exact tests, and intervals that hold for few inputs too."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import beta, binomtest, fisher_exact, mannwhitneyu, norm, wilcoxon

Interval = tuple[float, float]
Flags = Bool[np.ndarray, " _"]
Values = Float[np.ndarray, " _"]


def exact_interval(k: int, n: int, level: float = 0.95) -> Interval:
    """Interval of a rate of which k of n were seen, in [0, 1]; covers at least `level` (Clopper and Pearson 1934)."""
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(beta.ppf(tail, k, n - k + 1))
    high = 1.0 if k == n else float(beta.ppf(1 - tail, k + 1, n - k))
    return low, high


def wilson_interval(k: int | float, n: int, level: float = 0.95) -> Interval:
    """Score interval of a rate, (p + z²/2n ± z sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n) (Wilson 1927)."""
    z, p = float(norm.ppf((1 + level) / 2)), k / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def difference_interval(before: Flags, after: Flags, paired: bool, level: float = 0.95) -> Interval:
    """Interval of (rate after) - (rate before), in [-1, 1].

    Wilson's intervals of both, joined by squares; where verdicts are on the same inputs, with their correlation
    (Newcombe 1998, Statistics in Medicine 17, 873-890, method 10, and 2635-2650, method 10).
    """
    (p, low_p, high_p), (q, low_q, high_q) = (
        (k / n, *wilson_interval(k, n, level)) for k, n in ((int(x.sum()), len(x)) for x in (before, after))
    )
    phi = _correlation(before, after) if paired else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    return q - p - reach(q - low_q, high_p - p), q - p + reach(high_q - q, p - low_p)


def _correlation(before: Flags, after: Flags) -> float:
    both, neither = int((before & after).sum()), int((~before & ~after).sum())
    first, second = int((before & ~after).sum()), int((~before & after).sum())
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    if product == 0:
        return 0.0
    determinant = both * neither - first * second
    if determinant > 0:
        determinant = max(determinant - len(before) / 2, 0)
    return determinant / math.sqrt(product)


def rate_test(before: Flags, after: Flags, paired: bool) -> float:
    """p-value of "flags are as frequent after as before", two-sided.

    Same inputs: exact McNemar test, a binomial test of flips in one direction against those in the other. Others:
    Fisher's exact test.
    """
    if paired:
        up, down = int((~before & after).sum()), int((before & ~after).sum())
        return 1.0 if up + down == 0 else float(binomtest(up, up + down).pvalue)
    table = [[int(x.sum()), len(x) - int(x.sum())] for x in (before, after)]
    return float(fisher_exact(table)[1])  # type: ignore[index]


def shift_test(before: Values, after: Values, paired: bool) -> float:
    """p-value of "values are where they were", two-sided: Wilcoxon's signed ranks on pairs, else Mann-Whitney's U."""
    if paired:
        result: Any = None if (before == after).all() else wilcoxon(after, before, method="approx")
        return 1.0 if result is None else float(result.pvalue)
    return float(mannwhitneyu(after, before).pvalue)


def superiority(before: Values, after: Values, paired: bool, level: float = 0.95) -> tuple[float, Interval]:
    """P(after > before) + P(equal) / 2 with its interval, in [0, 1]; 0.5 = no shift, above = more anomalous after.

    Same inputs: the share of inputs, ties half, with Wilson's interval. Others: over all pairs, the area under the
    ROC curve, with the normal interval of its placement values (DeLong et al. 1988).
    """
    if paired:
        n, share = len(before), float(((after > before) + 0.5 * (after == before)).mean())
        return share, wilson_interval(share * n, n, level)
    above = _placements(after, before)
    below = 1 - _placements(before, after)
    area = float(above.mean())
    variance = sum(float(part.var(ddof=1)) / len(part) if len(part) > 1 else 0.25 for part in (above, below))
    half = float(norm.ppf((1 + level) / 2)) * math.sqrt(variance)
    return area, (max(0.0, area - half), min(1.0, area + half))


def _placements(values: Values, others: Values) -> Values:
    """For each value the share of the others below it, ties half."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2.0 * len(others))

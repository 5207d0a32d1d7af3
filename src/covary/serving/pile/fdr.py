"""Benjamini-Hochberg over a pile that no memory holds: conformal p-values are few, so counting them is exact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

# Nobody is flagged: no p-value is as small.
NONE = -1.0


def counts_of(p: Float[np.ndarray, " n"]) -> list[tuple[float, int]]:
    """Every distinct p-value and how often it occurs; at most a few times the calibration set in number."""
    values, counts = np.unique(p, return_counts=True)
    return list(zip(values.tolist(), counts.tolist(), strict=True))


def merged(parts: Iterable[Iterable[tuple[float, int]]]) -> Counter[float]:
    """Counts of several partitions together."""
    total: Counter[float] = Counter()
    for part in parts:
        for value, count in part:
            total[value] += count
    return total


def threshold(counts: Counter[float], rate: float) -> float:
    """The largest p-value that Benjamini-Hochberg at `rate` rejects over the whole pile, `NONE` where it rejects none.

    With c(v) the number of p-values <= v out of n, the largest v with v <= rate c(v) / n. Of equal p-values the last
    in order is the easiest to reject, so this is max{p_(i) : p_(i) <= i rate / n} (Benjamini and Hochberg 1995) on
    n sorted p-values, to the bit (see `calibration.benjamini_hochberg`).
    """
    n, below, found = sum(counts.values()), 0, NONE
    for value in sorted(counts):
        below += counts[value]
        if value <= rate * below / n:
            found = value
    return found

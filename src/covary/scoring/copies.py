"""Trusted inputs met again: a query closer to one of them than they are to each other is a copy, and no anomaly.

Distances of a score are two-sided, since an anomaly may lie too close to the middle of the trusted inputs as well as
too far from it. A copy of a trusted input is neither: it is explained by that input alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from covary.scoring.rows import Rows

# Rows closer than this, in units of their length, are one input given twice.
SAME = 1e-6
# Queries, and trusted rows, whose products are taken at once.
QUERIES, TRUSTED = 256, 4096
# Trusted inputs whose nearest neighbours are looked for.
LOOKED_AT = 2000


@dataclass(frozen=True)
class Found:
    """The trusted input nearest to each query.

    Attributes:
        of: its name, (n,).
        distance: |g - g_i| / max(|g|, |g_i|) over the functional rows of all layers, >= 0; inf where no trusted input
            has the query's answer.
        copies: closer than any two trusted inputs are to each other, (n,).
    """

    of: list[str]
    distance: Float[np.ndarray, " n"]
    copies: Bool[np.ndarray, " n"]


class Copies:
    """Finds queries that are copies of trusted inputs: same answer, and nearer than trusted ones are to each other.

    A clean query exchangeable with n trusted inputs is taken for a copy with probability 1 / (n + 1) at most, about.
    Trusted inputs given twice do not count as each other's neighbours.
    """

    def fit(self, trusted: Rows) -> Copies:
        """Learns how close trusted inputs of one answer are to each other."""
        self.trusted_, self.squares_ = trusted, _squares(trusted)
        n = len(trusted)
        looked_at = np.unique(np.linspace(0, n - 1, min(n, LOOKED_AT)).astype(int))
        distances = self._nearest(trusted.take(looked_at), looked_at)[1]
        apart = distances[(distances > SAME) & np.isfinite(distances)]
        self.limit_ = float(apart.min()) if len(apart) else 0.0
        return self

    def find(self, rows: Rows) -> Found:
        """The nearest trusted input of every query, and whether the query is a copy of it."""
        nearest, distance = self._nearest(rows)
        pairs = zip(nearest.tolist(), distance.tolist(), strict=True)
        names = [str(self.trusted_.ids[i]) if np.isfinite(d) else "" for i, d in pairs]
        return Found(names, distance, distance < self.limit_)

    def _nearest(
        self, rows: Rows, themselves: Int[np.ndarray, " n"] | None = None
    ) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Position and distance of the nearest trusted input; of trusted inputs `themselves`, of another one."""
        n, squares = len(rows), _squares(rows)
        best, nearest = np.full(n, np.inf), np.zeros(n, np.int64)
        for q in range(0, n, QUERIES):
            some = slice(q, min(q + QUERIES, n))
            for t in range(0, len(self.trusted_), TRUSTED):
                theirs = slice(t, min(t + TRUSTED, len(self.trusted_)))
                products = sum(
                    np.asarray(own[some], np.float32) @ np.asarray(self.trusted_.functional[layer][theirs]).T
                    for layer, own in rows.functional.items()
                )
                one, other = squares[some, None], self.squares_[None, theirs]
                with np.errstate(divide="ignore", invalid="ignore"):
                    relative = (one + other - 2.0 * products) / np.maximum(one, other)
                relative[rows.predicted[some, None] != self.trusted_.predicted[None, theirs]] = np.inf
                relative[~np.isfinite(relative)] = np.inf
                if themselves is not None:
                    relative[themselves[some, None] == np.arange(t, theirs.stop)[None]] = np.inf
                at = relative.argmin(1)
                least = relative[np.arange(len(at)), at]
                closer = least < best[some]
                best[some] = np.where(closer, least, best[some])
                nearest[some] = np.where(closer, at + t, nearest[some])
        return nearest, np.where(np.isfinite(best), self._distances(rows, nearest), np.inf)

    def _distances(self, rows: Rows, nearest: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        # Once more without the products, whose rounding would hide how close a copy is.
        theirs = self.trusted_.take(nearest)
        apart = sum(
            np.square(np.asarray(own, np.float64) - theirs.functional[layer]).sum(1)
            for layer, own in rows.functional.items()
        )
        return np.sqrt(apart / np.maximum(np.maximum(_squares(rows), _squares(theirs)), np.finfo(float).tiny))


def _squares(rows: Rows) -> Float[np.ndarray, " n"]:
    total = np.zeros(len(rows))
    for own in rows.functional.values():
        for start in range(0, len(total), TRUSTED):
            total[start : start + TRUSTED] += np.square(own[start : start + TRUSTED], dtype=np.float64).sum(1)
    return total

"""Trusted inputs met again: a query closer to one of them than they are to each other is a copy, and no anomaly.

Distances of a score are two-sided, since an anomaly may lie too close to the middle of the trusted inputs as well as
too far from it. A copy of a trusted input is neither: it is explained by that input alone. It has the gradients and the
activations of that input. One of the two is not enough: triggered inputs may share the gradients of a trusted input
that the network gets wrong, and differ in what they show.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from covary.scoring.rows import Rows

# Rows that a copy shares with its trusted input; by the first that there are the nearest one is found.
KINDS = ("functional", "latent")
# Rows closer than this, in units of their length, are one input given twice.
SAME = 1e-6
# One kind of rows alone tells a copy only where they are the same but for rounding.
ALONE = 1e-4
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
        copies: closer than any two trusted inputs are to each other, by functional and by latent rows, (n,).
    """

    of: list[str]
    distance: Float[np.ndarray, " n"]
    copies: Bool[np.ndarray, " n"]


class Copies:
    """Finds queries that are copies of trusted inputs: same answer, and nearer than trusted ones are to each other.

    A clean query exchangeable with n trusted inputs is taken for a copy with probability 1 / (n + 1) at most, about.
    Trusted inputs given twice do not count as each other's neighbours.

    Attributes:
        limits_: kind of rows -> how close the two trusted inputs of one answer are that lie closest to each other; of
            rows without gradients at most 1e-4.
    """

    def fit(self, trusted: Rows) -> Copies:
        """Learns how close trusted inputs of one answer are to each other."""
        self.trusted_ = trusted
        kinds = self.kinds_ = [kind for kind in KINDS if getattr(trusted, kind)]
        self.squares_ = {kind: _squares(trusted, kind) for kind in kinds}
        n = len(trusted)
        looked_at = np.unique(np.linspace(0, n - 1, min(n, LOOKED_AT)).astype(int))
        self.limits_: dict[str, float] = {}
        for kind in kinds:
            distances = self._nearest(trusted.take(looked_at), kind, looked_at)[1]
            apart = distances[(distances > SAME) & np.isfinite(distances)]
            self.limits_[kind] = float(apart.min()) if len(apart) else 0.0
        if kinds == ["latent"]:
            self.limits_["latent"] = min(self.limits_["latent"], ALONE)
        return self

    def find(self, rows: Rows) -> Found:
        """The trusted input nearest to every query by functional rows, or by latent ones where there are no others."""
        first = self.kinds_[0]
        nearest, distance = self._nearest(rows, first)
        pairs = zip(nearest.tolist(), distance.tolist(), strict=True)
        names = [str(self.trusted_.ids[i]) if np.isfinite(d) else "" for i, d in pairs]
        copies = distance < self.limits_[first]
        for kind in self.kinds_[1:]:
            copies &= self._distances(rows, kind, nearest) < self.limits_[kind]
        return Found(names, distance, copies)

    def _nearest(
        self, rows: Rows, kind: str, themselves: Int[np.ndarray, " n"] | None = None
    ) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Position and distance of the nearest trusted input; of trusted inputs `themselves`, of another one."""
        n, squares = len(rows), _squares(rows, kind)
        theirs_by_layer = getattr(self.trusted_, kind)
        best, nearest = np.full(n, np.inf), np.zeros(n, np.int64)
        for q in range(0, n, QUERIES):
            some = slice(q, min(q + QUERIES, n))
            for t in range(0, len(self.trusted_), TRUSTED):
                theirs = slice(t, min(t + TRUSTED, len(self.trusted_)))
                products = sum(
                    np.asarray(own[some], np.float32) @ np.asarray(theirs_by_layer[layer][theirs], np.float32).T
                    for layer, own in getattr(rows, kind).items()
                )
                one, other = squares[some, None], self.squares_[kind][None, theirs]
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
        return nearest, np.where(np.isfinite(best), self._distances(rows, kind, nearest), np.inf)

    def _distances(self, rows: Rows, kind: str, nearest: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        # Once more without the products, whose rounding would hide how close a copy is.
        theirs = self.trusted_.take(nearest)
        apart = sum(
            np.square(np.asarray(own, np.float64) - getattr(theirs, kind)[layer]).sum(1)
            for layer, own in getattr(rows, kind).items()
        )
        larger = np.maximum(_squares(rows, kind), _squares(theirs, kind))
        return np.sqrt(apart / np.maximum(larger, np.finfo(float).tiny))


def _squares(rows: Rows, kind: str) -> Float[np.ndarray, " n"]:
    total = np.zeros(len(rows))
    for own in getattr(rows, kind).values():
        for start in range(0, len(total), TRUSTED):
            total[start : start + TRUSTED] += np.square(own[start : start + TRUSTED], dtype=np.float64).sum(1)
    return total

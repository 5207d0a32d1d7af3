"""Online smoothed ranks: where each score of a stream falls among all that is trusted and all that came before."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covary.errors import CovaryError

# Scores are kept as counts on a fixed grid of 2^20 float keys (11 bits of mantissa, steps of 0.05 %): memory does not
# grow with the stream, and ranks with ties broken at random are exact for any score, also for one on a grid.
SIDE = 1024


class OnlineRanks:
    """Ranks each score, ties broken at random, among a bag of scores that it then joins.

    p_t = (#{i < t: s_i > s_t} + U_t #{i <= t: s_i = s_t}) / t, with U_t uniform in (0, 1]. If the bag and the stream
    are exchangeable, the p_t are independent and uniform (Vovk, Gammerman and Shafer 2005, Proposition 2.8); ranks
    among a fixed calibration set alone are not independent.

    Args:
        first: scores in the bag before the stream begins, in any order.
        seed: of the U_t.
    """

    def __init__(self, first: Float[np.ndarray, " n"], seed: int = 0) -> None:
        self._fine = np.zeros((SIDE, SIDE), np.int64)
        self._coarse = np.zeros(SIDE, np.int64)
        self._random = np.random.default_rng(seed)
        high, low = _keys(first)
        np.add.at(self._fine, (high, low), 1)
        np.add.at(self._coarse, high, 1)
        self.size = len(first)

    def __call__(self, scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Smoothed ranks of the next scores of the stream, in (0, 1]; smaller = more anomalous.

        Raises:
            CovaryError: a score that is not a number.
        """
        highs, lows = _keys(scores)
        lots = 1.0 - self._random.random(len(scores))
        p = np.empty(len(scores))
        fine, coarse = self._fine, self._coarse
        for i, (high, low, lot) in enumerate(zip(highs.tolist(), lows.tolist(), lots.tolist(), strict=True)):
            row = fine[high]
            row[low] += 1
            coarse[high] += 1
            self.size += 1
            above = coarse[high + 1 :].sum() + row[low + 1 :].sum()
            p[i] = (above + lot * row[low]) / self.size
        return p


def _keys(scores: Float[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """Keys in the order of the scores, as two numbers below `SIDE` each."""
    if np.isnan(scores).any():
        raise CovaryError("a score of the stream is not a number", "finite scores or infinity")
    with np.errstate(over="ignore"):  # beyond float32 is as odd as infinity
        bits = (np.asarray(scores).astype(np.float32) + np.float32(0)).view(np.uint32)
    # Negative floats sort backwards by their bits.
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)) >> 12
    return (ordered // SIDE).astype(np.int64), (ordered % SIDE).astype(np.int64)

"""Bets against uniform ranks: each multiplies its stake by a density on [0, 1] chosen before the rank is seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

# What a plan supposes: from the onset on, this share of inputs ...
SHARES = (0.003, 0.01, 0.03, 0.1, 0.3, 0.9)
# ... comes from above all but this share of the trusted ones.
LEVELS = (0.0001, 0.001, 0.01, 0.05, 0.3)
# Onsets: the start of the stream, and 64, 128, 256, ...; the start has this prior weight.
FIRST_ONSET, ONSETS, FROM_START = 64, 32, 1 / 3
# The simple jumper changes its mind with this probability a step.
JUMP = 0.01
SLOPES = (-1.0, 0.0, 1.0)


@dataclass(frozen=True)
class BettingPlan:
    """What one stake supposes, and its share of the capital on all plans.

    Attributes:
        onset: inputs of the stream before things changed.
        share: of the inputs since then that are odd, in (0, 1).
        level: they score above all but this share of what was in the bag before, in (0, 1).
        weight: share of the plans' capital, in [0, 1].
    """

    onset: int
    share: float
    level: float
    weight: float


class PlannedBets:
    """A mixture over plans (a, q, t0): since input t0 a share a of inputs scores above the (1 - q)-quantile of the bag.

    Ranks are taken among a bag that the odd inputs join, so u inputs after the onset, with b in the bag before it, a
    plan expects its odd ones within w = r + (1 - r) q, where r = a u / (b + u); it bets the density m / w there and
    (1 - m) / (1 - w) elsewhere, m = a + (1 - a) q. Before its onset a plan keeps its stake.

    Args:
        bag: scores in the bag before the stream.
    """

    def __init__(self, bag: int) -> None:
        self.bag, self.time = bag, 0
        later = 1.0 / np.arange(2, ONSETS + 2)
        prior = np.concatenate([[FROM_START], (1 - FROM_START) * later / later.sum()])
        onsets = np.concatenate([[0], FIRST_ONSET * 2.0 ** np.arange(ONSETS)])
        grid = np.meshgrid(onsets, SHARES, LEVELS, indexing="ij")
        self.onset, self.share, self.level = (axis.ravel() for axis in grid)
        self._mass = self.share + (1 - self.share) * self.level
        self.log_stakes = np.repeat(np.log(prior / (len(SHARES) * len(LEVELS))), len(SHARES) * len(LEVELS))

    def __call__(self, p: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Logarithm of the capital after each of the next ranks, from a capital of 1 at the start."""
        times = self.time + 1 + np.arange(len(p))
        active = int(np.searchsorted(self.onset, times[-1], side="left")) if len(p) else 0
        onset, share, level, mass = (v[:active] for v in (self.onset, self.share, self.level, self._mass))
        since = times[:, None] - onset
        bag_before = self.bag + onset
        among = np.maximum(since, 0) / (bag_before + np.maximum(since, 1)) * share
        width = np.minimum(among + (1 - among) * level, mass)  # never bets on fewer odd inputs than the bag shows
        inside = p[:, None] <= width
        bets = np.where(inside, np.log(mass / width), np.log1p(-mass) - np.log1p(-width))
        growth = np.cumsum(np.where(since > 0, bets, 0.0), axis=0)
        stakes = self.log_stakes[:active] + growth
        resting = self.log_stakes[active:]
        capital = np.logaddexp(_log_sum(stakes), _log_sum(resting[None])[0])
        if len(p):
            self.log_stakes[:active] = stakes[-1]
            self.time = int(times[-1])
        return capital

    def plans(self, least: float = 0.01) -> list[BettingPlan]:
        """The plans with at least that share of the plans' capital, by falling weight; those not begun left out."""
        begun = self.onset < max(self.time, 1)
        weights = np.exp(self.log_stakes - _log_sum(self.log_stakes[None])[0]) * begun
        order = np.argsort(-weights, kind="stable")
        return [
            BettingPlan(int(self.onset[i]), float(self.share[i]), float(self.level[i]), float(weights[i]))
            for i in order[weights[order] >= least]
        ]


class Jumper:
    """The simple jumper of Vovk et al. (2021, arXiv 2102.10439, Algorithm 1): bets 1 + e (p - 1/2), e in {-1, 0, 1}.

    It sees any lasting change, also towards less anomalous scores.

    Attributes:
        towards_less_odd: whether its capital, when it was largest, lay on ranks above one half.
    """

    def __init__(self) -> None:
        self._stakes = [1 / len(SLOPES)] * len(SLOPES)
        self._log_scale = self._peak = 0.0
        self.towards_less_odd = False

    def __call__(self, p: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Logarithm of the capital after each of the next ranks, from a capital of 1 at the start."""
        down, flat, up = self._stakes
        capital = np.empty(len(p))
        for i, rank in enumerate(p.tolist()):
            moved = JUMP / len(SLOPES) * (down + flat + up)
            slope = rank - 0.5
            down = ((1 - JUMP) * down + moved) * (1 - slope)
            flat = (1 - JUMP) * flat + moved
            up = ((1 - JUMP) * up + moved) * (1 + slope)
            total = down + flat + up
            capital[i] = self._log_scale + math.log(total)
            if capital[i] > self._peak:
                # Later the bag holds what changed, and the stakes even out again.
                self._peak, self.towards_less_odd = float(capital[i]), up > down
            if not 1e-100 < total < 1e100:
                down, flat, up = down / total, flat / total, up / total
                self._log_scale += math.log(total)
        self._stakes = [down, flat, up]
        return capital


def _log_sum(values: Float[np.ndarray, "n m"]) -> Float[np.ndarray, " n"]:
    """Logarithm of the sum of exponentials of each row; -inf for empty ones."""
    if values.shape[1] == 0:
        return np.full(len(values), -np.inf)
    most = values.max(axis=1)
    return most + np.log(np.exp(values - most[:, None]).sum(axis=1))

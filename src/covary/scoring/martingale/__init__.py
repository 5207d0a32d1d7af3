"""A stream alarm that may be looked at after every input: the conformal test martingale.

`ConformalMartingale` tests whether a stream's scores are exchangeable with the calibration set's; `account` says in
words what the capital has grown on: few very odd inputs, or many slightly odd ones.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from covary.errors import CovaryError
from covary.scoring.martingale.account import Account, account_of
from covary.scoring.martingale.bets import Jumper, PlannedBets
from covary.scoring.martingale.ranks import OnlineRanks

__all__ = ["Account", "ConformalMartingale", "account_of"]

# Share of the starting capital on plans; the rest is the jumper's.
ON_PLANS = 0.75
# Ranks are bet on in blocks of this many, which changes memory and nothing else.
BLOCK = 256


class ConformalMartingale:
    """Capital of a gambler who bets against "these inputs are exchangeable with the calibration set".

    M_0 = 1 and, if the hypothesis holds, E[M_t | past] = M_(t-1); so P(sup_t M_t >= 1 / level) <= level (Ville 1939),
    over all time and however often one looks. The bets are a mixture of `PlannedBets` and the `Jumper`, on
    `OnlineRanks`. Each start on the same calibration set may alarm falsely with that probability.

    Args:
        calibration: scores of the calibration samples, (n,); may be empty: then it tests the stream against itself.
        level: bound on the probability that the alarm is ever raised falsely, in (0, 1).
        seed: of the lots that break ties.

    Attributes:
        n: inputs of the stream so far.
        log_capital: natural logarithm of M_n.
        log_peak: the largest it ever was.
        alarm_at: the input (counted from 1) at which the alarm was raised; None while it was not.
    """

    def __init__(self, calibration: Float[np.ndarray, " n"], level: float = 0.01, seed: int = 0) -> None:
        if not 0 < level < 1:
            raise CovaryError(f"a level of {level} for the stream alarm", "a number between 0 and 1")
        self.level, self.calibration = level, len(calibration)
        self._ranks = OnlineRanks(calibration, seed)
        self._plans, self._jumper = PlannedBets(len(calibration)), Jumper()
        self.n, self.log_capital, self.log_peak = 0, 0.0, 0.0
        self.alarm_at: int | None = None
        self._on_plans = self._on_jumper = 0.0
        self._account_at_alarm: Account | None = None

    def update(self, scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Takes the next scores of the stream, in order; log M after each of them."""
        parts = [self._block(scores[start : start + BLOCK]) for start in range(0, len(scores), BLOCK)]
        return np.concatenate(parts) if parts else np.empty(0)

    def _block(self, scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        p = self._ranks(scores)
        plans, jumper = self._plans(p), self._jumper(p)
        path = np.logaddexp(math.log(ON_PLANS) + plans, math.log(1 - ON_PLANS) + jumper)
        raised = np.flatnonzero(path >= -math.log(self.level)) if self.alarm_at is None else np.empty(0, np.int64)
        if len(raised):
            self.alarm_at = self.n + int(raised[0]) + 1
        self.n += len(scores)
        self.log_capital, self.log_peak = float(path[-1]), max(self.log_peak, float(path.max()))
        self._on_plans, self._on_jumper = float(plans[-1]), float(jumper[-1])
        if len(raised):
            self._account_at_alarm = self._account()
        return path

    @property
    def alarmed(self) -> bool:
        """Whether the alarm was ever raised."""
        return self.alarm_at is not None

    def account(self) -> Account:
        """What the capital has grown on, in words; once the bag has taken a change in, what it was at the alarm."""
        now = self._account()
        if now.kind == "nothing" and self._account_at_alarm is not None:
            return replace(self._account_at_alarm, text=f"{self._account_at_alarm.text} Nothing new has come since.")
        return now

    def _account(self) -> Account:
        return account_of(
            self._plans.plans(),
            n=self.n,
            log_capital=self.log_capital,
            level=self.level,
            alarm_at=self.alarm_at,
            on_plans=self._on_plans - self._on_jumper > 0,
            less_odd=self._jumper.towards_less_odd,
        )

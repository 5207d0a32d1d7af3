"""What the stream alarm has grown on, in words: drift is many slightly odd inputs, an attack few very odd ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from covary.scoring.martingale.bets import BettingPlan

Kind = Literal["nothing", "few very odd", "many slightly odd", "many very odd", "less odd"]

# Capital below this is told as nothing: a stream of trusted inputs shows it at some time with probability 1/10 at most.
TELLING = 10.0
# A share of odd inputs above MANY is many; above all but VERY of the trusted ones is very odd.
MANY, VERY = 0.1, 0.02

READINGS: dict[Kind, str] = {
    "nothing": "",
    "few very odd": "Few very odd inputs among ordinary ones are what an attack looks like, or a few broken inputs: "
    "look at the flagged ones.",
    "many slightly odd": "Many slightly odd inputs are what drift looks like (another camera, season or group of "
    "users): if they are legitimate, trust some of them and fit again.",
    "many very odd": "Many very odd inputs are what a change of preparation or a broken source looks like: compare a "
    "raw input with a trusted one.",
    "less odd": "Inputs are less odd than the calibration set: copies of easy inputs look like this, and inputs that "
    "the detector was fitted on.",
}


@dataclass(frozen=True)
class Account:
    """The stream alarm's reading of a stream.

    Attributes:
        kind: what kind of departure earned the capital, if any did.
        alarm: whether the alarm is, or was ever, raised.
        share: of the inputs since the onset that are odd, in (0, 1); None where it is not told.
        level: they score above all but this share of trusted inputs; None where it is not told.
        since: input at which it seems to have begun; None where it is not told.
        text: the same in sentences.
    """

    kind: Kind
    alarm: bool
    share: float | None
    level: float | None
    since: int | None
    text: str

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def account_of(
    plans: Sequence[BettingPlan],
    *,
    n: int,
    log_capital: float,
    level: float,
    alarm_at: int | None,
    on_plans: bool,
    less_odd: bool,
) -> Account:
    """The account of a stream of n inputs; `plans` are those with most capital, the first one leading.

    Args:
        log_capital: of all bets.
        alarm_at: input at which the alarm was raised, if it was.
        on_plans: whether the plans earned more than the jumper.
        less_odd: whether the jumper bets on ranks above one half.
    """
    alarm = alarm_at is not None
    head = f"Alarm raised at input {alarm_at:,}. " if alarm_at is not None else ""
    if log_capital < math.log(TELLING):
        text = f"{head}{n:,} inputs compared with the calibration set. Nothing speaks against them."
        return Account("nothing", alarm, None, None, None, text)
    if not alarm:
        head = (
            f"Something may be building up: evidence of {_times(log_capital)} to 1 after {n:,} inputs, alarm at "
            f"{1 / level:,.0f} to 1. "
        )
    if not on_plans or not plans:
        kind: Kind = "less odd" if less_odd else "many slightly odd"
        return Account(kind, alarm, None, None, None, head + READINGS[kind])
    lead = plans[0]
    kind = "many very odd" if lead.share > MANY else "few very odd"
    if lead.level > VERY:
        kind = "many slightly odd"
    since = "since the start" if lead.onset == 0 else f"since about input {lead.onset:,}"
    what = (
        f"About {100 * lead.share:.2g} % of the inputs {since} score above all but {100 * lead.level:.2g} % of the "
        "trusted ones. "
    )
    return Account(kind, alarm, lead.share, lead.level, lead.onset, head + what + READINGS[kind])


def _times(log_capital: float) -> str:
    return f"{math.exp(log_capital):,.0f}" if log_capital < math.log(1e6) else f"10^{log_capital / math.log(10):.0f}"

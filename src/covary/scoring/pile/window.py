"""A window over a stream: pile evidence on its latest inputs, beside the verdict on each input alone.

What one input hides may show on many; a stream is a pile without an end. The latest inputs are looked at together with
the calibration samples, so that p-values hold as they do for a pile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from covary.errors import CovaryError
from covary.scoring.calibration.conformal import conformal_p, resolve
from covary.scoring.copies import Found
from covary.scoring.judge import Judge
from covary.scoring.pile.second_moment import SecondMoment
from covary.scoring.pile.together import Blocks, PileEvidence, Together, can_look
from covary.scoring.rows import Rows
from covary.scoring.scores.combined import Combined, Measured

Values = Float[np.ndarray, " n"]

SIZE = 1000
# Directions are learned anew once so many inputs have come; a batch of more is always in them itself.
RENEWED = 32


@dataclass(frozen=True)
class Seen:
    """What the window shows on some inputs, by the first split; see `Verdicts` for each."""

    score: Values
    p_value: Values
    flagged: Bool[np.ndarray, " n"]
    parts: dict[str, Values]


class Window:
    """Pile evidence on the latest inputs of a stream.

    Newcomers enter the window, the oldest leave it, and the newcomers are judged with what window and calibration
    samples show together. A clean newcomer, exchangeable with calibration samples, gets p <= a with probability a at
    most, whatever else is in the window; the p-values of one stream depend on each other. Between two renewals of the
    directions newcomers are not among what was learned from while calibration samples are, which errs on the side of
    fewer flags.

    Of a judge with cross-conformal folds the first split judges, by its own calibration samples, as the stream alarm
    does.

    Args:
        judge: fitted, with a score that has parts.
        size: inputs in the window, at least 1.

    Attributes:
        n: inputs in the window now.
        fpr_in_force: the judge's rate, or the smallest that the first split's calibration samples resolve.

    Raises:
        CovaryError: a score without parts, or a window of no inputs.
    """

    def __init__(self, judge: Judge, size: int = SIZE) -> None:
        if size < 1:
            raise CovaryError(f"a window of {size} inputs", "at least 1")
        score = judge.scores_[0]
        if not can_look(judge) or not isinstance(score, Combined):
            raise CovaryError(f"a window by the score {judge.score!r}", "the score combined", "leave window= away")
        dealt = judge.dealt_[0]
        self.size, self.score, self._copies = size, score, judge.copies_
        self._evidence = PileEvidence().fit(score, dealt)
        self.fpr_in_force = resolve(judge.fpr, len(dealt.calibration)).fpr
        self._latest: dict[str, Float[np.ndarray, "m d"]] = {}
        self._moments: dict[str, SecondMoment] = {}
        self._since = self._turned = 0
        self._together: Together | None = None
        self.n = 0

    def __call__(self, rows: Rows, measured: Measured | None = None, found: Found | None = None) -> Seen:
        """Takes newcomers in and judges them; what is a copy of a trusted input ranks below everything.

        Args:
            rows: of the newcomers.
            measured: by the first split's score, where that is known already.
            found: which of them are copies, where that is known already.
        """
        measured = self.score.measure(rows) if measured is None else measured
        copies = (self._copies.find(rows) if found is None else found).copies
        numbers = self._evidence.numbers(rows, measured)
        self._enter(numbers, len(rows))
        if self._together is None or self._since >= RENEWED:
            self._renew()
        assert self._together is not None
        joined = self._together.join(measured, numbers)
        score = np.where(copies, np.minimum(joined.score, self._scores.min()), joined.score)
        p = conformal_p(score, self._scores)
        return Seen(score, p, p <= self.fpr_in_force * (1 + 1e-9), joined.parts)

    def _enter(self, numbers: Blocks, n: int) -> None:
        for view in self._evidence.views_:
            new = self._evidence.whitened(view, numbers)[-self.size :]
            whole = np.concatenate([self._latest[view], new]) if view in self._latest else new
            leaving, staying = whole[: max(len(whole) - self.size, 0)], whole[-self.size :]
            self._latest[view] = staying
            if view not in self._moments or self._turned >= self.size:
                # From the samples themselves every time all have changed: differences gather rounding.
                self._moments[view] = SecondMoment.of(staying)
            else:
                moment = self._moments[view] + SecondMoment.of(new)
                self._moments[view] = moment - SecondMoment.of(leaving) if len(leaving) else moment
            self.n = len(staying)
        self._turned = n if self._turned >= self.size else self._turned + n
        self._since += n

    def _renew(self) -> None:
        known = self._evidence
        both = {view: moment + self._moments[view] for view, moment in known.calibration_moments_.items()}
        self._together = Together(known, both)
        self._scores = self._together.join(known.calibration_, known.calibration_numbers_).score
        self._since = 0


def window_of(judge: Judge, size: int) -> Window | None:
    """A window of that many inputs; None for 0, or for a score that looks at no piles."""
    return Window(judge, size) if size and can_look(judge) else None

"""A pile judged together: what an input shows alone joined with what the pile itself shows.

Two passes over a pile's rows. The first adds up second moments (`sums`), which partitions may do apart; the second
judges as ever, by a judge that has looked at the pile (`look`). Calibration samples enter the moments like inputs, so
their p-values hold as those of one input alone do; cross-conformal folds look at the pile one by one, each with its own
calibration samples.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri_exp

from covary.errors import CovaryError
from covary.scoring.judge import Dealt, Judge
from covary.scoring.kinds import Kinds
from covary.scoring.pile.raw_numbers import RAW, RawNumbers
from covary.scoring.pile.second_moment import Directions, SecondMoment, Whitening
from covary.scoring.rows import Rows
from covary.scoring.scores.among_like import OddAmongLike
from covary.scoring.scores.combined import Combined, Measured
from covary.scoring.scores.joined import joined
from covary.scoring.scores.tails import Tail

Numbers = Float[np.ndarray, "n d"]
# By kind of evidence.
Blocks = Mapping[str, Float[np.ndarray, "n _"]]
Sums = list[dict[str, SecondMoment]]

OF_PROMPTS = ("prompt functional", "prompt latent", "prompt confidence")
# view of the pile -> the kinds of numbers that it looks at; kinds that rows lack are left out.
VIEWS: dict[str, tuple[str, ...]] = {
    "pile": ("functional", "latent", "confidence", *OF_PROMPTS, *RAW),
    "pile functional": ("functional",),
    "pile latent": ("latent",),
    "pile prompt": OF_PROMPTS,
    "pile features": ("features",),
    "pile states": ("states",),
    "pile prompt states": ("prompt states",),
}
# Rows taken through a view together.
AT_ONCE = 4096

STATEMENT = (
    "Judged together: scores hold for this pile alone, since each depends on all others; calibration samples were "
    "looked at with the pile, so p-values hold as those of one input alone do."
)


class PileEvidence:
    """Views of a pile on one split's numbers; fitted on trusted rows, then told the sums of a pile."""

    def fit(self, score: Combined, dealt: Dealt) -> PileEvidence:
        """Learns standardisation and whitening of every view from fit and reference samples, by held-out numbers.

        Reference samples have held-out numbers by a score that swaps both roles. Whitening some 300 numbers is what
        needs samples most: by fit samples alone chance directions hide a pile's own. Calibration samples are measured
        once, for every pile to come, and teach nothing.
        """
        self.score_, self.n_fit_ = score, len(dealt.fit)
        both = [score, Combined(score.at_equal_confidence).fit(dealt.fit, dealt.reference)]
        rows = Rows.concatenate([dealt.fit, dealt.reference])
        held = {
            kind: np.concatenate([own.parts_[kind].fit_residuals_ for own in both])
            for kind in score.parts_
            if kind not in RAW
        }
        self.raw_ = {kind: RawNumbers(kind).fit(rows) for kind, of in RAW.items() if of(rows) is not None}
        held |= {kind: raw.held_ for kind, raw in self.raw_.items()}
        if score.at_equal_confidence:
            self.margins_ = np.concatenate([own.fit_margins_ for own in both])
        chosen = {view: [kind for kind in kinds if kind in held] for view, kinds in VIEWS.items()}
        self.views_ = {view: kinds for view, kinds in chosen.items() if kinds}
        self.whitenings_ = {view: Whitening().fit(_concatenated(held, kinds)) for view, kinds in self.views_.items()}
        self.calibration_ = score.measure(dealt.calibration)
        self.calibration_numbers_ = self.numbers(dealt.calibration, self.calibration_)
        self.calibration_moments_ = self.moments(self.calibration_numbers_)
        return self

    def numbers(self, rows: Rows, measured: Measured) -> Blocks:
        """Numbers of each kind, standardised per class, (n, d)."""
        own = {kind: found for kind, found in measured.residuals.items() if kind not in RAW}
        return own | {kind: raw(rows) for kind, raw in self.raw_.items()}

    def whitened(self, view: str, numbers: Blocks) -> Numbers:
        """What a view looks at."""
        return self.whitenings_[view](_concatenated(numbers, self.views_[view]))

    def moments(self, numbers: Blocks) -> dict[str, SecondMoment]:
        """Second moments of some inputs' numbers, one a view."""
        return {view: SecondMoment.of(self.whitened(view, numbers)) for view in self.views_}


class Together:
    """The score of one split after a look at a pile: cubic norm of evidence alone, survival and every view.

    Args:
        evidence: the split's views.
        moments: of its calibration samples and the pile together, one a view.
    """

    def __init__(self, evidence: PileEvidence, moments: Mapping[str, SecondMoment]) -> None:
        self.evidence = evidence
        self.directions_ = {view: Directions(moment) for view, moment in moments.items()}
        self.tails_ = {
            view: Tail().fit(directions.evidence(evidence.whitenings_[view].held_))
            for view, directions in self.directions_.items()
        }
        if evidence.score_.at_equal_confidence:
            self.likes_ = {view: OddAmongLike().fit(own, evidence.margins_) for view, own in self._held_views().items()}

    def _held_views(self) -> dict[str, Float[np.ndarray, " n"]]:
        """Held-out values of fit and reference samples by every view, in standard deviations."""
        held = {view: whitening.held_ for view, whitening in self.evidence.whitenings_.items()}
        return {
            view: -ndtri_exp(self.tails_[view].log_p(directions.evidence(held[view])))
            for view, directions in self.directions_.items()
        }

    def fit_parts(self) -> dict[str, Float[np.ndarray, " n"]]:
        """Those of the score alone, and of every view without confidence."""
        views = {
            view: values[: self.evidence.n_fit_]
            for view, values in self._held_views().items()
            if not any("confidence" in kind for kind in self.evidence.views_[view])
        }
        return {**self.evidence.score_.fit_parts(), **views}

    def __getattr__(self, name: str) -> Any:
        if name == "evidence":
            raise AttributeError(name)
        return getattr(self.evidence.score_, name)

    def fit(self, reference: Rows, fit: Rows) -> Together:
        """Nothing to learn: the pile is known."""
        return self

    def measure(self, rows: Rows) -> Measured:
        """Score, parts and residuals of inputs of the pile, or of the calibration samples beside it."""
        measured = self.evidence.score_.measure(rows)
        return self.join(measured, self.evidence.numbers(rows, measured))

    def join(self, measured: Measured, numbers: Blocks) -> Measured:
        """What inputs show alone, joined with what the pile shows on their numbers."""
        log_p = {
            view: self.tails_[view].log_p(directions.evidence(self.evidence.whitened(view, numbers)))
            for view, directions in self.directions_.items()
        }
        # In standard deviations, as the other parts are.
        seen = {view: -ndtri_exp(values) for view, values in log_p.items()}
        parts = {**measured.parts, **seen}
        if self.evidence.score_.at_equal_confidence:
            margins = measured.residuals["confidence"][:, self.evidence.score_.margin_column_]
            pieces = {**measured.evidence, **{view: self.likes_[view](own, margins) for view, own in seen.items()}}
        else:
            pieces = {**measured.evidence, **{view: -values for view, values in log_p.items()}}
        return Measured(joined(list(pieces.values())), parts, measured.residuals, pieces)


def can_look(judge: Judge) -> bool:
    """Whether the judge's score has parts that a pile can be looked at by."""
    return all(isinstance(score, Combined) for score in judge.scores_)


def views(judge: Judge) -> list[PileEvidence]:
    """The views of every split, made on first use."""
    if not can_look(judge):
        found = f"a pile judged together by the score {judge.score!r}"
        raise CovaryError(found, "the score combined", "pass together=False")
    if judge.views_ is None:
        pairs = zip(judge.scores_, judge.dealt_, strict=True)
        judge.views_ = [PileEvidence().fit(score, dealt) for score, dealt in pairs if isinstance(score, Combined)]
    made: list[PileEvidence] = judge.views_
    return made


def sums(judge: Judge, rows: Rows) -> Sums:
    """The first pass: second moments of some of a pile's rows, one entry a split; `added` puts those of parts together.

    Parts are added in one order, whoever made them, so that a pile over many machines gives the same bits.
    """
    found = []
    for evidence, score in zip(views(judge), judge.scores_, strict=True):
        chunks = (rows.take(np.arange(a, min(a + AT_ONCE, len(rows)))) for a in range(0, len(rows), AT_ONCE))
        numbers = (evidence.numbers(chunk, score.measure(chunk)) for chunk in chunks)
        found.append(_added([evidence.moments(own) for own in numbers]))
    return found


def added(parts: Iterable[Sums]) -> Sums:
    """Sums of all parts of a pile, in their order."""
    return [_added(list(own)) for own in zip(*parts, strict=True)]


def look(judge: Judge, pile: Sums) -> Judge:
    """The judge after a look at a pile of which `pile` are the sums; good for that pile alone."""
    seen = copy.copy(judge)
    folds = judge.calibration_folds if judge.every_fold_ is None else judge.every_fold_
    seen.scores_, scores = [], np.empty(len(folds))
    every: list[Measured] = []
    for k, (evidence, moments) in enumerate(zip(views(judge), pile, strict=True)):
        score = Together(evidence, _added([evidence.calibration_moments_, moments]))
        measured = score.join(evidence.calibration_, evidence.calibration_numbers_)
        seen.scores_.append(score)
        every.append(measured)
        # The scores of several splits stand in the order of the trusted set, those of one in the order of its role.
        calibrating = judge.splits_[k].calibration
        order = np.argsort(calibrating) if len(pile) > 1 else np.arange(len(measured.score))
        scores[folds == k] = measured.score[order]
        seen.parts = list(measured.parts)
    seen.calibration_scores = scores if judge.ranked_ is None else scores[judge.ranked_]
    seen.kinds_ = Kinds().fit(seen.scores_, every)
    seen.statements = [*judge.statements, STATEMENT]
    return seen


def judge_together(judge: Judge, rows: Rows) -> Judge:
    """Both passes' first half on rows that are all there: the judge after a look at them."""
    return look(judge, sums(judge, rows))


def _added(parts: Sequence[Mapping[str, SecondMoment]]) -> dict[str, SecondMoment]:
    return {view: SecondMoment.sum(part[view] for part in parts) for view in parts[0]}


def _concatenated(numbers: Blocks, kinds: Sequence[str]) -> Numbers:
    return np.concatenate([np.asarray(numbers[kind], np.float64) for kind in kinds], axis=1)

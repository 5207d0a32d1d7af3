"""From trusted rows to verdicts on fresh rows: roles, score and calibration under one roof, no network needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from covary.errors import CovaryError
from covary.scoring.calibration import conformal as calibrate
from covary.scoring.calibration import splits
from covary.scoring.copies import Copies, Found
from covary.scoring.kinds import Kinds
from covary.scoring.rows import Rows
from covary.scoring.scores import Score, score_named
from covary.scoring.scores.combined import Measured
from covary.scoring.verdict_table import VerdictTable

LEAST_TRUSTED = 20
# Twenty trusted inputs leave sixteen to a cross-conformal fold; odd classes deal those out 10 to 6 at worst.
LEAST_IN_ROLE = 6


@dataclass(frozen=True, repr=False)
class Verdicts(VerdictTable):
    """What covary says of n inputs.

    Attributes:
        ids: their names, in order.
        score: higher = more anomalous.
        p_value: chance that a clean input scores at least as high, (0, 1]; see `Judge` for when it holds.
        flagged: p_value <= the false-alarm rate in force, or Benjamini-Hochberg's choice.
        predicted: the network's own prediction.
        parts: each kind of evidence on its own (standardised log distance; higher = more anomalous).
        residuals: the standardised numbers behind the parts.
        copy_of: the trusted input that an input is a copy of (see `Copies`), else empty; a copy is never flagged.
        copy_distance: distance from that input; 0 = the same.
        stream_score: score by the first split alone, exchangeable with `Judge.stream_calibration`.
        kind: what kind of oddness stands out most, whether it is flagged or not (see `Kinds`); empty where the score
            or the network cannot tell.
        kind_p: chance at most that a clean input shows any kind as clearly, (0, 1].
        window_p: p-value by what the latest inputs of a stream show together (see `Window`); of a monitor alone.
    """

    ids: list[str]
    score: Float[np.ndarray, " n"]
    p_value: Float[np.ndarray, " n"]
    flagged: Bool[np.ndarray, " n"]
    predicted: Int[np.ndarray, " n"]
    parts: dict[str, Float[np.ndarray, " n"]] = field(default_factory=dict)
    residuals: dict[str, Float[np.ndarray, "n _"]] = field(default_factory=dict)
    copy_of: list[str] = field(default_factory=list)
    copy_distance: Float[np.ndarray, " _"] = field(default_factory=lambda: np.empty(0))
    stream_score: Float[np.ndarray, " _"] = field(default_factory=lambda: np.empty(0))
    kind: list[str] = field(default_factory=list)
    kind_p: Float[np.ndarray, " _"] = field(default_factory=lambda: np.empty(0))
    window_p: Float[np.ndarray, " _"] = field(default_factory=lambda: np.empty(0))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def raised_by(self) -> list[str]:
        """The part that stands out most, for every input; empty where the score has no parts."""
        if not self.parts:
            return [""] * len(self)
        kinds = list(self.parts)
        return [kinds[i] for i in np.argmax(np.stack([self.parts[kind] for kind in kinds]), axis=0)]

    def with_fdr(self, rate: float) -> Verdicts:
        """The same verdicts, flagged by Benjamini-Hochberg over all of them."""
        return replace(self, flagged=calibrate.benjamini_hochberg(self.p_value, rate))


@dataclass(frozen=True)
class Holder:
    """A calibration input at or above the threshold: without it the threshold would lie lower."""

    id: str
    score: float
    predicted: int


@dataclass(frozen=True)
class Dealt:
    """Trusted rows of one split by their roles, wrongly answered ones only among those that calibrate."""

    reference: Rows
    fit: Rows
    calibration: Rows


class Judge:
    """Fits a score on trusted rows and gives calibrated verdicts on others.

    Trusted rows are split into reference, fit and calibration (35/35/30 %): calibration by lot, the rest stratified by
    predicted class. Up to 4,000 of them 5-fold cross-conformal ranking lets every one calibrate instead, folds by lot
    too; every fresh input is then scored five times. A separate calibration set replaces either. What something was
    chosen on is set apart beforehand and never calibrates (`chosen`).
    Trusted samples the network gets wrong, where labels tell, leave reference and fit but never calibration, since
    clean queries contain such samples too.

    With one split P(p <= a) <= a for clean queries exchangeable with the calibration samples; cross-conformal's bound
    is told in `statements`.

    Args:
        score: a name from `SCORES`; `coupling` one from `COUPLINGS`.
        fpr: the false-alarm rate asked for, in (0, 1).
        per_class: rank within the predicted class where its calibration samples suffice (see `class_groups`).
        seed: of the split.
        conformal: `split`, `cross`, or `auto`, which goes by the number of trusted samples (see `splits.kind_for`).
        chosen: whether something was chosen on the samples that `splits.set_apart` names.

    Attributes:
        parts: names of the evidence parts that verdicts carry (see `PARTS`).
    """

    def __init__(
        self,
        score: str = "combined",
        coupling: str = "cosine",
        fpr: float = 0.01,
        per_class: bool = False,
        seed: int = 0,
        conformal: splits.Conformal = "auto",
        chosen: bool = False,
    ) -> None:
        if not 0 < fpr < 1:
            raise CovaryError(f"a false-alarm rate of {fpr}", "a number between 0 and 1")
        self.score, self.coupling, self.fpr, self.per_class, self.seed = score, coupling, fpr, per_class, seed
        self.conformal: splits.Conformal = conformal
        self.chosen = chosen

    def fit(
        self,
        trusted: Rows,
        labels: Int[np.ndarray, " n"] | None = None,
        calibration: Rows | None = None,
        roles: Mapping[str, Sequence[str]] | None = None,
    ) -> Judge:
        """Learns from trusted rows; `labels` only tell which of them the network gets wrong.

        `roles` are those of a judge fitted before on the same rows, which keeps its split.
        """
        if len(trusted) < LEAST_TRUSTED:
            raise CovaryError(
                f"the trusted set has {len(trusted)} inputs", f"at least {LEAST_TRUSTED}", "trust some more inputs"
            )
        if calibration is not None and len(calibration) == 0:
            raise CovaryError("the calibration set is empty", "at least one input")
        self.statements: list[str] = []
        self.roles: dict[str, list[str]] = {}
        right = np.ones(len(trusted), bool) if labels is None else trusted.predicted == labels
        if not right.all():
            self.statements.append(
                f"The network gets {int((~right).sum())} of {len(trusted)} trusted inputs wrong; they are kept out of "
                "reference and fit, but calibrate like any other."
            )
        self.splits_ = self._deal(trusted, calibration, roles)
        self.mode = "split" if len(self.splits_) == 1 else f"cross-conformal {len(self.splits_)}-fold"
        self._fit_splits(trusted, right, calibration)
        n = len(self.calibration_scores)
        resolution = calibrate.resolve(self.fpr, n)
        self.fpr_in_force, self.p_min = resolution.fpr, resolution.p_min
        if resolution.statement:
            self.statements.append(resolution.statement)
        if self.mode != "split":
            bound = calibrate.cross_conformal_bound(self.fpr_in_force, n, len(self.splits_))
            who = f"With {len(trusted)} trusted inputs every one takes part"
            if n < len(trusted):
                left = f"on the other {len(trusted) - n}, drawn by lot, settings were chosen"
                who = f"{n} of {len(trusted)} trusted inputs take part ({left})"
            self.statements.append(
                f"{who} in 5-fold cross-conformal calibration: the false-alarm rate is near {self.fpr_in_force:.3g}, "
                f"and guaranteed to stay under {min(bound, 1):.3g}."
            )
        self._groups()
        self.copies_ = Copies().fit(trusted if calibration is None else Rows.concatenate([trusted, calibration]))
        return self

    def _keep(self, rows: Rows, positions: Int[np.ndarray, " _"], right: Bool[np.ndarray, " _"], role: str) -> Rows:
        kept = positions[right[positions]]
        if len(kept) < LEAST_IN_ROLE:
            raise CovaryError(
                f"only {len(kept)} of {len(positions)} trusted inputs with the role {role} are classified right",
                f"at least {LEAST_IN_ROLE}",
                "check labels and input scaling with `covary check`, or trust more inputs",
            )
        return rows.take(kept)

    def _deal(
        self, trusted: Rows, calibration: Rows | None, roles: Mapping[str, Sequence[str]] | None
    ) -> list[splits.Roles]:
        apart = calibration is not None
        if roles is not None:
            return splits.recorded(trusted.ids, roles, calibration_apart=apart)
        if splits.kind_for(len(trusted), self.conformal, calibration_apart=apart) == "cross":
            apart = splits.set_apart(trusted.ids, self.seed) if self.chosen else None
            return splits.across(trusted.ids, trusted.predicted, self.seed, apart)
        return [splits.split(trusted.ids, trusted.predicted, self.seed, calibration_apart=apart)]

    def _fit_splits(self, trusted: Rows, right: Bool[np.ndarray, " n"], calibration: Rows | None) -> None:
        """One score for each split, and the scores of the calibration samples it has not seen."""
        self.scores_: list[Score] = []
        # For a look at piles (see `covary.scoring.pile.together`).
        self.dealt_: list[Dealt] = []
        self.views_: list[Any] | None = None
        # Which calibration samples rank, and the folds of all, where not all do (see `calibration.guarantee`).
        self.ranked_: Bool[np.ndarray, " _"] | None = None
        self.every_fold_: Int[np.ndarray, " _"] | None = None
        references: list[Rows] = []
        held: list[tuple[Rows, Float[np.ndarray, " _"]]] = []
        every_measured: list[Measured] = []
        for k, roles in enumerate(self.splits_):
            suffix = "" if len(self.splits_) == 1 else f" {k}"
            reference = self._keep(trusted, roles.reference, right, "reference")
            fit = self._keep(trusted, roles.fit, right, "fit")
            references.append(reference)
            own = trusted.take(roles.calibration) if calibration is None else calibration
            self.scores_.append(score_named(self.score, self.coupling).fit(reference, fit))
            measured = self.scores_[-1].measure(own)
            self.parts = list(measured.parts)
            held.append((own, measured.score))
            every_measured.append(measured)
            self.dealt_.append(Dealt(reference, fit, own))
            for role, rows in (("reference", reference), ("fit", fit), ("calibration", own)):
                self.roles[role + suffix] = list(rows.ids)
        self.kinds_ = Kinds().fit(self.scores_, every_measured)
        self.reference = references[0] if len(references) == 1 else trusted.take(right)
        # In the order of the role for one split, of the trusted set for several.
        every = np.concatenate([roles.calibration for roles in self.splits_])
        order = np.arange(len(held[0][0])) if len(held) == 1 else np.argsort(every)
        self.calibration_scores = np.concatenate([scores for _, scores in held])[order]
        self.calibration_ids = [name for own, _ in held for name in own.ids]
        self.calibration_ids = [self.calibration_ids[i] for i in order.tolist()]
        self.calibration_classes = np.concatenate([own.predicted for own, _ in held])[order]
        self.calibration_folds = np.repeat(np.arange(len(held)), [len(own) for own, _ in held])[order]

    def _groups(self) -> None:
        self.groups_: dict[int, int] | None = None
        if not self.per_class:
            return
        self.groups_ = calibrate.class_groups(self.calibration_classes, self.fpr_in_force)
        done = (
            f"p-values are ranked within {len(set(self.groups_.values()))} groups of predicted classes"
            if self.groups_
            else "too few calibration samples to rank any group of classes apart: all are ranked pooled"
        )
        self.statements.append(f"Calibration per class: {done}.")

    def judge(self, rows: Rows) -> Verdicts:
        """Verdicts on fresh rows."""
        measured = [score.measure(rows) for score in self.scores_]
        return self.verdicts(rows.ids, rows.predicted, measured, self.copies_.find(rows))

    def verdicts(
        self, ids: Sequence[str], predicted: Int[np.ndarray, " n"], measured: Sequence[Measured], found: Found
    ) -> Verdicts:
        """Verdicts on inputs that the score of every split has measured."""
        every = self._every(measured, found)
        scores, folds = self.calibration_scores, self.calibration_folds
        if self.groups_ is None:
            p = calibrate.cross_conformal_p(every, scores, folds)
        else:
            p = calibrate.grouped_p(every, predicted, scores, folds, self.calibration_classes, self.groups_)
        flagged = p <= self.fpr_in_force * (1 + 1e-9)
        parts, residuals = _mean(measured, "parts"), _mean(measured, "residuals")
        copy_of = [name if is_copy else "" for name, is_copy in zip(found.of, found.copies, strict=True)]
        distance = np.where(found.copies, found.distance, np.nan)
        kind, kind_p = ([], np.empty(0)) if self.kinds_ is None else self.kinds_(measured, found.copies)
        return Verdicts(
            list(ids), every.mean(0), p, flagged, predicted, parts, residuals, copy_of, distance, every[0], kind, kind_p
        )  # fmt: skip

    def _every(self, measured: Sequence[Measured], found: Found) -> Float[np.ndarray, "folds n"]:
        """The score of every split; what is a trusted input given again ranks below everything, so that p = 1."""
        every = np.stack([m.score for m in measured])
        every[:, found.copies] = np.minimum(every[:, found.copies], self.calibration_scores.min())
        return every

    def margins(self, rows: Rows) -> Float[np.ndarray, " n"]:
        """How far each input lies below its threshold, in units of the score: below 0 exactly where it is flagged."""
        every = self._every([score.measure(rows) for score in self.scores_], self.copies_.find(rows))
        groups = None if self.groups_ is None else (rows.predicted, self.calibration_classes, self.groups_)
        return calibrate.margins(every, self.calibration_scores, self.calibration_folds, self.fpr_in_force, groups)

    @property
    def threshold(self) -> float | None:
        """Score above which an input is flagged at the rate in force (of the pooled ranking); None if none can be."""
        return self.holders[-1].score if self.holders else None

    @property
    def holders(self) -> list[Holder]:
        """The calibration inputs that hold the threshold, the highest first: the floor(rate (n + 1)) highest scores."""
        order = np.argsort(-self.calibration_scores, kind="stable")
        j = calibrate.rank_of_threshold(self.fpr_in_force, len(order))
        return [
            Holder(self.calibration_ids[i], float(self.calibration_scores[i]), int(self.calibration_classes[i]))
            for i in order[:j].tolist()
        ]

    @property
    def stream_calibration(self) -> Float[np.ndarray, " _"]:
        """Calibration scores of the first split: with one score for all of them, a stream can be ranked among them."""
        return self.calibration_scores[self.calibration_folds == 0]

    def what_holds(self) -> list[str]:
        """Which inputs the threshold rests on, how far one of them moves it, and what more of them would give."""
        holders, n = self.holders, len(self.calibration_scores)
        if not holders:
            return []
        names = ", ".join(repr(holder.id) for holder in holders[:3]) + (", ..." if len(holders) > 3 else "")
        below = np.sort(self.calibration_scores)[-len(holders) - 1] if n > len(holders) else holders[-1].score
        rest = f"the {len(holders)} of {n} calibration inputs with the highest scores ({names})"
        if len(holders) == 1:
            rest = f"one of {n} calibration inputs, {names}"
        low, high = calibrate.rate_interval(self.fpr_in_force, n)
        less, more = calibrate.rate_interval(self.fpr_in_force, 4 * n)
        return [
            f"The threshold of {holders[-1].score:.3g} rests on {rest}; without the highest of them it would be "
            f"{below:.3g}. By chance of calibration alone the false-alarm rate of one detector lies between {low:.2%} "
            f"and {high:.2%} (99 in 100 detectors); with four times the inputs, between {less:.2%} and {more:.2%}."
        ]


def _mean(measured: Sequence[Measured], what: str) -> dict[str, np.ndarray]:
    first = getattr(measured[0], what)
    return {key: np.mean([getattr(m, what)[key] for m in measured], axis=0) for key in first}

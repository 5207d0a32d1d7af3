"""A detector's judge from its settings and rows, with or without a network at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Int
from numpy import ndarray

from covary.errors import CovaryError
from covary.scoring.calibration.guarantee import calibrate_on_right
from covary.scoring.judge import Judge
from covary.scoring.rows import Rows


@runtime_checkable
class JudgeSettings(Protocol):
    """The settings of a detector that decide how rows are judged."""

    @property
    def score(self) -> str: ...
    @property
    def coupling(self) -> str: ...
    @property
    def fpr(self) -> float: ...
    @property
    def per_class(self) -> bool: ...
    @property
    def seed(self) -> int: ...
    @property
    def false_alarms(self) -> Literal["all", "right"]: ...
    @property
    def sets_apart(self) -> bool: ...
    def calibrates_by(self, n: int) -> Literal["split", "cross"]: ...


def fit_judge(
    settings: JudgeSettings,
    trusted: Rows,
    labels: Int[ndarray, " n"] | None = None,
    calibration: Rows | None = None,
    roles: Mapping[str, Sequence[str]] | None = None,
) -> Judge:
    """The judge of these settings, fitted; the same bits from the same rows and roles.

    Args:
        settings: of the detector.
        trusted: rows of the trusted inputs.
        labels: their classes, -1 where nobody knows.
        calibration: rows of a calibration set apart.
        roles: as they were dealt out once (see `Judge.fit`).

    Raises:
        CovaryError: too few inputs; a rate over right answers without classes.
    """
    s = settings
    judge = Judge(s.score, s.coupling, s.fpr, s.per_class, s.seed, s.calibrates_by(len(trusted)), s.sets_apart)
    judge.fit(trusted, labels, calibration, roles)
    if s.false_alarms == "right":
        calibrate_on_right(judge, _answered_right(trusted, labels, calibration))
    return judge


def _answered_right(trusted: Rows, labels: Int[ndarray, " n"] | None, calibration: Rows | None) -> list[str]:
    """Names of the trusted inputs whose class is known and which the network answers with it."""
    if labels is None or calibration is not None:
        where = "trusted inputs without classes" if labels is None else "a calibration set apart"
        found = f"false alarms counted over right answers, with {where}"
        raise CovaryError(found, "classes of trusted inputs, some of which calibrate", "count them over all")
    right = trusted.predicted == labels
    return [name for name, known in zip(trusted.ids, right.tolist(), strict=True) if known]

"""What a guard learns: a score for every look at an answer, and how odd trusted answers are at their oddest look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from covary.scoring.calibration import conformal
from covary.scoring.judge import LEAST_IN_ROLE, Judge
from covary.scoring.rows import Rows


class Looks:
    """Running p-values over several looks at the same answer.

    Look k has a score of its own, fitted on the trusted answers that reach it. M_i = the largest score of trusted
    answer i over all its looks, each by the fold that has not seen it. The running p-value of an answer is
    (1 + #{i: M_i >= its largest score so far}) / (1 + n), fold by fold (see `cross_conformal_p`). The largest so far
    never exceeds the largest of all, so P(p <= a at any look) is that of one ranking of M: near a, and at most about
    2 a (arXiv 1905.02928, Theorem 4). Ranking every look for itself would flag nearly a at each of them.

    Args:
        rows: of the trusted answers at look 0, 1, ...; the ids of each look are among those of the one before. A look
            at which some fold has too few of them to be fitted on is not taken, nor any after it.
        seed: of the folds.
        roles: those of an earlier fit on the same rows, which then keeps its folds.

    Attributes:
        rows: as given; roles: who is in which fold, by look 0.
        judges: one a look, and of each one score a fold.
        highest_: M of every trusted answer, (n,); folds_: its fold, (n,).
    """

    def __init__(self, rows: Iterable[Rows], seed: int = 0, roles: Mapping[str, Sequence[str]] | None = None) -> None:
        self.rows: list[Rows] = []
        self.judges: list[Judge] = []
        highest: dict[str, float] = {}
        for own in rows:
            names = set(own.ids)
            # The same folds at every look: no score may have seen the texts that it calibrates on.
            dealt = None if roles is None else {role: [i for i in ids if i in names] for role, ids in roles.items()}
            if dealt is not None and not _enough(dealt):
                break
            judge = Judge(seed=seed, conformal="cross").fit(own, roles=dealt)
            roles = judge.roles if roles is None else roles
            self.rows.append(own)
            self.judges.append(judge)
            for name, score in zip(judge.calibration_ids, judge.calibration_scores.tolist(), strict=True):
                highest[name] = max(score, highest.get(name, score))
        first = self.judges[0]
        self.roles = {role: list(ids) for role, ids in (roles or {}).items()}
        self.highest_ = np.array([highest[name] for name in first.calibration_ids])
        self.folds_ = first.calibration_folds

    def __len__(self) -> int:
        return len(self.judges)

    @property
    def folds(self) -> int:
        """How many scores a look has."""
        return len(self.judges[0].scores_)

    def scores(self, rows: Rows, look: int) -> Float[np.ndarray, "folds n"]:
        """Scores at one look by each fold, in nats; higher = more anomalous."""
        return np.stack([score.measure(rows).score for score in self.judges[look].scores_])

    def p_value(self, highest: Float[np.ndarray, "folds n"]) -> Float[np.ndarray, " n"]:
        """Running p-values, in (0, 1], of the largest scores so far."""
        return conformal.cross_conformal_p(highest, self.highest_, self.folds_)

    def rate(self, fpr: float) -> tuple[float, list[str]]:
        """The false-stop rate in force where `fpr` is asked for, and what is to be said of it."""
        resolution = conformal.resolve(fpr, len(self.highest_))
        bound = conformal.cross_conformal_bound(resolution.fpr, len(self.highest_), self.folds)
        statements = [resolution.statement] if resolution.statement else []
        statements.append(
            f"{len(self.highest_)} trusted answers, looked at up to {len(self)} times each, calibrate the guard. "
            f"The share of clean answers flagged at any look is near {resolution.fpr:.3g}, and guaranteed to stay "
            f"under {min(bound, 1):.3g}."
        )
        return resolution.fpr, statements


def _enough(roles: Mapping[str, Sequence[str]]) -> bool:
    """Whether every fold can be fitted, and calibrates."""
    return all(len(ids) >= (1 if role.startswith("calibration") else LEAST_IN_ROLE) for role, ids in roles.items())

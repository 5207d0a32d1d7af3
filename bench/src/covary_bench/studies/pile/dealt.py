"""One deal: trusted inputs drawn by lot, and all other stored inputs measured once for any number of piles.

Everything goes through the library's own judge; what a pile shows is looked up anew for each pile.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from covary.scoring.calibration.splits import Conformal
from covary.scoring.copies import Found
from covary.scoring.judge import Judge, Verdicts
from covary.scoring.pile.together import Sums, Together, added, look, views
from covary.scoring.rows import Rows
from covary.scoring.scores.combined import Measured
from covary_bench.studies.pile.rows import Stored

TRUSTED = 500
AT_ONCE = 2_000
Index = Int[np.ndarray, " _"]
# way -> whether the pile is judged together, whether survival is measured
WAYS = {
    "together, thorough": (True, True),
    "together": (True, False),
    "alone, thorough": (False, True),
    "alone": (False, False),
}


@dataclass(frozen=True)
class Material:
    """Clean inputs first, then kinds of others; positions count over all of them.

    Attributes:
        rows: of all inputs.
        y: class of each, -1 = none.
        kinds: where the usable inputs of every kind stand.
    """

    rows: Rows
    y: Int[np.ndarray, " n"]
    kinds: dict[str, Index]

    @staticmethod
    def of(clean: Stored, **others: Stored) -> Material:
        """Clean inputs, and of the others those that do what they were made for."""
        parts = {"clean": clean} | {kind: other.take(other.succeed()) for kind, other in others.items()}
        ends = np.cumsum([len(part.rows) for part in parts.values()])
        return Material(
            Rows.concatenate([part.rows for part in parts.values()]),
            np.concatenate([part.y for part in parts.values()]),
            {kind: np.arange(b - len(part.rows), b) for (kind, part), b in zip(parts.items(), ends, strict=True)},
        )

    def without_survival(self) -> Material:
        """The same inputs with fast evidence."""
        return replace(self, rows=replace(self.rows, survival=None))

    def draw(self, rng: np.random.Generator, trusted: int = TRUSTED) -> tuple[Index, dict[str, Index]]:
        """Trusted clean inputs by lot, and who is left of each kind."""
        order = rng.permutation(self.kinds["clean"])
        return order[:trusted], {**self.kinds, "clean": order[trusted:]}


def pile_of(left: dict[str, Index], sizes: dict[str, int], rng: np.random.Generator) -> Index:
    """Inputs of a pile by lot: so many of each kind, kind after kind."""
    for kind, n in sizes.items():
        if n > len(left[kind]):
            raise ValueError(f"{len(left[kind])} inputs of kind {kind} are left, {n} asked for")
    return np.concatenate([rng.permutation(left[kind])[:n] for kind, n in sizes.items()])


class Deal:
    """A judge on trusted inputs, and what it measures on candidates before it looks at any pile.

    Args:
        material: all inputs.
        known: positions of the trusted ones.
        candidates: positions of those that piles may hold.
        seed: of the roles.
        conformal: how trusted inputs calibrate.
    """

    def __init__(
        self, material: Material, known: Index, candidates: Index, seed: int, conformal: Conformal = "auto"
    ) -> None:
        trusted = material.rows.take(known)
        # As a detector with thorough evidence does: some inputs never calibrate.
        self.judge = Judge(seed=seed, conformal=conformal, chosen=trusted.survival is not None)
        self.judge.fit(trusted, material.y[known])
        self.place = np.full(len(material.rows), -1)
        self.place[candidates] = np.arange(len(candidates))
        chunks = np.split(candidates, range(AT_ONCE, len(candidates), AT_ONCE))
        parts = [self._measured(material.rows.take(some)) for some in chunks]
        self.predicted = material.rows.predicted[candidates]
        self.measured = [_joined([part[0][k] for part in parts]) for k in range(len(self.judge.scores_))]
        self.numbers = [
            {kind: np.concatenate([part[1][k][kind] for part in parts]) for kind in parts[0][1][k]}
            for k in range(len(self.judge.scores_))
        ]
        self.found = Found(
            [name for part in parts for name in part[2].of],
            np.concatenate([part[2].distance for part in parts]),
            np.concatenate([part[2].copies for part in parts]),
        )

    def _measured(self, rows: Rows) -> tuple[list[Measured], list[dict[str, np.ndarray]], Found]:
        measured = [score.measure(rows) for score in self.judge.scores_]
        numbers = [dict(view.numbers(rows, own)) for view, own in zip(views(self.judge), measured, strict=True)]
        return measured, numbers, self.judge.copies_.find(rows)

    def _moments(self, at: Index) -> Sums:
        pairs = zip(views(self.judge), self.numbers, strict=True)
        return [view.moments(_some(numbers, at)) for view, numbers in pairs]

    def sums(self, pile: Index) -> Sums:
        """Second moments of a pile."""
        at = self.place[pile]
        return added([self._moments(at[a : a + AT_ONCE]) for a in range(0, len(at), AT_ONCE)])

    def verdicts(self, pile: Index, together: bool) -> Verdicts:
        """Verdicts on a pile, judged together or each input alone."""
        return self._verdicts(look(self.judge, self.sums(pile)) if together else self.judge, self.place[pile])

    def from_pile_alone(self, pile: Index) -> Verdicts:
        """What breaks the guarantee: directions learned from the pile without the calibration samples."""
        judge = self.judge
        seen, at = copy.copy(judge), self.place[pile]
        seen.scores_ = [Together(view, moments) for view, moments in zip(views(judge), self.sums(pile), strict=True)]
        scores = np.empty(len(judge.calibration_folds))
        for k, score in enumerate(seen.scores_):
            order = np.argsort(judge.splits_[k].calibration) if len(seen.scores_) > 1 else slice(None)
            scores[judge.calibration_folds == k] = score.measure(judge.dealt_[k].calibration).score[order]
        seen.calibration_scores, seen.kinds_ = scores, None
        return self._verdicts(seen, at)

    def _verdicts(self, judge: Judge, at: Index) -> Verdicts:
        measured = [_taken(own, at) for own in self.measured]
        looked = [
            score.join(own, _some(numbers, at)) if isinstance(score, Together) else own
            for score, own, numbers in zip(judge.scores_, measured, self.numbers, strict=True)
        ]
        f = self.found
        found = Found([f.of[i] for i in at.tolist()], f.distance[at], f.copies[at])
        return judge.verdicts([str(i) for i in at.tolist()], self.predicted[at], looked, found)


def caught(p: Float[np.ndarray, " n"], rate: float) -> float:
    """Share flagged at a rate; nan of nobody."""
    return float((p <= rate * (1 + 1e-9)).mean()) if len(p) else float("nan")


def _some(numbers: dict[str, np.ndarray], at: Index) -> dict[str, np.ndarray]:
    return {kind: own[at] for kind, own in numbers.items()}


def _taken(measured: Measured, at: Index) -> Measured:
    parts = (_some(dict(getattr(measured, what)), at) for what in ("parts", "residuals", "evidence"))
    return Measured(measured.score[at], *parts)


def _joined(parts: Sequence[Measured]) -> Measured:
    def of(what: str) -> dict[str, np.ndarray]:
        first = getattr(parts[0], what)
        return {kind: np.concatenate([getattr(part, what)[kind] for part in parts]) for kind in first}

    return Measured(np.concatenate([part.score for part in parts]), of("parts"), of("residuals"), of("evidence"))

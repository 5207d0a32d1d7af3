"""The offline variant: a pile judged as a whole, every input's score depending on all others of the pile.

Couplings of all queries with the reference samples are embedded together with those of trusted samples, and the score
is the distance to the nearest trusted ones (the offline variant of arXiv 2604.18970). It is transductive: there is no
detector to keep, one input alone cannot be scored, and another pile gives the same input another score.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from covary.data.source import Source
from covary.detector import Detector
from covary.errors import CovaryError
from covary.scoring.calibration.splits import random_order
from covary.scoring.couplings import couple
from covary.scoring.judge import Judge
from covary.scoring.pile.embedding import distance_to_nearest, embedded
from covary.scoring.rows import Batch, Rows
from covary.scoring.scores import Score
from covary.scoring.scores.combined import Measured

STATEMENT = (
    "Offline: scores come from one embedding of all inputs together with trusted ones; they hold for this pile alone, "
    "and inputs that come later need another run."
)


class CachedExtractor:
    """Rows and scores of a pile by input, for whatever asks for them a second time."""

    def __init__(self, extractor: Any, rows: Rows, scores: Float[np.ndarray, " n"]) -> None:
        self._extractor, self._rows, self._scores = extractor, rows, scores
        self._places = {name: i for i, name in enumerate(rows.ids)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._extractor, name)

    def rows(self, batch: Batch) -> Rows:
        """What the extractor gave for these inputs."""
        return self._rows.take(self._at(batch.ids))

    def fit(self, reference: Rows, fit: Rows) -> CachedExtractor:
        """Nothing to learn: the pile is known."""
        return self

    def measure(self, rows: Rows) -> Measured:
        """What the embedding gave for these inputs."""
        return Measured(self._scores[self._at(rows.ids)], {}, {})

    def _at(self, ids: Any) -> np.ndarray:
        return np.array([self._places[name] for name in ids], np.int64)


def judged_together(detector: Detector, inputs: Source, progress: Callable[[int, int], None] | None = None) -> Detector:
    """The detector with its score replaced by distances in one embedding of this pile; good for this pile alone.

    Fit samples are the trusted neighbours; calibration samples go through the same embedding as the queries, whose
    roles it does not know, so p-values hold as ever for clean queries. Rows of the whole pile stay in memory.

    Raises:
        CovaryError: cross-conformal calibration, or the extra `offline` is missing.
    """
    judge = detector.judge
    if judge.mode != "split":
        raise CovaryError(
            f"an offline run of a detector with {judge.mode} calibration",
            "one split, or a calibration set apart",
            "fit with conformal=split, or leave offline= away",
        )
    queries = detector.rows(inputs, progress)
    scores, calibration = offline_scores(judge, detector.trusted_rows, detector.calibration_rows, queries)
    together, offline = copy.copy(detector), copy.copy(judge)
    remembered = CachedExtractor(detector.extractor, queries, scores)
    scored: list[Score] = [remembered]
    offline.calibration_scores, offline.scores_, offline.parts = calibration, scored, []
    # Distances of an embedding have no parts to tell kinds by.
    offline.kinds_ = None
    offline.statements = [*judge.statements, STATEMENT]
    vars(together).update(judge=offline, extractor=remembered)
    return together


def offline_scores(
    judge: Judge, trusted: Rows, calibration: Rows | None, queries: Rows
) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, " c"]]:
    """Scores of queries and of the calibration samples: mean distance to the 10 nearest fit samples, embedded.

    The rows of the embedding are couplings with the reference samples, in an order that says nothing about roles.
    """
    place = {name: i for i, name in enumerate(trusted.ids)}
    fit, reference = (trusted.take([place[name] for name in judge.roles[role]]) for role in ("fit", "reference"))
    if calibration is None:
        calibration = trusted.take([place[name] for name in judge.roles["calibration"]])
    parts = {"query": queries, "fit": fit, "calibration": calibration}
    couplings = np.concatenate([couple(judge.coupling, rows, reference) for rows in parts.values()])
    order = random_order([f"{role} {name}" for role, rows in parts.items() for name in rows.ids], judge.seed, "offline")
    shuffled = embedded(couplings[order], judge.seed)
    points = np.empty_like(shuffled)
    points[order] = shuffled
    at_query, at_fit, at_calibration = np.split(points, np.cumsum([len(queries), len(fit)]))
    return distance_to_nearest(at_query, at_fit), distance_to_nearest(at_calibration, at_fit)

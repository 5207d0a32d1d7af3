"""Scores: one number a query, higher = more anomalous, each a pure function of rows.

By kind of evidence:
    couplings with trusted samples   mean, class-max, own-class, top-k (of any coupling: covariance, cosine, ccc)
    reconstruction                   explained
    every layer's direction          profile
    all of one pass                  combined (default), equal-confidence
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from covary.errors import unknown_name
from covary.scoring.couplings import couple, vectors
from covary.scoring.rows import Rows
from covary.scoring.scores.combined import Combined, Measured
from covary.scoring.scores.coupling import class_max, mean, own_class, top_k
from covary.scoring.scores.explained import explain
from covary.scoring.scores.layers import unit
from covary.scoring.scores.parts import Part


@runtime_checkable
class Score(Protocol):
    """Fitted on trusted rows alone; measures fresh ones."""

    def fit(self, reference: Rows, fit: Rows) -> Score:
        """Learns from the reference and fit roles."""
        ...

    def measure(self, rows: Rows) -> Measured:
        """Scores of fresh rows, higher = more anomalous."""
        ...


CouplingScore = Callable[
    [Float[np.ndarray, "q r"], Int[np.ndarray, " q"], Int[np.ndarray, " r"]], Float[np.ndarray, " q"]
]


class FromCoupling:
    """A score read off the coupling matrix with the reference."""

    def __init__(self, read: CouplingScore, coupling: str) -> None:
        self.read, self.coupling = read, coupling

    def fit(self, reference: Rows, fit: Rows) -> FromCoupling:
        """Keeps the reference; nothing to standardise, since a score's scale does not change its rank."""
        self.reference_ = reference
        return self

    def measure(self, rows: Rows) -> Measured:
        """Scores of fresh rows."""
        coupling = couple(self.coupling, rows, self.reference_)
        return Measured(self.read(coupling, rows.predicted, self.reference_.predicted), {}, {})


class Explained:
    """Share of the unit query gradient that no non-negative sparse sum of reference gradients rebuilds, in [0, 1]."""

    def __init__(self, coupling: str) -> None:
        self.coupling = coupling

    def fit(self, reference: Rows, fit: Rows) -> Explained:
        """Keeps the reference's unit gradients."""
        self.reference_ = unit(vectors(reference))
        return self

    def measure(self, rows: Rows) -> Measured:
        """Scores of fresh rows."""
        return Measured(explain(unit(vectors(rows)), self.reference_).unexplained, {}, {})


class Profile:
    """Standardised log Mahalanobis distance of the layer profile of the gradients alone."""

    def __init__(self, coupling: str) -> None:
        self.coupling = coupling

    def fit(self, reference: Rows, fit: Rows) -> Profile:
        """Profile from the reference, standardisation from the fit samples."""
        self.parts_ = {"functional": Part("functional").fit(reference, fit)}
        return self

    def measure(self, rows: Rows) -> Measured:
        """Scores of fresh rows."""
        distance, residuals = self.parts_["functional"].measure(rows)
        return Measured(distance, {"functional": distance}, {"functional": residuals})


# name -> maker of an unfitted score, given the name of a coupling (of which only the first four make use).
SCORES: dict[str, Callable[[str], Score]] = {
    "mean": lambda coupling: FromCoupling(mean, coupling),
    "class-max": lambda coupling: FromCoupling(class_max, coupling),
    "own-class": lambda coupling: FromCoupling(own_class, coupling),
    "top-k": lambda coupling: FromCoupling(top_k, coupling),
    "explained": Explained,
    "profile": Profile,
    "combined": lambda coupling: Combined(),
    "equal-confidence": lambda coupling: Combined(at_equal_confidence=True),
}


def score_named(name: str, coupling: str = "cosine") -> Score:
    """An unfitted score of that name; an unknown name lists the valid ones."""
    if name not in SCORES:
        raise unknown_name("score", name, SCORES)
    return SCORES[name](coupling)

"""Evidence: the trusted samples that account for an output, or fail to, and where in the network they fail."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from covary.scoring.couplings import vectors
from covary.scoring.judge import Judge, Verdicts
from covary.scoring.rows import Rows, memmap
from covary.scoring.scores.explained import Explanation, explain
from covary.scoring.scores.layers import per_layer_deviation, unit
from covary.scoring.scores.parts import PARTS

WITNESSES = 5
LEAST_WEIGHT = 1e-3


@dataclass(frozen=True)
class Witness:
    """A trusted sample that helps explain a query.

    Attributes:
        id: its name.
        weight: its part in the non-negative reconstruction, > 0.
        cosine: its coupling with the query, in [-1, 1].
        predicted: what the network says of it.
    """

    id: str
    weight: float
    cosine: float
    predicted: int


@dataclass(frozen=True)
class Evidence:
    """Why an input was or was not flagged.

    Attributes:
        id: its name.
        score, p_value, flagged, predicted: the verdict.
        parts: evidence by part (see `PARTS`): standardised log distances, about 0 +- 1 on trusted samples.
        raised_by: the part that stands out most.
        unexplained: share of the query's direction that trusted samples leave over, in [0, 1].
        explained_by: the witnesses, by falling weight; empty where nothing explains it.
        classes: mean cosine with the trusted samples of each predicted class.
        layers: per part and layer, root mean square of the standardised numbers; about 1 on trusted samples.
        copy_of: the trusted input that it is a copy of; empty for nearly all.
        kind, kind_p: what kind of oddness stands out most, and the chance at most that a clean input shows any kind as
            clearly (see `covary.scoring.kinds`); empty and None where that cannot be told.
        least_explained_layer: where the share unexplained is furthest above what trusted samples show.
    """

    id: str
    score: float
    p_value: float
    flagged: bool
    predicted: int
    parts: dict[str, float]
    raised_by: str
    unexplained: float
    explained_by: list[Witness]
    classes: dict[int, float]
    layers: dict[str, dict[str, float]]
    least_explained_layer: str
    copy_of: str = ""
    kind: str = ""
    kind_p: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Explainer:
    """Explains queries by the reference samples of a judge.

    By their gradients; where rows hold none, by activations: of every layer less the reference's mean, in units of its
    root mean square there.

    Attributes:
        by: the evidence part whose vectors are compared, `functional` or `latent`.
    """

    def __init__(self, judge: Judge) -> None:
        self.reference = judge.reference
        self.by = "functional" if judge.reference.functional else "latent"
        self.layer_names = {
            kind: list(part.layers(judge.reference)) for kind, part in PARTS.items() if part.layers is not None
        }

    @functools.cached_property
    def units(self) -> Float[np.ndarray, "r d"]:
        """Unit vectors of the reference; of one too large for memory in float32, mapped from a file."""
        rows = self.reference
        layers = getattr(rows, self.by)
        if not any(memmap.is_mapped(part) for part in layers.values()):
            return self.directions(rows)
        result = memmap.mapped((len(rows), sum(p.shape[1] for p in layers.values())), np.dtype(np.float32))
        for start in range(0, len(rows), memmap.STEP):
            some = np.arange(start, min(start + memmap.STEP, len(rows)))
            result[some] = self.directions(rows.take(some))
        return result

    @functools.cached_property
    def _middles(self) -> dict[str, tuple[np.ndarray, float]]:
        found = {}
        for name, part in self.reference.latent.items():
            numbers = np.asarray(part, np.float64)
            mean = numbers.mean(0)
            found[name] = mean, max(float(np.sqrt(np.square(numbers - mean).sum(1).mean())), LEAST_WEIGHT)
        return found

    def directions(self, rows: Rows) -> Float[np.ndarray, "n d"]:
        """The unit vectors by which inputs are compared."""
        if self.by == "functional":
            return unit(vectors(rows))
        middles = self._middles.items()
        parts = [(np.asarray(rows.latent[name], np.float64) - mean) / spread for name, (mean, spread) in middles]
        return unit(np.concatenate(parts, axis=1))

    def reconstruct(self, rows: Rows) -> tuple[Explanation, Float[np.ndarray, "n d"]]:
        """Weights of the reference samples for each query, and the queries' unit vectors."""
        units = self.directions(rows)
        return explain(units, self.units), units

    def least_explained(self, verdicts: Verdicts) -> list[str]:
        """The layer whose share unexplained stands out most, for every input; empty without a layer profile."""
        residuals = verdicts.residuals.get(self.by)
        if residuals is None:
            return [""] * len(verdicts)
        names = self.layer_names[self.by]
        shares = residuals[:, len(names) : 2 * len(names)]
        return [names[i] for i in np.argmax(shares, axis=1)]

    def witnesses(self, explanation: Explanation, units: Float[np.ndarray, "n d"], i: int) -> list[Witness]:
        """Up to five trusted samples with the largest weights in query i."""
        order = np.argsort(-explanation.weights[i], kind="stable")[:WITNESSES]
        found = []
        for position in order[explanation.weights[i][order] > LEAST_WEIGHT]:
            r = int(explanation.candidates[i, position])
            cosine = float(units[i] @ self.units[r])
            weight = float(explanation.weights[i, position])
            found.append(Witness(self.reference.ids[r], weight, cosine, int(self.reference.predicted[r])))
        return found

    def explain(self, rows: Rows, verdicts: Verdicts) -> list[Evidence]:
        """Full evidence on a batch of queries."""
        explanation, units = self.reconstruct(rows)
        labels = np.unique(self.reference.predicted)
        reach = units @ self.units.T
        classes = np.stack([reach[:, self.reference.predicted == label].mean(1) for label in labels], axis=1)
        layers = {
            kind: per_layer_deviation(verdicts.residuals[kind])
            for kind in self.layer_names
            if kind in verdicts.residuals
        }
        least, raised = self.least_explained(verdicts), verdicts.raised_by
        return [
            Evidence(
                id=verdicts.ids[i],
                score=float(verdicts.score[i]),
                p_value=float(verdicts.p_value[i]),
                flagged=bool(verdicts.flagged[i]),
                predicted=int(verdicts.predicted[i]),
                parts={kind: float(values[i]) for kind, values in verdicts.parts.items()},
                raised_by=raised[i],
                unexplained=float(explanation.unexplained[i]),
                explained_by=self.witnesses(explanation, units, i),
                classes={int(label): float(value) for label, value in zip(labels, classes[i], strict=True)},
                layers={
                    kind: dict(zip(self.layer_names[kind], map(float, values[i]), strict=True))
                    for kind, values in layers.items()
                },
                least_explained_layer=least[i],
                copy_of=verdicts.copy_of[i] if verdicts.copy_of else "",
                kind=verdicts.kind[i] if verdicts.kind else "",
                kind_p=float(verdicts.kind_p[i]) if len(verdicts.kind_p) else None,
            )
            for i in range(len(rows))
        ]

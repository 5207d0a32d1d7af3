"""The combined score: functional, latent and confidence evidence of one pass, joined by their smallest p-value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from covary.scores.layers import LayerProfile, functional_numbers, latent_numbers
from covary.scores.tails import Tail
from covary.standardise import ClassStandardiser, held_out, spread_folds
from covary.types import Rows

# One-sided confidence evidence: how a network is wrong by being unsure. Sign +1: high is suspicious.
ONE_SIDED = {"margin": -1.0, "energy": 1.0}


def confidence_numbers(rows: Rows) -> Float[np.ndarray, "n c"]:
    """The network's own confidence at w*, one column per kind."""
    return np.stack([np.asarray(values, np.float64) for values in rows.confidence.values()], axis=1)


class Part:
    """One kind of evidence: numbers per sample, standardised per class, their distance, its logarithm standardised."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def _numbers(self, rows: Rows) -> Float[np.ndarray, "n d"]:
        if self.kind == "confidence":
            return confidence_numbers(rows)
        return (functional_numbers if self.kind == "functional" else latent_numbers)(self.profile_, rows)

    def fit(self, reference: Rows, fit: Rows) -> Part:
        """Profile from the reference; standardisation from the fit samples, ranked by held-out distances."""
        if self.kind != "confidence":
            layers = reference.functional if self.kind == "functional" else reference.latent
            self.profile_ = LayerProfile(centred=self.kind == "latent").fit(layers, reference.predicted)
        numbers = self._numbers(fit)
        self.standardiser_ = ClassStandardiser().fit(numbers, fit.predicted)
        self.fit_residuals_, distances = held_out(numbers, fit.predicted, spread_folds(len(fit)))
        logs = np.log(np.maximum(distances, 1e-12))
        self.centre_, self.scale_ = float(logs.mean()), max(float(logs.std()), 1e-6)
        self.fit_ = (logs - self.centre_) / self.scale_
        return self

    def measure(self, rows: Rows) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n d"]]:
        """Standardised log distance (about 0 and spread 1 on trusted samples; higher = odder) and the residuals."""
        numbers = self._numbers(rows)
        distances = self.standardiser_.distance(numbers, rows.predicted)
        standardised = (np.log(np.maximum(distances, 1e-12)) - self.centre_) / self.scale_
        return standardised, self.standardiser_.residuals(numbers, rows.predicted)


@dataclass(frozen=True)
class Measured:
    """What the score says of n queries.

    Attributes:
        score: higher = more anomalous.
        parts: each kind of evidence's standardised log distance, (n,).
        residuals: the standardised numbers behind it, per part, (n, d).
    """

    score: Float[np.ndarray, " n"]
    parts: dict[str, Float[np.ndarray, " n"]]
    residuals: dict[str, Float[np.ndarray, "n _"]]


class Combined:
    """Smaller of two p-values on the fit samples: of the parts' sum, and of Fisher's sum of one-sided evidence.

    z = functional + latent + confidence (standardised log distances), and F = -2 sum log p over the functional and
    latent distances, low margin and high energy; score = -log min(p(z), p(F)) in nats; higher = more anomalous.
    Two-sided z sees what no single kind of evidence sees; F keeps a network's being unsure from being diluted in z.
    F is a score only, never compared with chi-square: its four terms depend on each other. All ranks on the fit
    samples use held-out distances. Without classes (a user's observable) F has the distances alone.
    """

    def fit(self, reference: Rows, fit: Rows) -> Combined:
        """Learns everything from trusted rows; labels of anomalies have no way in."""
        kinds = ["functional", *(["latent"] if reference.latent else []), "confidence"]
        self.parts_ = {kind: Part(kind).fit(reference, fit) for kind in kinds}
        self.one_sided_ = [
            (column, ONE_SIDED[name]) for column, name in enumerate(fit.confidence) if name in ONE_SIDED
        ]
        distances = {kind: part.fit_ for kind, part in self.parts_.items()}
        distances = {kind: part.fit_ for kind, part in self.parts_.items()}
        confidence = self.parts_["confidence"].fit_residuals_
        self.tails_ = [Tail().fit(values) for values in self._evidence(distances, confidence)]
        z, fisher = self._joined(distances, confidence)
        self.z_tail_, self.fisher_tail_ = Tail().fit(z), Tail().fit(fisher)
        return self

    def measure(self, rows: Rows) -> Measured:
        """Score, parts and residuals of fresh rows."""
        both = {kind: part.measure(rows) for kind, part in self.parts_.items()}
        distances = {kind: distance for kind, (distance, _) in both.items()}
        residuals = {kind: residual for kind, (_, residual) in both.items()}
        z, fisher = self._joined(distances, residuals["confidence"])
        score = -np.minimum(self.z_tail_.log_p(z), self.fisher_tail_.log_p(fisher))
        return Measured(score, distances, residuals)

    def _evidence(
        self, distances: dict[str, Float[np.ndarray, " n"]], confidence: Float[np.ndarray, "n c"]
    ) -> list[Float[np.ndarray, " n"]]:
        one_sided = [sign * confidence[:, column] for column, sign in self.one_sided_]
        return [distances[kind] for kind in distances if kind != "confidence"] + one_sided

    def _joined(
        self, distances: dict[str, Float[np.ndarray, " n"]], confidence: Float[np.ndarray, "n c"]
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        z = np.sum(list(distances.values()), axis=0)
        evidence = self._evidence(distances, confidence)
        fisher = -2 * np.sum([tail.log_p(v) for tail, v in zip(self.tails_, evidence, strict=True)], axis=0)
        return z, fisher

"""The combined score: functional, latent and confidence evidence of one pass, joined by the smallest p-value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from covary.scoring.rows import Rows
from covary.scoring.scores.distances import Standardised, TopLayersDistance, WholeDistance
from covary.scoring.scores.layers import LayerProfile, functional_numbers, latent_numbers
from covary.scoring.scores.tails import Tail

# One-sided confidence evidence: how a network is wrong by being unsure. Sign +1: high is suspicious.
ONE_SIDED = {"margin": -1.0, "energy": 1.0}


def confidence_numbers(rows: Rows) -> Float[np.ndarray, "n c"]:
    """The network's own confidence at w*, one column per kind."""
    return np.stack([np.asarray(values, np.float64) for values in rows.confidence.values()], axis=1)


class Part:
    """One kind of evidence: numbers per sample, standardised per class, and their standardised log distance.

    Functional and confidence evidence take the distance over all numbers. Latent evidence adds the distance of its
    most striking layers: activations of different layers depend less on each other than gradients do, and what is
    odd in a few of them drowns in the whole.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def numbers(self, rows: Rows) -> Float[np.ndarray, "n d"]:
        """The numbers this kind of evidence is made of."""
        if self.kind == "confidence":
            return confidence_numbers(rows)
        return (functional_numbers if self.kind == "functional" else latent_numbers)(self.profile_, rows)

    def fit(self, reference: Rows, fit: Rows) -> Part:
        """Profile from the reference; standardisation from the fit samples, by held-out distances."""
        if self.kind != "confidence":
            layers = reference.functional if self.kind == "functional" else reference.latent
            self.profile_ = LayerProfile(centred=self.kind == "latent").fit(layers, reference.predicted)
        numbers = self.numbers(fit)
        self.whole_ = WholeDistance().fit(numbers, fit.predicted)
        self.distances_: list[WholeDistance | TopLayersDistance] = [self.whole_]
        if self.kind == "latent":
            self.distances_.append(TopLayersDistance().fit(numbers, fit.predicted))
        self.standardised_ = Standardised().fit(np.sum([distance.fit_ for distance in self.distances_], axis=0))
        self.fit_, self.fit_residuals_ = self.standardised_.fit_, self.whole_.residuals_
        return self

    def measure(self, rows: Rows) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n d"]]:
        """Standardised log distance (about 0 and spread 1 on trusted samples; higher = odder) and the residuals."""
        numbers = self.numbers(rows)
        total = np.sum([distance(numbers, rows.predicted) for distance in self.distances_], axis=0)
        return self.standardised_(total), self.whole_.standardiser_.residuals(numbers, rows.predicted)


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
    """Smallest of three p-values on the fit samples, each of another way to add up one pass's evidence.

    z = functional + latent + confidence (standardised log distances, two-sided): what no single kind of evidence sees;
    F2 = -2 sum log p of the functional and the latent distance: another mechanism behind an ordinary confidence;
    F4 = the same over those two, low margin and high energy: a network can also be wrong by being unsure.
    score = -log min(p(z), p(F2), p(F4)) in nats; higher = more anomalous. Fisher's sums are scores only, never
    compared with chi-square: their terms depend on each other. All ranks on the fit samples use held-out distances and
    go on beyond the largest (see `Tail`). Without classes (a user's observable) F4 equals F2.
    """

    def fit(self, reference: Rows, fit: Rows) -> Combined:
        """Learns everything from trusted rows; labels of anomalies have no way in."""
        kinds = ["functional", *(["latent"] if reference.latent else []), "confidence"]
        self.parts_ = {kind: Part(kind).fit(reference, fit) for kind in kinds}
        self.one_sided_ = [(column, ONE_SIDED[name]) for column, name in enumerate(fit.confidence) if name in ONE_SIDED]
        distances = {kind: part.fit_ for kind, part in self.parts_.items()}
        confidence = self.parts_["confidence"].fit_residuals_
        self.tails_ = [Tail().fit(values) for values in self._evidence(distances, confidence)]
        self.joined_tails_ = [Tail().fit(values) for values in self._joined(distances, confidence)]
        return self

    def measure(self, rows: Rows) -> Measured:
        """Score, parts and residuals of fresh rows."""
        both = {kind: part.measure(rows) for kind, part in self.parts_.items()}
        distances = {kind: distance for kind, (distance, _) in both.items()}
        residuals = {kind: residual for kind, (_, residual) in both.items()}
        joined = self._joined(distances, residuals["confidence"])
        log_p = [tail.log_p(values) for tail, values in zip(self.joined_tails_, joined, strict=True)]
        return Measured(-np.min(log_p, axis=0), distances, residuals)

    def _evidence(
        self, distances: dict[str, Float[np.ndarray, " n"]], confidence: Float[np.ndarray, "n c"]
    ) -> list[Float[np.ndarray, " n"]]:
        """One-sided evidence: the distances first, then what speaks of being unsure."""
        unsure = [sign * confidence[:, column] for column, sign in self.one_sided_]
        return [distances[kind] for kind in distances if kind != "confidence"] + unsure

    def _joined(
        self, distances: dict[str, Float[np.ndarray, " n"]], confidence: Float[np.ndarray, "n c"]
    ) -> list[Float[np.ndarray, " n"]]:
        z = np.sum(list(distances.values()), axis=0)
        evidence = self._evidence(distances, confidence)
        terms = [-2 * tail.log_p(values) for tail, values in zip(self.tails_, evidence, strict=True)]
        return [z, np.sum(terms[: len(distances) - 1], axis=0), np.sum(terms, axis=0)]

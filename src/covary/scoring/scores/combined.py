"""The combined score: functional, latent and confidence evidence of one pass, joined by the smallest p-value."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from covary.errors import CovaryError
from covary.scoring.rows import Rows
from covary.scoring.scores.among_like import OddAmongLike
from covary.scoring.scores.joined import joined as cubic_norm
from covary.scoring.scores.parts import PARTS, Part
from covary.scoring.scores.tails import Tail


@dataclass(frozen=True)
class Measured:
    """What the score says of n queries.

    Attributes:
        score: higher = more anomalous.
        parts: each kind of evidence's standardised log distance, (n,).
        residuals: the standardised numbers behind it, per part, (n, d).
        evidence: pieces that a pile's own evidence joins, -log p on held-out fit samples in nats, each (n,).
    """

    score: Float[np.ndarray, " n"]
    parts: dict[str, Float[np.ndarray, " n"]]
    residuals: dict[str, Float[np.ndarray, "n _"]]
    evidence: dict[str, Float[np.ndarray, " n"]] = field(default_factory=dict)


class Combined:
    """Smallest of three p-values on the fit samples, each of another way to add up one pass's evidence.

    z = functional + latent + confidence (standardised log distances, two-sided): what no single kind of evidence sees;
    F2 = -2 sum log p of the functional and the latent distance: another mechanism behind an ordinary confidence;
    F4 = the same over those two, low margin and high energy: a network can also be wrong by being unsure.
    score = -log min(p(z), p(F2), p(F4)) in nats; higher = more anomalous. Fisher's sums are scores only, never
    compared with chi-square: their terms depend on each other. All ranks on the fit samples use held-out distances and
    go on beyond the largest (see `Tail`). Without classes (a user's observable) F4 equals F2.

    Further parts of the table `PARTS` join in the same way: two-sided ones in z and both sums, one-sided ones in the
    sums alone. Parts that stand `apart`, such as survival, are joined with the score by the cubic norm of their tails
    (see `joined`), in which a blind part drowns nothing.

    Args:
        at_equal_confidence: hold every part but confidence against fit samples of like margin instead, and join those
            by the cubic norm (see `OddAmongLike`): inputs that the network is merely unsure of are then flagged
            little more often than others.
    """

    def __init__(self, at_equal_confidence: bool = False) -> None:
        self.at_equal_confidence = at_equal_confidence

    def fit(self, reference: Rows, fit: Rows) -> Combined:
        """Learns everything from trusted rows; labels of anomalies have no way in."""
        self.parts_ = {kind: Part(kind).fit(reference, fit) for kind, part in PARTS.items() if part.is_in(reference)}
        signs = PARTS["confidence"].unsure
        self.unsure_ = [(column, signs[name]) for column, name in enumerate(fit.confidence) if name in signs]
        distances = {kind: part.fit_ for kind, part in self.parts_.items() if not PARTS[kind].apart}
        confidence = self.parts_["confidence"].fit_residuals_
        self.tails_ = [Tail().fit(values) for values in self._evidence(distances, confidence)]
        self.joined_tails_ = [Tail().fit(values) for values in self._joined(distances, confidence)]
        self.alone_ = Tail().fit(self._smallest(distances, confidence))
        self.apart_ = {kind: Tail().fit(part.fit_) for kind, part in self.parts_.items() if PARTS[kind].apart}
        self.margin_column_ = list(fit.confidence).index("margin") if "margin" in fit.confidence else None
        if self.margin_column_ is not None:
            self.fit_margins_ = confidence[:, self.margin_column_]
        if self.at_equal_confidence:
            if self.margin_column_ is None:
                raise CovaryError("a score at equal confidence of a network without classes", "the score combined")
            self.likes_ = {kind: OddAmongLike().fit(own, self.fit_margins_) for kind, own in self.fit_parts().items()}
        return self

    def fit_parts(self) -> dict[str, Float[np.ndarray, " n"]]:
        """Held-out values of the fit samples by every part that does not speak of confidence itself."""
        return {kind: part.fit_ for kind, part in self.parts_.items() if not PARTS[kind].unsure}

    def measure(self, rows: Rows) -> Measured:
        """Score, parts and residuals of fresh rows."""
        both = {kind: part.measure(rows) for kind, part in self.parts_.items()}
        distances = {kind: distance for kind, (distance, _) in both.items()}
        residuals = {kind: residual for kind, (_, residual) in both.items()}
        together = {kind: values for kind, values in distances.items() if kind not in self.apart_}
        if self.at_equal_confidence:
            margins = residuals["confidence"][:, self.margin_column_]
            evidence = {kind: like(distances[kind], margins) for kind, like in self.likes_.items()}
            return Measured(cubic_norm(list(evidence.values())), distances, residuals, evidence)
        score = self._smallest(together, residuals["confidence"])
        evidence = {"alone": -self.alone_.log_p(score)}
        evidence |= {kind: -tail.log_p(distances[kind]) for kind, tail in self.apart_.items()}
        if self.apart_:
            score = cubic_norm(list(evidence.values()))
        return Measured(score, distances, residuals, evidence)

    def _smallest(
        self, distances: dict[str, Float[np.ndarray, " n"]], confidence: Float[np.ndarray, "n c"]
    ) -> Float[np.ndarray, " n"]:
        """-log of the smallest of the three p-values."""
        joined = self._joined(distances, confidence)
        log_p = [tail.log_p(values) for tail, values in zip(self.joined_tails_, joined, strict=True)]
        return -np.min(log_p, axis=0)

    def _evidence(
        self, distances: dict[str, Float[np.ndarray, " n"]], confidence: Float[np.ndarray, "n c"]
    ) -> list[Float[np.ndarray, " n"]]:
        """One-sided evidence: the distances first, then what speaks of being unsure."""
        unsure = [sign * confidence[:, column] for column, sign in self.unsure_]
        return [distances[kind] for kind in distances if not PARTS[kind].unsure] + unsure

    def _joined(
        self, distances: dict[str, Float[np.ndarray, " n"]], confidence: Float[np.ndarray, "n c"]
    ) -> list[Float[np.ndarray, " n"]]:
        z = np.sum([values for kind, values in distances.items() if PARTS[kind].sides == "two"], axis=0)
        evidence = self._evidence(distances, confidence)
        terms = [-2 * tail.log_p(values) for tail, values in zip(self.tails_, evidence, strict=True)]
        return [z, np.sum(terms[: len(terms) - len(self.unsure_)], axis=0), np.sum(terms, axis=0)]

"""Evidence parts, one table: how numbers come from rows, which side of them counts, what a report calls each part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float

from covary.errors import unknown_name
from covary.scoring.conditional.lengths import AtEqualLengths
from covary.scoring.rows import Rows
from covary.scoring.scores.distances import FullDistance, LayersDistance, Standardised, TopLayersDistance
from covary.scoring.scores.layers import LayerProfile

Layers = Mapping[str, Float[np.ndarray, "n _"]]


@dataclass(frozen=True)
class EvidencePart:
    """One kind of evidence as data; give `numbers`, `layers` or `vectors`.

    Attributes:
        title: heading of its column in a report.
        source: what a sentence says it comes from, such as `the gradient`.
        meaning: what the report's glossary says of it.
        numbers: from rows to its numbers, (n, d); None where the rows carry none.
        layers: from rows to vectors by layer, of which its numbers are the profile (see `LayerProfile`).
        vectors: from rows to vectors by layer, each held against trusted ones as it is (see `LayersDistance`).
        norms: exact norms of those vectors, (n, L), where the rows know them.
        centred: whether the profile takes the reference mean off first.
        top_layers: whether the distance of its most striking layers is added to that of all.
        sides: `two` = far from trusted numbers either way is odd; `one` = a single number, odd where it is high.
        apart: whether it is joined by the cubic norm instead of the sums (see `Combined`).
        unsure: its numbers that are high where the network is unsure, by name, with the sign that makes them so.
    """

    title: str
    source: str
    meaning: str = ""
    numbers: Callable[[Rows], Float[np.ndarray, "n d"] | None] | None = None
    layers: Callable[[Rows], Layers] | None = None
    vectors: Callable[[Rows], Layers] | None = None
    norms: Callable[[Rows], Float[np.ndarray, "n L"]] | None = None
    centred: bool = False
    top_layers: bool = False
    sides: Literal["two", "one"] = "two"
    unsure: Mapping[str, float] = field(default_factory=dict)
    apart: bool = False

    def words(self) -> dict[str, object]:
        """What a RUN records of it for its report."""
        return {"title": self.title, "source": self.source, "meaning": self.meaning, "layered": self.layers is not None}

    def is_in(self, rows: Rows) -> bool:
        """Whether rows carry what it is made of."""
        by_layer = self.vectors if self.layers is None else self.layers
        if by_layer is not None:
            return bool(by_layer(rows))
        return self.numbers is not None and self.numbers(rows) is not None


def confidence_numbers(rows: Rows) -> Float[np.ndarray, "n c"]:
    """The network's own confidence at w*, one column per kind."""
    return np.stack([np.asarray(values, np.float64) for values in rows.confidence.values()], axis=1)


def _asked(rows: Rows) -> Rows:
    assert rows.prompt is not None
    return rows.prompt


# In the order of columns. Activations of different layers depend less on each other than gradients do, and what is odd
# in a few of them drowns in the whole: hence `top_layers`.
PARTS: dict[str, EvidencePart] = {
    "functional": EvidencePart(
        "Functional",
        "the gradient",
        "How the answer depends on the weights: the gradient of the network's own answer, layer by layer, against the "
        "gradients of trusted samples.",
        layers=lambda rows: rows.functional,
        norms=lambda rows: rows.functional_norms,
    ),
    "latent": EvidencePart(
        "Latent",
        "the activations",
        "The same comparison on the activations of the layers.",
        layers=lambda rows: rows.latent,
        centred=True,
        top_layers=True,
    ),
    "confidence": EvidencePart(
        "Confidence",
        "the confidence",
        "How sure the network is, against how sure it is on trusted samples; unusual in either direction counts.",
        numbers=confidence_numbers,
        unsure={"margin": -1.0, "energy": 1.0},
    ),
    "survival": EvidencePart(
        "Survival",
        "the last layers amplified",
        "How firmly the network holds on to its answer while the scale of its last layers is turned up; answers of a "
        "trigger outlive what changes most others.",
        numbers=lambda rows: None if rows.survival is None else np.mean(rows.survival, axis=1, keepdims=True),
        sides="one",
        apart=True,
    ),
    # Of prompts, before anything is answered. The answer's gradient is blind to them, so they stand apart.
    "prompt functional": EvidencePart(
        "Prompt, functional",
        "the prompt's gradient",
        "How the prompt itself depends on the weights: the gradient of its own log-odds, layer by layer, before "
        "anything is answered.",
        layers=lambda rows: {} if rows.prompt is None else rows.prompt.functional,
        norms=lambda rows: _asked(rows).functional_norms,
        apart=True,
    ),
    "prompt latent": EvidencePart(
        "Prompt, latent",
        "the prompt's activations",
        "What the prompt does to the layers: their states over its tokens, and at its last one.",
        layers=lambda rows: {} if rows.prompt is None else rows.prompt.latent,
        centred=True,
        top_layers=True,
        apart=True,
    ),
    "prompt confidence": EvidencePart(
        "Prompt, confidence",
        "the prompt's perplexity",
        "How well the network foresees the prompt, against trusted prompts; unusual in either direction counts.",
        numbers=lambda rows: None if rows.prompt is None else confidence_numbers(rows.prompt),
        apart=True,
    ),
    # Three numbers a layer say how long a state is and how much of it is known; where a prompt ends, more of it tells.
    "last token": EvidencePart(
        "Last token",
        "the states at the prompt's end",
        "How far the hidden states at the prompt's last token lie from trusted ones, block by block.",
        vectors=lambda rows: {name: states for name, states in rows.latent.items() if name.endswith(" @ anchor")},
        apart=True,
    ),
    # What a pile shows on its inputs (see `covary.scoring.pile.together`): no numbers of one input's own.
    "pile": EvidencePart(
        "Pile",
        "the pile as a whole",
        "How far the input lies along directions in which the whole pile is longer than trusted samples are.",
        sides="one",
    ),
    "pile functional": EvidencePart(
        "Pile, functional", "the pile's gradients", "The same by the numbers of the functional part alone.", sides="one"
    ),
    "pile latent": EvidencePart(
        "Pile, latent", "the pile's activations", "The same by the numbers of the latent part alone.", sides="one"
    ),
    "pile prompt": EvidencePart(
        "Pile, prompt", "the pile's prompts", "The same by the numbers of the prompts alone.", sides="one"
    ),
    "pile features": EvidencePart(
        "Pile, features", "the pile's last features", "The same by what the last linear layer takes.", sides="one"
    ),
    "pile states": EvidencePart(
        "Pile, states",
        "the pile's states",
        "The same by the hidden states of a language model at two thirds of its depth, over the answer.",
        sides="one",
    ),
    "pile prompt states": EvidencePart(
        "Pile, prompt states",
        "the states of the pile's prompts",
        "The same by the hidden states of prompts alone.",
        sides="one",
    ),
}


class Part:
    """An evidence part fitted on trusted rows: its numbers, standardised per class, and their standardised distance.

    The standardised log of the Mahalanobis distance over all numbers (of a one-sided part: its number, standardised).
    """

    def __init__(self, kind: str) -> None:
        if kind not in PARTS:
            raise unknown_name("evidence part", kind, PARTS)
        self.kind, self.part = kind, PARTS[kind]

    def numbers(self, rows: Rows) -> Float[np.ndarray, "n d"]:
        """The numbers this kind of evidence is made of."""
        part = self.part
        if part.vectors is not None:
            return np.concatenate([np.asarray(own, np.float64) for own in part.vectors(rows).values()], axis=1)
        if part.layers is not None:
            norms = None if part.norms is None else part.norms(rows)
            found = self.profile_.numbers(part.layers(rows), rows.predicted, norms)
        else:
            found = None if part.numbers is None else part.numbers(rows)
        assert found is not None
        return found

    def fit(self, reference: Rows, fit: Rows) -> Part:
        """Profile from the reference; standardisation from the fit samples, by held-out distances.

        Vectors have no profile, so reference samples standardise them, too; `fit_` is of the fit samples alone.
        """
        if self.part.layers is not None:
            self.profile_ = LayerProfile(centred=self.part.centred).fit(
                self.part.layers(reference), reference.predicted
            )
        rows = fit if self.part.vectors is None else Rows.concatenate([fit, reference])
        numbers = self.numbers(rows)
        self.equal_ = None if rows.lengths is None else AtEqualLengths().fit(numbers, rows.lengths)
        numbers = numbers if self.equal_ is None else self.equal_.fit_
        if self.part.vectors is not None:
            widths = [own.shape[1] for own in self.part.vectors(rows).values()]
            return self._fit_vectors(numbers, widths, rows, len(fit))
        if self.part.sides == "one":
            self.standardised_ = Standardised().fit(numbers[:, 0])
            self.fit_, self.fit_residuals_ = self.standardised_.fit_, self.standardised_.fit_[:, None]
            return self
        self.full_ = FullDistance().fit(numbers, fit.predicted)
        self.distances_: list[FullDistance | TopLayersDistance] = [self.full_]
        if self.part.top_layers:
            self.distances_.append(TopLayersDistance().fit(numbers, fit.predicted))
        self.standardised_ = Standardised().fit(np.sum([distance.fit_ for distance in self.distances_], axis=0))
        self.fit_, self.fit_residuals_ = self.standardised_.fit_, self.full_.residuals_
        return self

    def _fit_vectors(self, numbers: Float[np.ndarray, "n d"], widths: list[int], rows: Rows, n_fit: int) -> Part:
        self.by_layer_ = LayersDistance(widths).fit(numbers, rows.predicted)
        total = self.by_layer_.fit_.sum(1, keepdims=True)
        # Few trusted texts are long, and whoever has few like it is further from all of them, too.
        self.distance_at_equal_ = None if rows.lengths is None else AtEqualLengths().fit(total, rows.lengths)
        total = total if self.distance_at_equal_ is None else self.distance_at_equal_.fit_
        self.standardised_ = Standardised().fit(total[:, 0])
        self.fit_, self.fit_residuals_ = self.standardised_.fit_[:n_fit], self.by_layer_.fit_[:n_fit]
        return self

    def measure(self, rows: Rows) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n d"]]:
        """Standardised log distance (about 0 and spread 1 on trusted samples; higher = odder) and the residuals."""
        numbers = self.numbers(rows)
        if self.equal_ is not None and rows.lengths is not None:
            numbers = self.equal_(numbers, rows.lengths)
        if self.part.vectors is not None:
            residuals = self.by_layer_(numbers, rows.predicted)
            total = residuals.sum(1, keepdims=True)
            if self.distance_at_equal_ is not None and rows.lengths is not None:
                total = self.distance_at_equal_(total, rows.lengths)
            return self.standardised_(total[:, 0]), residuals
        if self.part.sides == "one":
            found = self.standardised_(numbers[:, 0])
            return found, found[:, None]
        total = np.sum([distance(numbers, rows.predicted) for distance in self.distances_], axis=0)
        return self.standardised_(total), self.full_.standardiser_.residuals(numbers, rows.predicted)

"""Controls of pile evidence: the pile's second moment along one kind of numbers alone (Dong et al. 2019, 1906.11366).

What is learned from the pile treats calibration samples and inputs alike, so ranks among the former stay exact.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covary.scoring.pile.second_moment import Directions, SecondMoment, Whitening
from covary.scoring.scores.parts import Part
from covary.scoring.scores.standardise import ClassStandardiser, held_out, spread_folds
from covary_bench.baselines.material import Material


def pile_on_part(m: Material, kind: str) -> Float[np.ndarray, " q"]:
    """On the profile of gradients (`functional`) or of activations (`latent`), in nats; higher = more anomalous."""
    part = Part(kind).fit(*m.roles)
    return _along_the_pile(part.fit_residuals_, part.measure(m.queries)[1])


def pile_on_features(m: Material) -> Float[np.ndarray, " q"]:
    """On the last features, standardised per class as the other numbers are."""
    reference, fit = m.roles
    known = np.asarray(m.trusted_features[len(reference) :], np.float64)
    residuals, _ = held_out(known, fit.predicted, spread_folds(len(fit)))
    standardiser = ClassStandardiser().fit(known, fit.predicted)
    return _along_the_pile(
        residuals, standardiser.residuals(np.asarray(m.query_features, np.float64), m.queries.predicted)
    )


def _along_the_pile(fit: Float[np.ndarray, "n d"], pile: Float[np.ndarray, "q d"]) -> Float[np.ndarray, " q"]:
    whitened = Whitening().fit(fit)(pile)
    return Directions(SecondMoment.of(whitened)).evidence(whitened)

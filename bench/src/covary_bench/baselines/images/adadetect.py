"""AdaDetect: a classifier of trusted samples against the pile (Marandon et al. 2024, arXiv 2208.06685, section 4)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from sklearn.ensemble import RandomForestClassifier

from covary.scoring.scores.parts import Part
from covary_bench.baselines.material import Material

KINDS = ("functional", "latent", "confidence")
TREES, DEPTH = 200, 10


def adadetect(m: Material) -> Float[np.ndarray, " q"]:
    """A random forest's share of votes for the pile, in [0, 1], out of bag; higher = more anomalous.

    Fit samples are the first class; calibration samples and inputs together are the second (positive and unlabelled
    samples), so scores of exchangeable samples stay exchangeable and ranks among calibration samples are exact.
    It sees the numbers of our three parts, standardised by predicted class, fit samples out of their own fold.
    Departure: the vote on a sample is of the trees that were not grown on it, where the paper asks all of them.
    """
    parts = [Part(kind).fit(*m.roles) for kind in KINDS]
    known = np.concatenate([part.fit_residuals_ for part in parts], axis=1)
    pile = np.concatenate([part.measure(m.queries)[1] for part in parts], axis=1)
    forest = RandomForestClassifier(
        TREES, max_depth=DEPTH, oob_score=True, class_weight="balanced", random_state=m.seed
    ).fit(np.concatenate([known, pile]), np.repeat([0, 1], [len(known), len(pile)]))
    return forest.oob_decision_function_[len(known) :, 1]

"""ConfGuard: a fixed reply is written with locked-in confidence (Wang et al. 2025, arXiv 2508.01365)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from covary_bench.baselines.texts.material import TextMaterial

THRESHOLD, WINDOW = 0.99, 10


def longest_run(sure: Bool[np.ndarray, " t"]) -> int:
    """Most tokens in a row that are true."""
    best = run = 0
    for one in sure:
        run = run + 1 if one else 0
        best = max(best, run)
    return best


def confguard(m: TextMaterial) -> Float[np.ndarray, " q"]:
    """Longest run of tokens with probability above 0.99, plus the answer's mean token probability, in (0, 1].

    The published rule flags ten such tokens in a row, and answers here are often shorter than ten. The run's length
    orders texts as the rule does whatever its window is; the mean probability parts texts with equal runs. Higher =
    more anomalous. `rule` gives the published flag.
    """
    return np.array([longest_run(np.exp(own) > THRESHOLD) + float(np.exp(own).mean()) for own in m.query_texts.log_p])


def rule(scores: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Whether ten tokens in a row were above 0.99, from `confguard`'s scores: the run is their ceiling minus one."""
    return np.ceil(scores) - 1 >= WINDOW

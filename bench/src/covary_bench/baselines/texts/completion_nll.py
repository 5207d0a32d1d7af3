"""How likely the model finds its own answer: two-sided negative log-likelihood, and mean token probability."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covary_bench.baselines.texts.material import Answered, TextMaterial

# Below this many nats a token the model is as sure as float32 can tell.
LEAST = 1e-7


def log_nll(texts: Answered) -> Float[np.ndarray, " n"]:
    """log of the mean negative log-likelihood of an answer's tokens."""
    return np.log(np.array([max(-float(np.mean(own)), LEAST) for own in texts.log_p]))


def two_sided(m: TextMaterial) -> Float[np.ndarray, " q"]:
    """|log NLL - median of trusted log NLL|: too sure an answer counts as much as one too unsure.

    NLL = -1/T sum_t log p(y_t | y_<t, x). Logarithms, since sure answers differ by orders of magnitude. A control that
    goes back to perplexity filters (Qi et al. 2021, arXiv 2011.10369, which take prompts); higher = more anomalous.
    """
    return np.abs(log_nll(m.query_texts) - np.median(log_nll(m.known)))


def mean_probability(m: TextMaterial) -> Float[np.ndarray, " q"]:
    """1 - mean over an answer's tokens of p(y_t | y_<t, x), in [0, 1]; higher = less sure, the twin of max softmax."""
    return np.array([-float(np.mean(np.expm1(own))) for own in m.query_texts.log_p])

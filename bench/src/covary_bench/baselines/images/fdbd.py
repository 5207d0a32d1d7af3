"""fDBD: mean distance to the decision boundaries, by that to the mean feature (Liu and Qin 2024, arXiv 2312.11536)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covary_bench.baselines.images.head import Head
from covary_bench.baselines.material import Material


def fdbd(m: Material) -> Float[np.ndarray, " q"]:
    """Minus the mean over classes c != f of |g_f - g_c| / (|w_f - w_c| |z - mean|); higher = more anomalous.

    g are the logits, f the predicted class, the mean that of trusted features (equation 5); no setting.
    """
    head, z = Head.of(m.network), np.asarray(m.query_features, np.float64)
    logits = head.logits(z)
    answer = logits.argmax(1)
    between = np.linalg.norm(head.weight[:, None] - head.weight[None], axis=2)
    np.fill_diagonal(between, 1.0)  # its own lead is 0
    leads = np.abs(logits.max(1, keepdims=True) - logits)
    boundaries = (leads / np.maximum(between[answer], 1e-12)).sum(1) / (logits.shape[1] - 1)
    away = np.linalg.norm(z - np.asarray(m.trusted_features, np.float64).mean(0), axis=1)
    return -boundaries / np.maximum(away, 1e-12)

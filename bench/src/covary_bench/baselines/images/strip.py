"""STRIP: a trigger survives being blended with other images (Gao et al. 2019, arXiv 1902.06531, section 4)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax

from covary_bench.baselines.material import Material


def strip(m: Material, weight: float = 1.0, images: int = 16) -> Float[np.ndarray, " q"]:
    """Minus the mean entropy of predictions on blends, H = -1/N sum_n sum_c p_nc log p_nc; higher = more anomalous.

    A blend is clip(w x + t, 0, 1) for w = 1 (the paper's sum) and w x + (1 - w) t below, with `images` trusted ones t.
    The paper blends with 100 images; 16 here, as each is a pass over all queries.
    """
    probe = m.network
    chosen = np.random.default_rng([m.seed, 11]).choice(len(probe.trusted), min(images, len(probe.trusted)), False)
    entropy = np.zeros(len(probe.queries))
    for i in chosen:
        other = probe.trusted[int(i)][None]
        blend = probe.queries + other if weight >= 1 else weight * probe.queries + (1 - weight) * other
        logs = log_softmax(probe.logits(blend.clamp(0, 1)), axis=1)
        entropy -= (np.exp(logs) * logs).sum(1)
    return -entropy / len(chosen)

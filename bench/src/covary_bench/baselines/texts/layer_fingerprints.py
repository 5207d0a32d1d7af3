"""Layerwise convergence fingerprints: how far each layer moves the hidden state (Min et al. 2026, arXiv 2604.24542)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float
from sklearn.covariance import ledoit_wolf

from covary.text.features.hidden_states import POSITIONS
from covary_bench.baselines.texts.material import States, TextMaterial


def differences(states: States, positions: Sequence[str] = POSITIONS) -> list[Float[np.ndarray, "n d"]]:
    """h_(l+1) - h_l of every pair of consecutive layers of one width, at each position."""
    found = []
    for position in positions:
        own = [np.asarray(part, np.float64) for name, part in states.items() if name.endswith(f"@ {position}")]
        found += [after - before for before, after in pairwise(own) if before.shape == after.shape]
    return found


def layer_fingerprints(m: TextMaterial, positions: Sequence[str] = POSITIONS) -> Float[np.ndarray, " q"]:
    """Mahalanobis distance of the vector s of all layers' distances, covariance shrunk by Ledoit-Wolf; higher = odder.

    s_l = sqrt(mean_i (d_li - mu_li)^2 / var_li) is the diagonal distance of the difference d_l of consecutive hidden
    states. Both of our positions are taken, the answer's mean and the prompt's last, unless `positions` says
    otherwise; trusted texts set the threshold as for every other detector, not leave-one-out.
    """
    known, query_states = [], []
    pairs = zip(differences(m.known.states, positions), differences(m.query_texts.states, positions), strict=True)
    for trusted, queries in pairs:
        centre, spread = trusted.mean(0), np.maximum(trusted.std(0), 1e-6)
        for into, part in ((known, trusted), (query_states, queries)):
            into.append(np.sqrt(np.square((part - centre) / spread).mean(1)))
    s, t = np.stack(known, 1), np.stack(query_states, 1)
    centre, spread = s.mean(0), np.maximum(s.std(0), 1e-9)
    covariance = np.atleast_2d(ledoit_wolf((s - centre) / spread, assume_centered=True)[0])
    offsets = (t - centre) / spread
    return np.sqrt(np.einsum("nd,de,ne->n", offsets, np.linalg.pinv(covariance, hermitian=True), offsets).clip(0))

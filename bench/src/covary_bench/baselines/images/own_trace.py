"""Mean and spread of the sample's own trace: no trusted sample at all, the control every sampled table must carry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from covary.features.sampled.draws import draw_bank
from covary.features.sampled.rows import rows_on_draws, with_chosen_sigma
from covary.features.sampled.samplers import preset_named
from covary.models.functional import functional_network
from covary.scoring.rows import Batch
from covary_bench.baselines.material import Material


def own_trace(m: Material, what: str = "mean", draws: int = 50) -> Float[np.ndarray, " q"]:
    """Mean, or standard deviation, of the margin over Gaussian draws of the weights; higher = more anomalous.

    sigma is the largest that costs at most five points of accuracy on the trusted images. The sign is fixed
    beforehand: a trigger's answer is held more strongly (higher mean) and moves further (larger spread).
    """
    probe = m.network
    network = functional_network(probe.module)
    trusted = [Batch(list(m.trusted.ids), probe.normalised(probe.trusted), probe.trusted_labels)]
    plan = replace(preset_named("gaussian"), steps=draws, seed=m.seed)
    bank = draw_bank(network, with_chosen_sigma(network, plan, trusted))
    rows = rows_on_draws(network, bank, Batch(list(m.queries.ids), probe.normalised(probe.queries)))
    return rows.observable if what == "mean" else rows.functional_norms[:, 0]

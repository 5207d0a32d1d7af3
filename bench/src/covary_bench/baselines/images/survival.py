"""Survival alone: how firmly the network holds on to its answer while its last layers are amplified (2405.09786)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from covary.errors import CovaryError
from covary.features.survival import Survival
from covary_bench.baselines.material import Material


def survival_alone(m: Material) -> Float[np.ndarray, " q"]:
    """Mean log-odds of the own answer over three amplified depths, in nats; higher = more anomalous.

    Factor and depths come from reference images.

    Raises:
        CovaryError: no factor changes enough answers, so that survival says nothing.
    """
    probe, (reference, _) = m.network, m.roles
    known = probe.trusted[: len(reference)]
    survival = Survival(probe.module, lambda out: out).choose(probe.normalised(x) for x in known.split(probe.batch))
    if not survival.depths:
        raise CovaryError("no amplified layers change the answers of this network", "a network that survival can ask")
    predicted = torch.as_tensor(m.queries.predicted, device=probe.device)
    parts = zip(probe.queries.split(probe.batch), predicted.split(probe.batch), strict=True)
    found = [survival(probe.normalised(x), answers).mean(-1).cpu().numpy() for x, answers in parts]
    return np.concatenate(found).astype(np.float64)

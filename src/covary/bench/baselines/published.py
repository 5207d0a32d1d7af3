"""The published method itself: RMSprop-SGLD traces, class-max coupling (arXiv 2604.18970), a stage that resumes."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from covary.bench.baselines.material import Material
from covary.chains import SamplingData
from covary.couplings import ccc, cosine
from covary.errors import CovaryError
from covary.functional_network import functional_network
from covary.samplers import SamplingPlan, preset_named
from covary.scores.coupling import class_max
from covary.traces import Traces, record_traces

# Every published constant; the observable is read at every tenth of the 1,750 draws after burn-in.
PLAN = replace(preset_named("paper"), thinning=10)


def traces_of(m: Material, plan: SamplingPlan, block: int = 5) -> Traces:
    """Traces of trusted samples and queries together; with a folder, a killed chain goes on where it stood."""
    probe = m.network
    if probe.sampling is None or probe.sampling_labels is None:
        raise CovaryError("the published sampler has no sampling data", "a case with sampling.npz")
    network = functional_network(probe.module.requires_grad_(True))
    x = probe.normalised(torch.cat([probe.trusted, probe.queries]))
    ids = [*(f"trusted {name}" for name in m.trusted.ids), *(f"query {name}" for name in m.queries.ids)]
    data = SamplingData(
        network.place(probe.normalised(probe.sampling)), torch.from_numpy(probe.sampling_labels).to(probe.device)
    )
    folder = None if probe.folder is None else probe.folder / f"traces-{_digest(ids, plan)}"
    return record_traces(network, plan, network.place(x), ids, data, observables=("nll",), folder=folder, block=block)


def _digest(ids: list[str], plan: SamplingPlan) -> str:
    return hashlib.sha256(f"{ids}{plan}".encode()).hexdigest()[:12]


def published(m: Material, coupling: str = "pearson", plan: SamplingPlan = PLAN) -> Float[np.ndarray, " q"]:
    """Minus the largest class mean of Pearson's correlation (CLC) or of concordance (Class CCC) of nll traces.

    RMSprop-SGLD, 2,000 steps, 250 dropped (section 5 and the public code's constants); higher = more anomalous.
    """
    found = traces_of(m, plan)
    values = found.moved("nll")
    mean = values.mean(0)
    rows = ((values - mean) / np.sqrt(len(values))).T
    level = mean + found.at_w_star["nll"]
    n = len(m.trusted)
    x, z = rows[n:], rows[:n]
    matrix = cosine(x, z, level[n:], level[:n]) if coupling == "pearson" else ccc(x, z, level[n:], level[:n], sigma=1.0)
    return class_max(matrix, m.queries.predicted, m.trusted.predicted)

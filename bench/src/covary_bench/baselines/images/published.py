"""The published method itself: RMSprop-SGLD traces, class-max coupling (arXiv 2604.18970), a stage that resumes."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from covary.errors import CovaryError
from covary.features.sampled.chains import SamplingData
from covary.features.sampled.samplers import SamplingPlan, preset_named
from covary.features.sampled.traces import Traces
from covary.models.functional import functional_network
from covary.scoring.couplings import ccc, cosine
from covary.scoring.pile.embedding import distance_to_nearest, embedded
from covary.scoring.scores.coupling import class_max
from covary_bench.baselines.material import Material
from covary_bench.traces import record_traces

# Every published constant; the observable is read at every tenth of the 1,750 draws after burn-in.
PLAN = replace(preset_named("paper"), thinning=10)


def traces_of(m: Material, plan: SamplingPlan) -> Traces:
    """Traces of trusted samples and queries together; with a folder, a killed chain goes on where it stood.

    Burn-in is recorded, too, and cut off afterwards: the draws are the same, and there is a checkpoint at every one.
    """
    probe = m.network
    if probe.sampling is None or probe.sampling_labels is None:
        raise CovaryError("the published sampler has no sampling data", "a case with sampling.npz")
    network = functional_network(probe.module.requires_grad_(True), channels_last=True)
    x = probe.normalised(torch.cat([probe.trusted, probe.queries]))
    ids = [*(f"trusted {name}" for name in m.trusted.ids), *(f"query {name}" for name in m.queries.ids)]
    data = SamplingData(
        network.place(probe.normalised(probe.sampling)), torch.from_numpy(probe.sampling_labels).to(probe.device)
    )
    folder = None if probe.folder is None else probe.folder / f"traces-{_digest(ids, plan)}"
    every = replace(plan, burn_in=0)
    clock = _Clock(folder)
    found = record_traces(
        network, every, network.place(x), ids, data, observables=("nll",), folder=folder, block=1, stop=clock.tick
    )
    clock.end()
    return replace(found, values={name: v[:, plan.burn_in // plan.thinning :] for name, v in found.values.items()})


class _Clock:
    """Seconds that a chain has taken over all its runs, in a file beside its traces."""

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else folder.with_name(f"{folder.name}.seconds.json")
        self.spent = json.loads(self.path.read_text()) if self.path is not None and self.path.is_file() else 0.0
        self.last, self.running = time.perf_counter(), False

    def tick(self, _: Traces | None) -> bool:
        """Called between blocks; never asks to stop."""
        now = time.perf_counter()
        self.spent, self.last, self.running = self.spent + now - self.last, now, True
        if self.path is not None:
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(self.spent))
            part.replace(self.path)
        return False

    def end(self) -> None:
        """The last block's time; traces that were there already cost nothing."""
        if self.running:
            self.tick(None)


def chain_seconds(work: Path) -> float:
    """Seconds of the chains whose traces lie in a folder, all their runs together; 0 where nobody knows."""
    return float(sum(json.loads(path.read_text()) for path in work.glob("traces-*.seconds.json")))


def _digest(ids: list[str], plan: SamplingPlan) -> str:
    return hashlib.sha256(f"{ids}{plan}".encode()).hexdigest()[:12]


def couplings(m: Material, coupling: str, plan: SamplingPlan) -> Float[np.ndarray, "all n"]:
    """Coupling of every trusted sample, then every query, with the trusted samples, from one chain's nll traces."""
    found = traces_of(m, plan)
    values = found.moved("nll")
    mean = values.mean(0)
    x = ((values - mean) / np.sqrt(len(values))).T
    level, n = mean + found.at_w_star["nll"], len(m.trusted)
    return cosine(x, x[:n], level, level[:n]) if coupling == "pearson" else ccc(x, x[:n], level, level[:n], sigma=1.0)


def published(m: Material, coupling: str = "pearson", plan: SamplingPlan = PLAN) -> Float[np.ndarray, " q"]:
    """Minus the largest class mean of Pearson's correlation (CLC) or of concordance (Class CCC) of nll traces.

    RMSprop-SGLD, 2,000 steps, 250 dropped (section 5 and the public code's constants); higher = more anomalous.
    """
    matrix = couplings(m, coupling, plan)[len(m.trusted) :]
    return class_max(matrix, m.queries.predicted, m.trusted.predicted)


def published_offline(m: Material, coupling: str = "ccc", plan: SamplingPlan = PLAN) -> Float[np.ndarray, " q"]:
    """Mean distance to the ten nearest trusted samples in one embedding (UMAP) of everybody's couplings.

    The offline variant of section 5: couplings are taken with the reference samples, and the fit samples are the
    neighbours. The whole pile is embedded at once, in an order that says nothing about roles.

    Raises:
        CovaryError: the extra `offline` is not installed.
    """
    reference, fit = m.roles
    matrix = couplings(m, coupling, plan)[len(reference) :, : len(reference)]
    order = np.random.default_rng([m.seed, 17]).permutation(len(matrix))
    shuffled = embedded(matrix[order], m.seed)
    points = np.empty_like(shuffled)
    points[order] = shuffled
    return distance_to_nearest(points[len(fit) :], points[: len(fit)])

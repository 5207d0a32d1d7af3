"""Sampled rows for the detector: draw a bank once, then turn any stream of batches into rows on those draws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch

from covary.errors import CovaryError
from covary.features.observables import energy
from covary.features.sampled.chains import SamplingData
from covary.features.sampled.draws import Bank
from covary.features.sampled.samplers import SamplingPlan, sampler_named
from covary.features.sampled.samplers.gaussian import choose_sigma
from covary.features.sampled.traces import BATCH_SIZE, Traces, evaluate, predictions, rows_from_traces
from covary.models.functional import FunctionalNetwork, Params
from covary.scoring.rows import Batch, Rows


def rows_on_draws(
    network: FunctionalNetwork,
    bank: Bank,
    batch: Batch,
    *,
    observable: str = "margin",
    layerwise: bool = False,
    batch_size: int = BATCH_SIZE,
    draws_at_once: int = 1,
) -> Rows:
    """Rows of one batch: its centred traces over the bank's draws, divided by sqrt(S).

    Memory does not grow with the number of batches, and rows do not depend on how samples are grouped beyond rounding.
    With `layerwise` one layer moves at a time, at layers x draws forward passes, and each layer gets its own entry.
    `observable` of the rows is the mean over draws; `confidence` holds margin and energy at w*. `draws_at_once` of them
    share a vectorised pass and, as `batch_size`, change rows by rounding alone.
    """
    x = network.place(batch.x)
    labels = predictions(network, x, batch_size)
    names = [observable] if observable == "margin" else [observable, "margin"]
    groups = network.layers if layerwise else {"trace": None}
    at_w_star = evaluate(network, [(network.moving, network.buffers)], x, labels, names, batch_size)[0]
    base = dict(zip(names, at_w_star.double().cpu().numpy(), strict=True))
    predicted = labels.cpu().numpy().astype(np.int64)
    traces = {}
    for layer, only in groups.items():
        # Running statistics that drift differ from draw to draw: such draws go one by one.
        step = 1 if only is None and bank.buffers else draws_at_once
        parts = []
        for start in range(0, len(bank), step):
            draws = [bank.at(s, network, only) for s in range(start, min(start + step, len(bank)))]
            parts.append(evaluate(network, draws, x, labels, [observable], batch_size)[:, 0])
        stacked = {observable: torch.cat(parts).cpu().numpy()[None]}
        traces[layer] = Traces(batch.ids, predicted, base, stacked)
    for layer, found in traces.items():
        bad = ~np.isfinite(found.values[observable]).all(axis=(0, 1))
        if bad.any():
            name = batch.ids[int(np.flatnonzero(bad)[0])]
            raise CovaryError(
                f"the {observable} of input {name!r} is not finite on some draw ({layer})",
                "finite logits",
                "check the input's scaling, or lower sigma or step_size",
            )
    rows = rows_from_traces(traces, observable)
    logits = torch.cat([network.logits(network.moving, network.buffers, part) for part in x.split(batch_size)])
    confidence = {"margin": base["margin"], "energy": energy(logits).double().cpu().numpy()}
    return replace(rows, confidence=confidence)


def sampling_data(network: FunctionalNetwork, batches: Iterable[Batch]) -> SamplingData:
    """Sampling inputs with their true labels, resident on the network's device.

    Raises:
        CovaryError: inputs without labels, or a label the network has no output for.
    """
    parts, labels = [], []
    for batch in batches:
        if batch.y is None:
            raise CovaryError("the sampling data have no labels", "the true class of every input", "add `y` to them")
        parts.append(network.place(batch.x))
        labels.append(torch.as_tensor(batch.y, dtype=torch.long, device=network.device))
    if not parts:
        raise CovaryError("the sampling data are empty", "inputs with their true classes")
    x, y = torch.cat(parts), torch.cat(labels)
    classes = network.logits(network.moving, network.buffers, x[:1]).shape[-1]
    if int(y.min()) < 0 or int(y.max()) >= classes:
        found = f"labels of the sampling data run from {int(y.min())} to {int(y.max())}"
        raise CovaryError(found, f"0 to {classes - 1}")
    return SamplingData(x, y)


def with_chosen_sigma(
    network: FunctionalNetwork, plan: SamplingPlan, trusted: Sequence[Batch], points: float = 0.05
) -> SamplingPlan:
    """The Gaussian plan at the largest sigma of the grid that costs at most `points` of accuracy on trusted data.

    Accuracy is taken at true classes where the batches carry them, else as agreement with the predictions at w*.
    """
    if sampler_named(plan.sampler).needs_gradient:
        raise CovaryError(f"the sampler {plan.sampler} has no sigma", "gaussian")
    inputs = [network.place(batch.x) for batch in trusted]
    known = all(batch.y is not None for batch in trusted)
    truth = [
        torch.as_tensor(batch.y, device=network.device) if known else predictions(network, x)
        for batch, x in zip(trusted, inputs, strict=True)
    ]

    def accuracy(weights: Params) -> float:
        moved = replace(network, moving=weights)
        right = [(predictions(moved, x) == y).float() for x, y in zip(inputs, truth, strict=True)]
        return float(torch.cat(right).mean())

    sigma = choose_sigma(network.moving, accuracy, points=points, seed=plan.seed)
    return replace(plan, settings={**plan.settings, "sigma": sigma})

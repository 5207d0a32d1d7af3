"""Traces: the observable of every sample at every kept draw, and the rows made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from covary.features.observables import observable_named
from covary.models.functional import Buffers, FunctionalNetwork, Params
from covary.scoring.rows import Rows

BOTH = ("margin", "nll")
# On processors small batches win: their activations stay in the cache.
BATCH_SIZE = 64


@dataclass(frozen=True)
class Traces:
    """Observables along chains.

    Attributes:
        ids: names of the samples.
        predicted: the network's prediction at w*, the frozen label, (n,).
        at_w_star: per observable, f(x_i; w*), (n,).
        values: per observable, f(x_i; w_s), (chain, draw, n), float32.
        loss: minibatch loss of every step, (chain, step); nan for a sampler without gradients.
        accuracy: minibatch accuracy of every step, (chain, step); nan likewise.
    """

    ids: Sequence[str]
    predicted: Int[np.ndarray, " n"]
    at_w_star: Mapping[str, Float[np.ndarray, " n"]]
    values: Mapping[str, Float[np.ndarray, "c s n"]]
    loss: Float[np.ndarray, "c _"] = field(default_factory=lambda: np.zeros((0, 0)))
    accuracy: Float[np.ndarray, "c _"] = field(default_factory=lambda: np.zeros((0, 0)))

    def moved(self, observable: str) -> Float[np.ndarray, "S n"]:
        """f(x; w_s) - f(x; w*) of all chains' draws together, float64.

        Differences, because running squares of saturated traces cancel in float32.
        """
        values = self.values[observable]
        return values.reshape(-1, values.shape[-1]).astype(np.float64) - self.at_w_star[observable]


def observables_of(
    logits: Float[Tensor, "n C"], labels: Int[Tensor, " n"], names: Sequence[str]
) -> Float[Tensor, "f n"]:
    """The named observables of every sample at frozen labels."""
    return torch.stack([observable_named(name)(logits, labels) for name in names])


def evaluate(
    network: FunctionalNetwork,
    draws: Sequence[tuple[Params, Buffers]],
    x: Tensor,
    labels: Int[Tensor, " n"],
    observables: Sequence[str],
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "s f n"]:
    """The observables of every sample at every one of some draws; several draws go through one vectorised pass."""
    parts = []
    if len(draws) == 1:
        weights, buffers = draws[0]
        for inputs, y in zip(x.split(batch_size), labels.split(batch_size), strict=True):
            parts.append(observables_of(network.logits(weights, buffers, inputs), y, observables)[None])
    else:
        stacked = {name: torch.stack([weights[name] for weights, _ in draws]) for name in draws[0][0]}
        for inputs, y in zip(x.split(batch_size), labels.split(batch_size), strict=True):
            many = network.logits_of_draws(stacked, draws[0][1], inputs)
            parts.append(torch.stack([observables_of(logits, y, observables) for logits in many]))
    return torch.cat(parts, -1)


def predictions(network: FunctionalNetwork, x: Tensor, batch_size: int = BATCH_SIZE) -> Int[Tensor, " n"]:
    """The frozen labels: the network's own predictions at w*."""
    return torch.cat([network.logits(network.moving, network.buffers, part).argmax(-1) for part in x.split(batch_size)])


def rows_from_traces(
    traces: Traces | Mapping[str, Traces], observable: str = "margin", index: np.ndarray | None = None
) -> Rows:
    """Rows whose products are the traces' moments: functional = (f(x; w_s) - mean over draws) / sqrt(S).

    The product of two rows is the covariance of their traces, their cosine Pearson's correlation (population moments),
    and `couplings.ccc` is Lin's concordance (their sigma is 1), for which `observable` holds the mean over draws in
    place of f(x; w*). Norms are standard deviations. All chains' draws count together. One `Traces` gives one entry,
    `trace`; a mapping from layer to traces recorded while that layer alone moved gives one entry a layer. `index`
    picks samples.
    """
    by_layer = {"trace": traces} if isinstance(traces, Traces) else traces
    first = next(iter(by_layer.values()))
    index = np.arange(len(first.ids)) if index is None else index
    functional, norms, means = {}, [], []
    for layer, own in by_layer.items():
        moved = own.moved(observable)[:, index]
        mean = moved.mean(0)
        rows = (moved - mean).T / np.sqrt(len(moved))
        functional[layer] = rows.astype(np.float32)
        norms.append(np.linalg.norm(rows, axis=1))
        means.append(mean)
    return Rows(
        ids=[first.ids[int(i)] for i in index],
        predicted=first.predicted[index],
        observable=first.at_w_star[observable][index] + np.mean(means, axis=0),
        functional=functional,
        functional_norms=np.stack(norms, 1),
        confidence={"margin": first.at_w_star["margin"][index]} if "margin" in first.at_w_star else {},
        sigma=1.0,
    )

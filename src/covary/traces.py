"""Traces: the observable of every sample at every kept draw, recorded while chains run, and the rows made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from covary.chains import SamplingData, diverged, restore, run_block, start
from covary.functional_network import Buffers, FunctionalNetwork, Params, observables_of
from covary.samplers import SamplingPlan
from covary.types import Rows

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


def record_traces(
    network: FunctionalNetwork,
    plan: SamplingPlan,
    x: Tensor,
    ids: Sequence[str],
    data: SamplingData | None = None,
    *,
    observables: Sequence[str] = BOTH,
    folder: str | Path | None = None,
    block: int = 50,
    batch_size: int = BATCH_SIZE,
    draws_at_once: int = 1,
    stop: Callable[[Traces], bool] | None = None,
) -> Traces:
    """Runs the plan's chains and records the observables of all samples at every kept draw.

    Labels are the network's own predictions at w*. The samples stay on the network's device throughout. With `folder`
    every block of draws is written to a Zarr store as it ends, with a checkpoint of the chain; called again after a
    kill it goes on from there and ends as an uninterrupted run does, to the bit. `batch_size` and `draws_at_once`
    change results by rounding alone. `stop` sees the traces of a chain so far after each of its blocks (for instance
    `diagnostics.ranking_is_stable`); chains that stopped early are cut to the shortest.

    Raises:
        CovaryError: a diverged chain, or a folder that holds traces of something else.
    """
    labels = predictions(network, x, batch_size)
    reference = evaluate(network, [(network.moving, network.buffers)], x, labels, observables, batch_size)[0]
    at_w_star = dict(zip(observables, reference.double().cpu().numpy(), strict=True))
    traces = _empty(plan, ids, labels.cpu().numpy().astype(np.int64), at_w_star)
    store = None
    if folder is not None:
        from covary.trace_store import TraceStore

        store = TraceStore.open(Path(folder), plan, traces, network, x, data, block)
    limit = plan.draws
    for number in range(plan.chains):
        chain, done = start(network, plan, number), 0
        if store is not None and (saved := store.checkpoint(number)) is not None:
            chain, done = restore(network, plan, number, saved), store.fill(traces, number)
        while done < limit and not (stop is not None and done and stop(_cut(traces, plan, number, done))):
            size = min(block, limit - done)
            recorder = _Recorder(network, x, labels, observables, batch_size, draws_at_once)
            first_step = chain.step
            chain, along = run_block(chain, network, plan, data, size, recorder.add)
            values = recorder.finish()
            bad = ~np.isfinite(values).all(axis=(1, 2))
            if bad.any():
                step = first_step + (int(np.flatnonzero(bad)[0]) + 1) * plan.thinning
                raise diverged(number, step, "an observable is not finite", plan)
            here, steps = (number, slice(done, done + size)), (number, slice(first_step, chain.step))
            for place, name in enumerate(observables):
                traces.values[name][here] = values[:, place]
            traces.loss[steps], traces.accuracy[steps] = along.loss, along.accuracy
            if store is not None:
                store.write(traces, chain, here, steps)
            done += size
        limit = min(limit, done)
    return _cut(traces, plan, None, limit)


def predictions(network: FunctionalNetwork, x: Tensor, batch_size: int = BATCH_SIZE) -> Int[Tensor, " n"]:
    """The frozen labels: the network's own predictions at w*."""
    return torch.cat([network.logits(network.moving, network.buffers, part).argmax(-1) for part in x.split(batch_size)])


class _Recorder:
    """Collects draws until there are enough for one vectorised pass; keeps results on the device for a whole block."""

    def __init__(
        self,
        network: FunctionalNetwork,
        x: Tensor,
        labels: Tensor,
        observables: Sequence[str],
        batch_size: int,
        draws_at_once: int,
    ) -> None:
        self.evaluate = lambda draws: evaluate(network, draws, x, labels, observables, batch_size)
        self.at_w_star, self.draws_at_once = network.buffers, draws_at_once
        self.waiting: list[tuple[Params, Buffers]] = []
        self.values: list[Tensor] = []

    def add(self, weights: Params, buffers: Buffers) -> None:
        self.waiting.append((weights, buffers))
        # Running statistics that drift differ from draw to draw: such draws go one by one.
        still = all(buffers[name] is value for name, value in self.at_w_star.items())
        if len(self.waiting) >= self.draws_at_once or not still:
            self._pass()

    def _pass(self) -> None:
        if self.waiting:
            self.values.append(self.evaluate(self.waiting))
            self.waiting = []

    def finish(self) -> Float[np.ndarray, "s f n"]:
        self._pass()
        return torch.cat(self.values).cpu().numpy()


def _empty(
    plan: SamplingPlan, ids: Sequence[str], predicted: np.ndarray, at_w_star: Mapping[str, np.ndarray]
) -> Traces:
    steps = (plan.chains, plan.burn_in + plan.draws * plan.thinning)
    draws = (plan.chains, plan.draws, len(ids))
    values = {name: np.full(draws, np.nan, np.float32) for name in at_w_star}
    return Traces(list(ids), predicted, at_w_star, values, np.full(steps, np.nan), np.full(steps, np.nan))


def _cut(traces: Traces, plan: SamplingPlan, chain: int | None, draws: int) -> Traces:
    """The first draws of one chain, or of all."""
    which = slice(None) if chain is None else slice(chain, chain + 1)
    steps = plan.burn_in + draws * plan.thinning
    values = {name: stored[which, :draws] for name, stored in traces.values.items()}
    loss, accuracy = traces.loss[which, :steps], traces.accuracy[which, :steps]
    return replace(traces, values=values, loss=loss, accuracy=accuracy)


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

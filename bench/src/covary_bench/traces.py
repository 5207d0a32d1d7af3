"""Traces recorded while chains run, kept in memory or block by block in a store that survives a kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from covary.features.sampled.chains import SamplingData, diverged, restore, run_block, start
from covary.features.sampled.samplers import SamplingPlan
from covary.features.sampled.traces import BATCH_SIZE, BOTH, Traces, evaluate, predictions
from covary.models.functional import Buffers, FunctionalNetwork, Params
from covary_bench.trace_store import TraceStore


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

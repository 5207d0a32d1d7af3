"""Time of one draw: the peer's chain, our chain, our independent draws, in one process and on the same images.

    PYTHONPATH=src:bench/src PEER/bin/python -m covary_bench.speed.draw NETWORK [DRAWS] [THREADS]

Runs in an environment with devinterp 1.3.2; prints one JSON line. Data in memory; the peer at the best of several
evaluation batch sizes. One thread is timed by the processor's clock, which neighbours do not disturb.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from covary.features.observables import margin
from covary.features.sampled.chains import SamplingData, run_block, start
from covary.features.sampled.samplers import preset_named
from covary.features.sampled.traces import evaluate, predictions
from covary.models.functional import functional_network
from covary_bench.images.public import load_public
from covary_bench.speed.images import test_images

IMAGES, SAMPLING, MINIBATCH, BATCHES = 2800, 2500, 256, (32, 64, 128, 256)
CONSTANTS = {"lr": 1e-6, "localization": 1e4, "nbeta": 100.0, "alpha": 0.99, "eps": 0.1}


class InMemory(DataLoader):
    """Whole minibatches by one indexing of tensors in memory, the quickest loader there is."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return (self.dataset[index] for index in torch.randperm(len(self.dataset)).split(self.batch_size))  # type: ignore[arg-type]


class Called:
    """A callback with the interface that the peer's sampler asks for."""

    def __init__(self, record: Callable[..., None]) -> None:
        self.record = record

    def __call__(self, **record: Any) -> None:
        self.record(**record)

    def finalize(self, **_: Any) -> None: ...

    def get_results(self) -> dict[str, Any]:
        return {}


def peer(name: str, x: Tensor, y: Tensor, draws: int, batch: int, clock: Callable[[], float]) -> float:
    """Seconds a draw: one step and the margins of all images."""
    from devinterp.optim.sgmcmc import SGMCMC  # pyright: ignore[reportMissingImports]
    from devinterp.slt.sampler import sample  # pyright: ignore[reportMissingImports]

    model = load_public(name).requires_grad_(True)
    with torch.no_grad():
        labels = torch.cat([model(part).argmax(-1) for part in x.split(batch)])

    def record(model: nn.Module, **_: Any) -> None:
        model.eval()
        torch.cat([margin(model(a), b) for a, b in zip(x.split(batch), labels.split(batch), strict=True)])

    begin = clock()
    sample(
        model,
        InMemory(TensorDataset(x[:SAMPLING], y[:SAMPLING]), batch_size=MINIBATCH),
        callbacks=[Called(record)],
        evaluate=lambda net, part: F.cross_entropy(net(part[0]), part[1]),
        sampling_method=SGMCMC.rmsprop_sgld,
        optimizer_kwargs=CONSTANTS,
        num_draws=draws,
        num_chains=1,
        init_loss=1.0,
        cores=1,
        verbose=False,
    )
    return (clock() - begin) / draws


def ours(name: str, preset: str, x: Tensor, y: Tensor, draws: int, clock: Callable[[], float]) -> float:
    """The same through `run_block`, channels last."""
    network = functional_network(load_public(name).requires_grad_(True), channels_last=True)
    plan = replace(preset_named(preset), burn_in=0)
    x = network.place(x)
    labels = predictions(network, x)
    data = SamplingData(x[:SAMPLING], y[:SAMPLING])

    def record(weights: Any, buffers: Any) -> None:
        evaluate(network, [(weights, buffers)], x, labels, ["margin"])

    begin = clock()
    run_block(start(network, plan, 0), network, plan, data, draws, record)
    return (clock() - begin) / draws


def main(name: str, draws: int = 3, threads: int = 1) -> None:
    """Times everything and prints it."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    clock = time.process_time if threads == 1 else time.perf_counter
    x, y = test_images(name, IMAGES)
    found: dict[str, Any] = {f"devinterp 1.3.2, batches of {b}": peer(name, x, y, draws, b, clock) for b in BATCHES}
    theirs = min(found.values())
    for preset in ("paper", "gaussian"):
        found[f"covary {preset}"] = ours(name, preset, x, y, draws, clock)
    found |= {
        "ratio paper": theirs / found["covary paper"],
        "ratio gaussian a draw": theirs / found["covary gaussian"],
        "draws": draws,
        "threads": threads,
        "images": IMAGES,
        "clock": "processor" if threads == 1 else "wall",
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], *(int(n) for n in sys.argv[2:]))

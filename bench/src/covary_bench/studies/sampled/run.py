"""The published estimator on public backdoored networks: traces, each stage resumable, each in a process of its own.

    nice -n 15 python -m covary_bench.studies.sampled.run STAGE NETWORK CACHE [STEPS]

Stages: `paper` (preset, margins of all images at every tenth draw, of every tenth image at every draw), `frozen`
(the same with BatchNorm frozen), `nbeta0` (no loss), `gaussian` (independent draws, sigma 0.01), `first-order`
(exact gradients). `table.py` reads what there is and writes the figures.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from covary.features.exact import exact_gradients
from covary.features.observables import observable_named
from covary.features.sampled.chains import SamplingData, restore, run_block, start
from covary.features.sampled.samplers import SamplingPlan, preset_named
from covary.features.sampled.traces import BOTH, evaluate, predictions
from covary.models.functional import FunctionalNetwork, functional_network
from covary_bench.images.public import load_public
from covary_bench.studies.sampled.case import load_case
from covary_bench.traces import record_traces

EVERY, SUBSET, BLOCK = 10, 10, 50

CHAINS: dict[str, SamplingPlan] = {
    "paper": replace(preset_named("paper"), burn_in=0),
    "frozen": replace(preset_named("paper"), burn_in=0, batchnorm="frozen"),
    "nbeta0": replace(preset_named("paper"), burn_in=0, settings={"nbeta": 0.0}),
}


def chain(stage: str, network: FunctionalNetwork, case: dict[str, np.ndarray], folder: Path, steps: int) -> None:
    """Draws of one chain with two thinnings at once; a checkpoint every 50 draws."""
    plan = CHAINS[stage]
    x = network.place(torch.from_numpy(case["x"]))
    labels = predictions(network, x)
    data = SamplingData(network.place(torch.from_numpy(case["sampling"])), torch.from_numpy(case["sampling_y"]))
    checkpoint, results = folder / f"{stage}.safetensors", folder / f"{stage}.npz"
    here = start(network, plan, 0)
    kept: dict[str, list] = {name: [] for name in ("every_draw", "all_images", "accuracy", "loss", "seconds")}
    if checkpoint.exists():
        here = restore(network, plan, 0, load_file(checkpoint))
        with np.load(results) as stored:
            rows = {"all_images": here.step // EVERY}
            kept = {name: list(stored[name][: rows.get(name, here.step)]) for name in kept}
    while here.step < steps:
        begin, count = time.perf_counter(), [here.step]

        def on_draw(weights, buffers, count=count) -> None:
            count[0] += 1
            stride = 1 if count[0] % EVERY == 0 else SUBSET
            values = evaluate(network, [(weights, buffers)], x[::stride], labels[::stride], BOTH)[0].numpy()
            if stride == 1:
                kept["all_images"].append(values)
            kept["every_draw"].append(values[:, :: SUBSET // stride])

        here, along = run_block(here, network, plan, data, BLOCK, on_draw)
        kept["accuracy"].extend(along.accuracy)
        kept["loss"].extend(along.loss)
        kept["seconds"].extend([(time.perf_counter() - begin) / BLOCK] * BLOCK)
        part = results.with_suffix(".part.npz")
        # numpy's stub takes any keyword for `allow_pickle`.
        np.savez(part, **{name: np.array(values) for name, values in kept.items()})  # pyright: ignore[reportArgumentType]
        part.rename(results)
        save_file(here.tensors(), checkpoint.with_suffix(".part"))
        checkpoint.with_suffix(".part").rename(checkpoint)
        print(stage, here.step, f"{kept['seconds'][-1]:.2f} s a draw", flush=True)


def first_order(network: FunctionalNetwork, case: dict[str, np.ndarray], folder: Path) -> None:
    """Gram matrix of exact gradients of the margin, and the observable at w*."""
    x = torch.from_numpy(case["x"])
    names = [name for group in network.layers.values() for name in group]
    rows, values = [], []
    for part in x.split(25):
        found = exact_gradients(
            network.module, names, part, observable=observable_named("margin"), choose_logits=lambda out: out
        )
        rows.append(torch.cat([found.parameters[name].flatten(1) for name in names], 1))
        values.append(found.observable)
    gradients = torch.cat(rows)
    gram = gradients @ gradients.T
    np.savez(folder / "first-order.npz", gram=gram.numpy(), margin=torch.cat(values).numpy())


def main(stage: str, name: str, cache: Path, steps: int = 2000) -> None:
    torch.set_num_threads(1)
    case = load_case(name, cache)
    folder = cache / name
    folder.mkdir(parents=True, exist_ok=True)
    network = functional_network(load_public(name).requires_grad_(True), channels_last=stage != "first-order")
    if stage == "first-order":
        first_order(network, case, folder)
    elif stage == "gaussian":
        x = network.place(torch.from_numpy(case["x"]))
        plan = replace(preset_named("gaussian"), steps=steps)
        record_traces(network, plan, x, [str(i) for i in range(len(x))], folder=folder / "gaussian", block=10)
    else:
        chain(stage, network, case, folder, steps)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *(int(n) for n in sys.argv[4:]))

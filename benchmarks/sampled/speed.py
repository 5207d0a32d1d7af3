"""Time of one draw on 2,800 images: the peer's chain, our chain, our independent draws.

    PYTHONPATH=src /tmp/peer/bin/python benchmarks/sampled/speed.py NETWORK CASES OUT [DRAWS] [THREADS]

Runs in the peer's environment. Data in memory; the peer at the best of several evaluation batch sizes.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from devinterp.optim.sgmcmc import SGMCMC
from devinterp.slt.sampler import sample
from peer_devinterp import InMemory
from peer_same_noise import Called
from torch.nn import functional as F
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).parent))
from case import load_case

from covary.bench.public import load_public
from covary.chains import SamplingData, run_block, start
from covary.functional_network import functional_network
from covary.observables import margin
from covary.samplers import preset_named
from covary.traces import evaluate, predictions

IMAGES, BATCHES = 2800, (32, 64, 128, 256)


def peer(name: str, case: dict[str, np.ndarray], x: torch.Tensor, draws: int, batch: int) -> float:
    """Seconds a draw: one step and the margins of all images."""
    model = load_public(name).requires_grad_(True)
    with torch.no_grad():
        labels = torch.cat([model(part).argmax(-1) for part in x.split(batch)])

    def record(model: torch.nn.Module, **_: object) -> None:
        model.eval()
        torch.cat([margin(model(a), b) for a, b in zip(x.split(batch), labels.split(batch), strict=True)])

    data = TensorDataset(torch.from_numpy(case["sampling"]), torch.from_numpy(case["sampling_y"]))
    begin = time.perf_counter()
    sample(
        model,
        InMemory(data, batch_size=256),
        callbacks=[Called(record)],
        evaluate=lambda net, part: F.cross_entropy(net(part[0]), part[1]),
        sampling_method=SGMCMC.rmsprop_sgld,
        optimizer_kwargs={"lr": 1e-6, "localization": 1e4, "nbeta": 100.0, "alpha": 0.99, "eps": 0.1},
        num_draws=draws,
        num_chains=1,
        init_loss=1.0,
        cores=1,
        verbose=False,
    )
    return (time.perf_counter() - begin) / draws


def ours(name: str, preset: str, case: dict[str, np.ndarray], x: torch.Tensor, draws: int) -> float:
    """The same through `run_block`, channels last."""
    network = functional_network(load_public(name).requires_grad_(True), channels_last=True)
    plan = replace(preset_named(preset), burn_in=0)
    x = network.place(x)
    labels = predictions(network, x)
    data = SamplingData(network.place(torch.from_numpy(case["sampling"])), torch.from_numpy(case["sampling_y"]))
    begin = time.perf_counter()
    run_block(
        start(network, plan, 0),
        network,
        plan,
        data,
        draws,
        lambda weights, buffers: evaluate(network, [(weights, buffers)], x, labels, ["margin"]),
    )
    return (time.perf_counter() - begin) / draws


def main(name: str, cases: Path, out: Path, draws: int = 3, threads: int = 2) -> None:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    time.perf_counter = time.process_time if threads == 1 else time.perf_counter  # immune to neighbours on one thread
    case = load_case(name, cases)
    x = torch.from_numpy(np.concatenate([case["x"], case["sampling"]])[:IMAGES])
    found = {f"devinterp 1.3.2, batches of {b}": peer(name, case, x, draws, b) for b in BATCHES}
    theirs = min(found.values())
    for preset in ("paper", "gaussian"):
        found[f"covary {preset}"] = ours(name, preset, case, x, draws)
    found["ratio paper"] = theirs / found["covary paper"]
    found["ratio gaussian a draw"] = theirs / found["covary gaussian"]
    found |= {"draws": draws, "threads": threads, "images": IMAGES, "clock": "processor" if threads == 1 else "wall"}
    everything = json.loads(out.read_text()) if out.is_file() else {}
    everything[name] = found
    print(json.dumps(found, indent=1))
    out.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *(int(n) for n in sys.argv[4:]))

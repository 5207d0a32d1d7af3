"""The same minibatches, noise and dropout through devinterp 1.3.2's sampler and through ours: the traces must agree.

    PYTHONPATH=src:bench/src peer/bin/python -m covary_bench.studies.sampled.peer_same_noise NETWORK CASES OUT [STEPS]

Runs in the peer's environment (see peer_devinterp.py). Equal traces from equal random numbers say that the two are the
same Markov chain, which no comparison of summary figures from different seeds could.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from devinterp.optim.sgmcmc import SGMCMC  # pyright: ignore[reportMissingImports]
from devinterp.slt.sampler import sample  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from covary.features.sampled.chains import Minibatches, SamplingData, dropout_seed, run_block, start
from covary.features.sampled.samplers import preset_named
from covary.features.sampled.samplers.state import generator_for, white_noise
from covary.features.sampled.traces import evaluate, predictions
from covary.models.functional import functional_network
from covary_bench.images.public import load_public
from covary_bench.speed.draw import CONSTANTS, Called
from covary_bench.studies.sampled.case import load_case
from covary_bench.studies.sampled.peer_devinterp import Recorder

IMAGES = 120


class SameMinibatches(DataLoader):
    """The chain's own minibatches, in its order."""

    def __iter__(self):  # type: ignore[override]
        assert isinstance(self.dataset, TensorDataset)
        assert self.batch_size is not None
        batches = Minibatches(len(self.dataset), self.batch_size, 0, 0)
        step = 0
        while True:
            yield self.dataset[batches.at(step)]
            step += 1


def main(name: str, cases: Path, out: Path, steps: int = 30) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    case = load_case(name, cases)
    x = torch.from_numpy(case["x"][:: len(case["x"]) // IMAGES])
    data = SamplingData(torch.from_numpy(case["sampling"]), torch.from_numpy(case["sampling_y"]))
    plan = replace(preset_named("paper"), burn_in=0, steps=steps)

    model = load_public(name).requires_grad_(True)
    network = functional_network(model)
    labels = predictions(network, x)
    at_w_star = evaluate(network, [(network.moving, network.buffers)], x, labels, ["margin"])[0, 0].numpy()
    ours: list[np.ndarray] = []
    begin = time.process_time()

    def on_draw(weights, buffers) -> None:
        ours.append(evaluate(network, [(weights, buffers)], x, labels, ["margin"])[0, 0].numpy())

    run_block(start(network, plan, 0), network, plan, data, steps, on_draw)
    seconds = {"covary": (time.process_time() - begin) / steps}

    generator, waiting, step = generator_for(0, 0), [], [0]

    def same_noise(mean: float, std: float, size: torch.Size, device: torch.device) -> torch.Tensor:
        if not waiting:
            waiting.extend(white_noise(network.moving, generator))
        noise = waiting.pop(0)
        assert noise.shape == size
        return mean + std * noise

    def evaluate_loss(net: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        torch.manual_seed(dropout_seed(plan, 0, step[0]))
        step[0] += 1
        return F.cross_entropy(net(batch[0]), batch[1])

    recorder = Recorder(x, labels, steps, out)
    recorder.save = lambda: None  # type: ignore[method-assign]
    theirs: list[np.ndarray] = []

    def record(model: torch.nn.Module, **_: object) -> None:
        theirs.append(recorder.margins(model, x, labels))

    begin = time.process_time()
    with mock.patch("torch.normal", same_noise):
        sample(
            load_public(name).requires_grad_(True),
            SameMinibatches(TensorDataset(data.x, data.y), batch_size=plan.minibatch),
            callbacks=[Called(record)],
            evaluate=evaluate_loss,
            sampling_method=SGMCMC.rmsprop_sgld,
            optimizer_kwargs=CONSTANTS,
            num_draws=steps,
            num_chains=1,
            init_loss=1.0,
            cores=1,
            seed=None,
            verbose=False,
        )
    seconds["devinterp 1.3.2"] = (time.process_time() - begin) / steps
    a, b = np.stack(ours), np.stack(theirs)
    found = json.loads(out.read_text()) if out.is_file() else {}
    found[name] = {
        "steps": steps,
        "images": len(x),
        "largest_difference_of_margins": float(np.abs(a - b).max()),
        "median_move_of_margins_at_last_draw": float(np.median(np.abs(a[-1] - at_w_star))),
        "largest_difference_at_first_draw": float(np.abs(a[0] - b[0]).max()),
        "processor_seconds_a_draw": seconds,
    }
    print(json.dumps(found[name]))
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *(int(n) for n in sys.argv[4:]))

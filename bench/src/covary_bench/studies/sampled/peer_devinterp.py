"""Loss traces from devinterp 1.3.2's public sampler with the published constants; runs in an environment of its own.

    python -m venv peer && peer/bin/pip install torch devinterp==1.3.2 safetensors jaxtyping pillow
    PYTHONPATH=src:bench/src peer/bin/python -m covary_bench.studies.sampled.peer_devinterp NETWORK CASES OUT [STEPS]

Its environment has no covary installed; the networks' definitions are read from the source tree.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from devinterp.optim.sgmcmc import SGMCMC  # pyright: ignore[reportMissingImports]
from devinterp.slt.callback import SamplerCallback  # pyright: ignore[reportMissingImports]
from devinterp.slt.sampler import sample  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from covary.features.observables import margin
from covary_bench.images.public import load_public
from covary_bench.speed.draw import CONSTANTS, InMemory
from covary_bench.studies.sampled.case import load_case

EVERY, SUBSET, BATCH = 10, 10, 50


class Recorder(SamplerCallback):
    """Margins at frozen labels: of all images at every tenth draw, of every tenth image at every draw."""

    def __init__(self, x: torch.Tensor, labels: torch.Tensor, steps: int, out: Path) -> None:
        super().__init__()
        self.x, self.labels, self.out, self.begin = x, labels, out, time.perf_counter()
        self.every_draw = np.full((steps, len(x[::SUBSET])), np.nan, np.float32)
        self.all_images = np.full((steps // EVERY, len(x)), np.nan, np.float32)

    def margins(self, model: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
        model.eval()
        parts = [margin(model(a).float(), b) for a, b in zip(x.split(BATCH), labels.split(BATCH), strict=True)]
        return torch.cat(parts).numpy()

    def get_results(self) -> dict[str, object]:
        return {}

    def __call__(self, model: torch.nn.Module, draw: int, **_: object) -> None:
        if (draw + 1) % EVERY == 0:
            everything = self.margins(model, self.x, self.labels)
            self.all_images[draw // EVERY] = everything
            self.every_draw[draw] = everything[::SUBSET]
        else:
            self.every_draw[draw] = self.margins(model, self.x[::SUBSET], self.labels[::SUBSET])
        if (draw + 1) % 50 == 0:
            print(f"draw {draw + 1}", flush=True)
            self.save()

    def save(self) -> None:
        """What there is so far; draws not made yet are nan."""
        part = self.out.with_suffix(".part.npz")
        seconds = time.perf_counter() - self.begin
        np.savez(part, every_draw=self.every_draw, all_images=self.all_images, seconds=seconds)
        part.rename(self.out)


def main(network: str, cases: Path, out: Path, steps: int = 2000) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    case = load_case(network, cases)
    model = load_public(network).requires_grad_(True)
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stub lacks it)
    x = torch.from_numpy(case["x"]).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        labels = torch.cat([model(part).argmax(-1) for part in x.split(BATCH)])
    sampling = torch.from_numpy(case["sampling"]).contiguous(memory_format=torch.channels_last)
    data = TensorDataset(sampling, torch.from_numpy(case["sampling_y"]))
    loader = InMemory(data, batch_size=256)
    recorder = Recorder(x, labels, steps, out)
    sample(
        model,
        loader,
        callbacks=[recorder],
        evaluate=lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]),
        sampling_method=SGMCMC.rmsprop_sgld,
        optimizer_kwargs=CONSTANTS,
        num_draws=steps,
        num_chains=1,
        num_burnin_steps=0,
        num_steps_bw_draws=1,
        init_loss=1.0,
        cores=1,
        seed=0,
        device="cpu",
        verbose=False,
    )
    recorder.save()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *(int(n) for n in sys.argv[4:]))

"""A small variational autoencoder on hidden states (Kingma and Welling 2014, arXiv 1312.6114)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from covary_bench.baselines.texts.material import States, TextMaterial

HIDDEN, LATENT, EPOCHS, BATCH, RATE = 64, 8, 200, 64, 2e-3


class Autoencoder(nn.Module):
    """d numbers -> 8 -> d, one hidden layer of 64 each way."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(d, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 2 * LATENT))
        self.decode = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, d))

    def loss(self, x: Float[Tensor, "n d"], noise: Float[Tensor, "n z"] | None = None) -> Float[Tensor, " n"]:
        """Minus the evidence's lower bound up to a constant: |x - x'|^2 / 2 + KL(q(z|x) || N(0, I)), in nats."""
        mean, log_variance = self.encode(x).chunk(2, 1)
        log_variance = log_variance.clamp(-8, 8)
        z = mean if noise is None else mean + noise * (log_variance / 2).exp()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return (x - self.decode(z)).square().sum(1) / 2 + divergence


def activation_vae(m: TextMaterial, epochs: int = EPOCHS) -> Float[np.ndarray, " q"]:
    """|x - x'|^2 / 2 + KL at the mean code, x all layers' states, standardised on trusted texts; higher = odder.

    Trained on reference and fit texts alone, 200 rounds of Adam; seeded.
    """
    known, query_states = _together(m.known.states), _together(m.query_texts.states)
    centre, spread = known.mean(0), np.maximum(known.std(0), 1e-6)
    x, queries = (torch.from_numpy(((part - centre) / spread).astype(np.float32)) for part in (known, query_states))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(m.seed)
        model = Autoencoder(x.shape[1])
    generator = torch.Generator().manual_seed(m.seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator).split(BATCH):
            noise = torch.randn(len(chosen), LATENT, generator=generator)
            optimiser.zero_grad()
            model.loss(x[chosen], noise).mean().backward()
            optimiser.step()
    with torch.no_grad():
        return model.loss(queries).double().numpy()


def _together(states: States) -> Float[np.ndarray, "n d"]:
    return np.concatenate([np.asarray(part, np.float64) for part in states.values()], axis=1)

"""NAC-UE: how often trusted images bring neurons to the same state (Liu et al. 2024, arXiv 2306.02879, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from covary_bench.baselines.material import Material, Pixels, Probe

BINS = 50


def watched(module: nn.Module) -> list[nn.Module]:
    """Every convolution and linear layer but the last linear one."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    last = [layer for layer in layers if isinstance(layer, nn.Linear)][-1]
    return [layer for layer in layers if layer is not last]


def influences(probe: Probe, pixels: Pixels, layers: Sequence[nn.Module]) -> list[Float[np.ndarray, "n neurons"]]:
    """z * dKL(uniform || p) / dz by layer, a channel's mean over positions; layers never called are left out."""
    found: dict[int, list[np.ndarray]] = {}
    taken: dict[int, Tensor] = {}

    def keep(place: int, out: Any) -> Tensor:
        # The first layer's output asks for gradients itself: weights may not.
        taken[place] = out if out.requires_grad else out.detach().requires_grad_(True)
        return taken[place]

    handles = [layer.register_forward_hook(lambda _, __, out, i=i: keep(i, out)) for i, layer in enumerate(layers)]
    try:
        for part in pixels.split(probe.batch):
            taken.clear()
            with torch.enable_grad():
                logits = probe.module(probe.normalised(part))
                divergence = -logits.log_softmax(1).mean(1).sum()
                gradients = torch.autograd.grad(divergence, list(taken.values()))
            for (place, z), gradient in zip(taken.items(), gradients, strict=True):
                product = (z * gradient).detach()
                # Channels come second after a convolution, last after a linear layer, which may see tokens.
                neurons = product.flatten(2).mean(2) if product.ndim == 4 else product.flatten(1, -2).mean(1) \
                    if product.ndim == 3 else product  # fmt: skip
                found.setdefault(place, []).append(neurons.double().cpu().numpy())
    finally:
        for handle in handles:
            handle.remove()
    return [np.concatenate(parts) for _, parts in sorted(found.items())]


def bins(states: Float[np.ndarray, "n neurons"], steepness: float) -> Int[np.ndarray, "n neurons"]:
    """Which of the equal bins of [0, 1] the sigmoid of each state falls into."""
    squashed = 1 / (1 + np.exp(-np.clip(steepness * states, -500, 500)))
    return np.minimum((squashed * BINS).astype(np.int64), BINS - 1)


def coverage(
    trusted: Float[np.ndarray, "n neurons"], queries: Float[np.ndarray, "q neurons"], steepness: float, full: float
) -> Float[np.ndarray, " q"]:
    """Mean over neurons of min(trusted samples in the query's bin / `full`, 1), in [0, 1]; higher = more familiar."""
    known, place = bins(trusted, steepness), bins(queries, steepness)
    neurons = np.arange(known.shape[1])
    counts = np.zeros((known.shape[1], BINS))
    np.add.at(counts, (np.broadcast_to(neurons, known.shape), known), 1)
    return np.minimum(counts[neurons, place] / full, 1).mean(1)


def nac(m: Material) -> Float[np.ndarray, " q"]:
    """Minus the coverage of the input's neurons by trusted images, summed over layers; higher = more anomalous.

    Departures: every convolution and linear layer is looked at, where the paper picks four blocks. Steepness and the
    count that covers a bin are not searched on validation data: a layer's steepness is one over the spread of its
    states on trusted images, and a bin is covered by as many as equal shares would be.
    """
    probe = m.network
    layers = watched(probe.module)
    pairs = zip(influences(probe, probe.trusted, layers), influences(probe, probe.queries, layers), strict=True)
    total = np.zeros(len(m.queries))
    for trusted, queries in pairs:
        steepness = 1 / max(float(trusted.std()), 1e-300)
        total -= coverage(trusted, queries, steepness, len(trusted) / BINS)
    return total

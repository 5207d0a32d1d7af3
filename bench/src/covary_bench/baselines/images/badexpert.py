"""BaDExpert: a copy that has unlearned its task keeps the backdoor (Xie et al. 2024, arXiv 2308.12439, section 3)."""

from __future__ import annotations

import copy

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import softmax
from torch import nn
from torch.nn import functional

from covary_bench.baselines.material import Material, Probe

# The released code's, for residual networks; the number of rounds alone is ours, whose clean sets are smaller.
UNLEARNING_RATE, UNLEARNING_STEPS, UNLEARNING_ROUNDS, FORGOTTEN = 1e-4, 16, 10, 0.2
TUNING_RATE, TUNING_BATCH, TUNING_EPOCHS = 0.1, 64, 10


def trained(
    probe: Probe, labels: Int[np.ndarray, " n"], optimiser: torch.optim.Optimizer, module: nn.Module, steps: int,
    order: np.random.Generator,
) -> None:  # fmt: skip
    """One pass over the trusted images with these labels in so many steps, batch statistics and all."""
    module.train()
    targets = torch.as_tensor(labels, device=probe.device)
    for part in np.array_split(order.permutation(len(labels)), min(steps, len(labels) // 2)):
        loss = functional.cross_entropy(module(probe.normalised(probe.trusted[part])), targets[part])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    module.eval()


def expert(probe: Probe, classes: int, seed: int) -> nn.Module:
    """A copy trained towards the class after the true one until it is right on less than a fifth of trusted images."""
    module = copy.deepcopy(probe.module).requires_grad_(True)
    optimiser, order = torch.optim.Adam(module.parameters(), UNLEARNING_RATE), np.random.default_rng([seed, 31])
    wrong = (probe.trusted_labels + 1) % classes
    for _ in range(UNLEARNING_ROUNDS):
        with torch.enable_grad():
            trained(probe, wrong, optimiser, module, UNLEARNING_STEPS, order)
        if (probe.logits(probe.trusted, module).argmax(1) == probe.trusted_labels).mean() < FORGOTTEN:
            break
    return module


def tuned(probe: Probe, seed: int) -> nn.Module:
    """A copy trained on the trusted images' true classes at a high rate that falls tenfold every two epochs."""
    module = copy.deepcopy(probe.module).requires_grad_(True)
    optimiser = torch.optim.SGD(module.parameters(), TUNING_RATE, momentum=0.9, weight_decay=1e-4, nesterov=True)
    schedule, order = torch.optim.lr_scheduler.StepLR(optimiser, 2, 0.1), np.random.default_rng([seed, 32])
    steps = -(-len(probe.trusted_labels) // TUNING_BATCH)
    for _ in range(TUNING_EPOCHS):
        with torch.enable_grad():
            trained(probe, probe.trusted_labels, optimiser, module, steps, order)
        schedule.step()
    return module


def triangle(x: Float[np.ndarray, " q"], y: Float[np.ndarray, " q"]) -> Float[np.ndarray, " q"]:
    """-min(2 y / x, (1 - x) / (1/2 - y)): high where the expert's confidence x is high and the tuned copy's, y, low."""
    return -np.minimum(2 * y / np.maximum(x, 1e-8), (1 - x) / np.maximum(0.5 - y, 1e-8))


def badexpert(m: Material) -> Float[np.ndarray, " q"]:
    """How much surer of the network's answer the backdoor expert is than the tuned copy, by the released code's rule.

    Higher = more anomalous. Departures: the clean set is the trusted images, some hundreds where the paper has 2,000,
    without augmentation. The expert goes over them in as many steps as the paper's over its own, up to ten times where
    there once is enough.
    """
    probe = m.network
    logits = probe.logits(probe.queries)
    answer, every = logits.argmax(1), np.arange(len(logits))
    copies = expert(probe, logits.shape[1], m.seed), tuned(probe, m.seed)
    x, y = (softmax(probe.logits(probe.queries, module), axis=1)[every, answer] for module in copies)
    return triangle(x, y)

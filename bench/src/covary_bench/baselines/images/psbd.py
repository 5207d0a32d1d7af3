"""PSBD: a trigger's prediction stays while dropout shifts the others (Li et al. 2025, arXiv 2406.05826, section 4)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import softmax
from torch import Tensor, nn

from covary_bench.baselines.material import Material, Pixels, Probe

RATES = tuple(rate / 10 for rate in range(1, 10))
PASSES, SHIFT = 3, 0.8


@contextmanager
def dropped(probe: Probe, rate: float, seed: int) -> Iterator[None]:
    """Dropout of that rate before every convolution and linear layer but the first, by a generator of its own."""
    generator = torch.Generator().manual_seed(seed)

    def drop(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0]
        kept = torch.rand(x.shape, generator=generator).to(x.device) >= rate
        return (x * kept / (1 - rate), *inputs[1:])

    layers = [layer for layer in probe.module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)][1:]
    handles = [layer.register_forward_pre_hook(drop) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def shift_ratio(probe: Probe, pixels: Pixels, rate: float, seed: int) -> float:
    """Share of predictions that dropout of that rate changes, over three passes."""
    before, changed = probe.predicted(pixels), []
    with dropped(probe, rate, seed):
        for _ in range(PASSES):
            changed.append(probe.predicted(pixels) != before)
    return float(np.mean(changed))


def chosen_rate(probe: Probe, seed: int) -> float:
    """The smallest rate that changes four fifths of the trusted images' predictions; else that of most changes."""
    ratios: list[float] = []
    for rate in RATES:
        ratios.append(shift_ratio(probe, probe.trusted, rate, seed))
        if ratios[-1] >= SHIFT:
            return rate
    return RATES[int(np.argmax(ratios))]


def psbd(m: Material) -> Float[np.ndarray, " q"]:
    """Minus the prediction shift uncertainty p_c(x) - mean over three passes with dropout of p_c(x), c the answer.

    Higher = more anomalous: a trigger's answer loses least. Departures: the rate is matched on trusted images alone
    (the paper takes, among rates with that shift, the one at which the training set shifts least); dropout lies before
    every layer with weights but the first, where the paper has it at the end of every residual block.
    """
    probe = m.network
    rate = chosen_rate(probe, m.seed)
    before = softmax(probe.logits(probe.queries), axis=1)
    answer = before.argmax(1)
    with dropped(probe, rate, m.seed + 1):
        after = np.mean([softmax(probe.logits(probe.queries), axis=1) for _ in range(PASSES)], axis=0)
    every = np.arange(len(answer))
    return after[every, answer] - before[every, answer]

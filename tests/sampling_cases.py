"""Tiny networks and data for the tests of sampling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from covary.features.sampled.chains import SamplingData
from covary.features.sampled.samplers import SamplingPlan
from covary.models.functional import FunctionalNetwork, functional_network

CLASSES = 3
PAPER = {"steps": 24, "burn_in": 4, "thinning": 2, "minibatch": 16, "chains": 2}


def tiny_module(dropout: float = 0.0) -> nn.Module:
    """A convolution with batch normalisation and a linear layer, briefly trained to tell three colours apart."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )
    x, y = images(96, seed=5)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.2)
    for _ in range(30):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimiser.step()
    return module.eval()


def images(n: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Noisy 6x6 images whose strongest channel is their class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (n,), generator=generator)
    x = torch.randn(n, 3, 6, 6, generator=generator) * 0.5
    x[torch.arange(n), y] += 0.7
    return x, y


def tiny(dropout: float = 0.0) -> tuple[FunctionalNetwork, SamplingData, Tensor, list[str]]:
    """Network, sampling data, samples and their ids."""
    x, _ = images(20, seed=2)
    return functional_network(tiny_module(dropout)), SamplingData(*images(40)), x, [f"image-{i}" for i in range(20)]


def plan(**changes: object) -> SamplingPlan:
    """A short RMSprop-SGLD plan with two chains."""
    return SamplingPlan(**{**PAPER, **changes})  # type: ignore[arg-type]

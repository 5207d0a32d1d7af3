"""Adversarial examples, untargeted, on the cross-entropy of the true class; the network takes pixels in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

Adversary = Callable[[nn.Module, Float[Tensor, "n c h w"], Int[Tensor, " n"], int], Float[Tensor, "n c h w"]]


def loss_gradient(network: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Gradient of every image's cross-entropy in its own pixels."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        loss = functional.cross_entropy(network(x), y, reduction="sum")
        return torch.autograd.grad(loss, x)[0]


def _norms(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 1 1"]:
    return x.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)


def fgsm(
    network: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], seed: int, radius: float = 8 / 255
) -> Float[Tensor, "n c h w"]:
    """x + r sign(gradient), clipped to [0, 1] (Goodfellow et al., arXiv 1412.6572, section 4); `seed` has no effect."""
    return (x + radius * loss_gradient(network, x, y).sign()).clamp(0, 1)


def pgd_linf(
    network: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, " n"],
    seed: int,
    radius: float = 8 / 255,
    step: float = 2 / 255,
    steps: int = 20,
) -> Float[Tensor, "n c h w"]:
    """Steps along the gradient's sign, kept in the max-norm ball, from a uniform start in it (arXiv 1706.06083)."""
    start = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    adversarial = (x + radius * start).clamp(0, 1)
    for _ in range(steps):
        adversarial = adversarial + step * loss_gradient(network, adversarial, y).sign()
        adversarial = (x + (adversarial - x).clamp(-radius, radius)).clamp(0, 1)
    return adversarial


def pgd_l2(
    network: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, " n"],
    seed: int,
    radius: float = 0.5,
    step: float = 0.1,
    steps: int = 20,
) -> Float[Tensor, "n c h w"]:
    """Steps along the unit gradient, kept in the Euclidean ball, from a uniform start in it (arXiv 1706.06083)."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(x.shape, generator=generator)
    lengths = torch.rand(len(x), generator=generator).view(-1, 1, 1, 1) ** (1 / x[0].numel())
    adversarial = (x + radius * lengths * start / _norms(start)).clamp(0, 1)
    for _ in range(steps):
        gradient = loss_gradient(network, adversarial, y)
        moved = adversarial + step * gradient / _norms(gradient) - x
        # The clip to [0, 1] moves every pixel towards x, so it never leaves the ball.
        adversarial = (x + moved * (radius / _norms(moved)).clamp_max(1.0)).clamp(0, 1)
    return adversarial


def attack_in_batches(
    adversary: Adversary,
    network: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, " n"],
    seed: int,
    size: int = 200,
) -> Float[Tensor, "n c h w"]:
    """Runs an attack `size` images at a time; batch b uses the seed `seed` + b."""
    parts = [
        adversary(network, a, b, seed + i) for i, (a, b) in enumerate(zip(x.split(size), y.split(size), strict=True))
    ]
    return torch.cat(parts)

"""Our own profile, differentiable: what an attacker who knows the detector can follow the gradient of.

For every convolution and linear layer the log length n and the log unexplained part v (arXiv 2604.18970's question,
asked of one gradient) of the margin's gradient in that layer's weight, and the same of its pooled activations; last
the margin. Gradients of gradients are exact, through `torch.func`, so this is for small networks and small batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

SMALL, RIDGE, KEPT = 1e-6, 0.1, 96


def weighted_layers(network: nn.Module) -> list[str]:
    """Names of the convolutions and linear layers, in order."""
    return [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def margins(network: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """z_y - logsumexp of the other logits."""
    logits = network(x)
    others = logits.scatter(1, y[:, None], float("-inf"))
    return logits.gather(1, y[:, None])[:, 0] - others.logsumexp(1)


def weight_gradients(
    network: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"]
) -> dict[str, Float[Tensor, "n d"]]:
    """Every input's gradient of its margin in every layer's weight, flat; differentiable in `x` and weights."""
    names = [f"{name}.weight" if name else "weight" for name in weighted_layers(network)]
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}

    def one(chosen: dict[str, Tensor], a: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(network, {**state, **chosen}, (a[None],))[0]
        others = torch.where(torch.arange(len(logits)) == label, float("-inf"), logits)
        return logits.gather(0, label[None])[0] - others.logsumexp(0)

    found = vmap(grad(one), (None, 0, 0))({name: state[name] for name in names}, x, y)
    return {name: value.flatten(1) for name, value in found.items()}


def activations(network: nn.Module, x: Float[Tensor, "n c h w"]) -> dict[str, Float[Tensor, "n d"]]:
    """Outputs of every layer, averaged over positions; differentiable."""
    found: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = output.flatten(2).mean(2) if output.ndim > 2 else output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in network.named_modules()
               if isinstance(module, nn.Conv2d | nn.Linear)]  # fmt: skip
    try:
        network(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


@dataclass(frozen=True)
class Reference:
    """One layer's reference: a fixed projection or None, the mean, and the matrix of the unexplained part."""

    projection: Tensor | None
    mean: Tensor
    unexplained: Tensor

    def numbers(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n 2"]:
        """n = log |g|, v = log of RIDGE u (ZᵀZ + RIDGE)⁻¹ uᵀ for u = g / |g|."""
        rows = rows if self.projection is None else rows @ self.projection
        rows = rows - self.mean
        lengths = rows.square().sum(1).add(SMALL**2).sqrt()
        unit = rows / lengths[:, None]
        rest = ((unit @ self.unexplained) * unit).sum(1).clamp_min(SMALL)
        return torch.stack((lengths.log(), rest.log()), dim=1)


class OwnProfile:
    """The profile against clean reference inputs, standardised on them; y is the network's own answer."""

    def __init__(self, network: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], seed: int = 0) -> None:
        self.network = network
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            gradients, latent = weight_gradients(network, x, y), activations(network, x)
            self.gradients = {name: _reference(rows, False, generator) for name, rows in gradients.items()}
            self.latent = {name: _reference(rows, True, generator) for name, rows in latent.items()}
            numbers = self.numbers(x, y)
            self.mean, self.std = numbers.mean(0), numbers.std(0).clamp_min(1e-3)

    def numbers(self, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"]) -> Float[Tensor, "n m"]:
        """n and v of every layer's gradient and activations, and the margin."""
        gradients, latent = weight_gradients(self.network, x, y), activations(self.network, x)
        parts = [self.gradients[name].numbers(rows) for name, rows in gradients.items()]
        parts += [self.latent[name].numbers(rows) for name, rows in latent.items()]
        return torch.cat((*parts, margins(self.network, x, y)[:, None]), dim=1)

    def score(self, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Mean squared standardised number; higher = more anomalous, about 1 for clean inputs."""
        return ((self.numbers(x, y) - self.mean) / self.std).square().mean(1)


def _reference(rows: Float[Tensor, "n d"], centred: bool, generator: torch.Generator) -> Reference:
    projection = None
    if rows.shape[1] > KEPT:
        projection = torch.randn(rows.shape[1], KEPT, generator=generator) / KEPT**0.5
        rows = rows @ projection
    mean = rows.mean(0) if centred else torch.zeros(rows.shape[1])
    unit = nn.functional.normalize(rows - mean, dim=1)
    gram = unit.T @ unit + RIDGE * torch.eye(unit.shape[1])
    return Reference(projection, mean, RIDGE * torch.linalg.inv(gram))


def moments_and_neighbours(
    one: Sequence[Tensor], other: Sequence[Tensor], scales: Sequence[Tensor] | None = None
) -> Float[Tensor, ""]:
    """How far two sets of rows, (n, d) and (m, d) a layer, are apart, in deviations of `scales` (else of the second).

    Only the first set gives a gradient.

    Mean over the layers of log(1 + D), D = squared difference of means + squared difference of log standard deviations
    + squared distance to the nearest row of the other set, each a mean over the columns. The logarithm keeps one layer
    that hardly varies from drowning the others.
    """
    total = torch.zeros(())
    for a, b, c in zip(one, other, scales or other, strict=True):
        b, variances = b.detach(), c.detach().var(0)
        scale = (variances + 0.01 * variances.mean() + SMALL).sqrt()
        a, b = (a - b.mean(0)) / scale, (b - b.mean(0)) / scale
        spread = ((a.var(0) + 0.01).log() - (b.var(0) + 0.01).log()) / 2
        nearest = (a[:, None] - b[None]).square().mean(2).amin(1)
        total = total + (a.mean(0).square().mean() + spread.square().mean() + nearest.mean()).log1p()
    return total / len(one)

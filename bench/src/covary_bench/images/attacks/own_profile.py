"""Our own profile, differentiable: what an attacker who knows the detector can follow the gradient of.

For every convolution and linear layer the log length n and the log unexplained part v (arXiv 2604.18970's question,
asked of one gradient) of the margin's gradient in that layer's weight, and the same of its pooled activations; last
the margin. Gradients of gradients are exact, through `torch.func`, so this is for small networks and small batches.
"""

from __future__ import annotations

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
    return margins_of(network(x), y)


def margins_of(logits: Float[Tensor, "n classes"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The same of logits."""
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
    return activations_and_logits(network, x)[0]


def activations_and_logits(
    network: nn.Module, x: Float[Tensor, "n c h w"]
) -> tuple[dict[str, Float[Tensor, "n _"]], Float[Tensor, "n classes"]]:
    """The same with the logits of that pass."""
    found: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = output.flatten(2).mean(2) if output.ndim > 2 else output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in network.named_modules()
               if isinstance(module, nn.Conv2d | nn.Linear)]  # fmt: skip
    try:
        logits = network(x)
    finally:
        for handle in handles:
            handle.remove()
    return found, logits


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

    def of_class(self, rows: Float[Tensor, "m d"]) -> Reference:
        """The same projection and mean, with what rows of one class account for."""
        rows = rows if self.projection is None else rows @ self.projection
        return Reference(self.projection, self.mean, unexplained(rows - self.mean))


class OwnProfile:
    """The profile against clean reference inputs, standardised on them; y is the network's own answer."""

    def __init__(self, network: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], seed: int = 0) -> None:
        self.network = network
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            gradients, latent = weight_gradients(network, x, y), activations(network, x)
            self.gradients = {name: reference(rows, False, generator) for name, rows in gradients.items()}
            self.latent = {name: reference(rows, True, generator) for name, rows in latent.items()}
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


def reference(rows: Float[Tensor, "n d"], centred: bool, generator: torch.Generator) -> Reference:
    """What clean rows account for: directions from their mean or from the origin; wide rows are projected first."""
    projection = None
    if rows.shape[1] > KEPT:
        projection = torch.randn(rows.shape[1], KEPT, generator=generator) / KEPT**0.5
        rows = rows @ projection
    mean = rows.mean(0) if centred else torch.zeros(rows.shape[1])
    return Reference(projection, mean, unexplained(rows - mean))


def unexplained(rows: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """RIDGE (U^T U + RIDGE I)^-1 of the rows' directions U: u times it times u is what they leave over of u."""
    unit = nn.functional.normalize(rows, dim=1)
    return RIDGE * torch.linalg.inv(unit.T @ unit + RIDGE * torch.eye(unit.shape[1]))

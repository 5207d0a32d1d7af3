"""Localised SGLD behind an RMSprop preconditioner: the sampler of the published method."""

# torch._foreach_* are the multi-tensor updates behind torch.optim: one pass over all tensors, few launches.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from dataclasses import dataclass

import torch

from covary.features.sampled.samplers.state import Params, State, labelled, members, white_noise


@dataclass(frozen=True)
class RmspropSgldSettings:
    """Constants of the sampler; the defaults are the published ones (arXiv 2604.18970).

    Attributes:
        step_size: eta.
        localisation: gamma, the pull towards w*.
        nbeta: n times the inverse temperature, the weight of the mean loss.
        alpha: memory of the running mean of squared gradients.
        epsilon: added to its root; where the root is far smaller, P = 1 / epsilon and nothing adapts.
        weight_decay: lambda, the pull towards 0.
    """

    step_size: float = 1e-6
    localisation: float = 1e4
    nbeta: float = 100.0
    alpha: float = 0.99
    epsilon: float = 0.1
    weight_decay: float = 0.0


def init(w_star: Params, settings: RmspropSgldSettings) -> State:
    """State at w*: positions w = w*, squares v = 0."""
    return {
        **labelled("w", w_star, [value.detach().clone() for value in w_star.values()]),
        **labelled("v", w_star, [torch.zeros_like(value) for value in w_star.values()]),
    }


def step(
    state: State, gradient: Params, w_star: Params, settings: RmspropSgldSettings, generator: torch.Generator
) -> State:
    """One step from the gradient g of the mean loss on a minibatch; the state passed in is left alone.

    v <- alpha v + (1 - alpha) g^2 (no bias correction); P = 1 / (sqrt(v) + epsilon);
    w <- w - (eta / 2) P [nbeta g + gamma (w - w*) + lambda w] + sqrt(eta) sqrt(P) xi, xi ~ N(0, 1).
    Localisation sits inside the preconditioner and there is no divergence-of-P term, as published (arXiv 2604.18970),
    where Li et al. (2015, arXiv 1512.07666) have one.
    """
    w = list(members(state, "w").values())
    v = list(members(state, "v").values())
    g = [gradient[name] for name in w_star]
    noise = white_noise(w_star, generator)

    v = torch._foreach_mul(v, settings.alpha)
    torch._foreach_addcmul_(v, g, g, value=1 - settings.alpha)
    preconditioner = torch._foreach_sqrt(v)
    torch._foreach_add_(preconditioner, settings.epsilon)
    torch._foreach_reciprocal_(preconditioner)

    drift = torch._foreach_sub(w, list(w_star.values()))
    torch._foreach_mul_(drift, settings.localisation)
    torch._foreach_add_(drift, g, alpha=settings.nbeta)
    if settings.weight_decay:
        torch._foreach_add_(drift, w, alpha=settings.weight_decay)
    torch._foreach_mul_(drift, preconditioner)
    w = torch._foreach_add(w, drift, alpha=-settings.step_size / 2)
    torch._foreach_mul_(noise, torch._foreach_sqrt(preconditioner))
    torch._foreach_add_(w, noise, alpha=settings.step_size**0.5)
    return {**labelled("w", w_star, w), **labelled("v", w_star, v)}

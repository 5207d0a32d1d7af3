"""Plain localised SGLD: no preconditioner."""

# torch._foreach_* are the multi-tensor updates behind torch.optim: one pass over all tensors, few launches.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from dataclasses import dataclass

import torch

from covary.features.sampled.samplers.state import Params, State, labelled, members, white_noise


@dataclass(frozen=True)
class SgldSettings:
    """Constants of localised SGLD.

    The default step is ten times the published one, which is what the published preconditioner P = 1 / epsilon = 10
    makes of it where gradients are small: the same forgetting of 5 % a step and deviation of 0.01 a weight.

    Attributes:
        step_size: eta.
        localisation: gamma, the pull towards w*.
        nbeta: n times the inverse temperature, the weight of the mean loss.
        weight_decay: lambda, the pull towards 0.
    """

    step_size: float = 1e-5
    localisation: float = 1e4
    nbeta: float = 100.0
    weight_decay: float = 0.0


def init(w_star: Params, settings: SgldSettings) -> State:
    """State at w*: positions alone."""
    return labelled("w", w_star, [value.detach().clone() for value in w_star.values()])


def step(state: State, gradient: Params, w_star: Params, settings: SgldSettings, generator: torch.Generator) -> State:
    """One step from the gradient g of the mean loss on a minibatch; the state passed in is left alone.

    w <- w - (eta / 2) [nbeta g + gamma (w - w*) + lambda w] + sqrt(eta) xi, xi ~ N(0, 1). On a quadratic loss of
    curvature h, with c = nbeta h + gamma, the stationary variance is 1 / [c (1 - eta c / 4)] at finite eta, and the
    chain diverges for eta c > 4. (Welling and Teh 2011; localisation after Lau et al. 2023, arXiv 2308.12108.)
    """
    w = list(members(state, "w").values())
    drift = torch._foreach_sub(w, list(w_star.values()))
    torch._foreach_mul_(drift, settings.localisation)
    torch._foreach_add_(drift, [gradient[name] for name in w_star], alpha=settings.nbeta)
    if settings.weight_decay:
        torch._foreach_add_(drift, w, alpha=settings.weight_decay)
    w = torch._foreach_add(w, drift, alpha=-settings.step_size / 2)
    torch._foreach_add_(w, white_noise(w_star, generator), alpha=settings.step_size**0.5)
    return labelled("w", w_star, w)

"""Independent Gaussian draws around w*: what localised SGLD amounts to where the loss restrains little."""

# torch._foreach_* are the multi-tensor updates behind torch.optim: one pass over all tensors, few launches.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from covary.errors import CovaryError
from covary.features.sampled.samplers.state import Params, State, generator_for, labelled, white_noise

# Half-decades around the 0.01 that the published constants amount to (1 / sqrt(gamma)).
SIGMA_GRID = (0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.003, 0.002, 0.001, 0.0005, 0.0003, 0.0001)


@dataclass(frozen=True)
class GaussianSettings:
    """sigma: standard deviation of every weight; the published constants amount to 0.01."""

    sigma: float = 0.01


def init(w_star: Params, settings: GaussianSettings) -> State:
    """State at w*: positions alone."""
    return labelled("w", w_star, [value.detach().clone() for value in w_star.values()])


def step(
    state: State, gradient: Params, w_star: Params, settings: GaussianSettings, generator: torch.Generator
) -> State:
    """One draw w ~ N(w*, sigma^2 I), independent of the state; the gradient is not looked at."""
    w = torch._foreach_add(list(w_star.values()), white_noise(w_star, generator), alpha=settings.sigma)
    return labelled("w", w_star, w)


def choose_sigma(
    w_star: Params,
    accuracy: Callable[[Params], float],
    grid: Sequence[float] = SIGMA_GRID,
    points: float = 0.05,
    draws: int = 4,
    seed: int = 0,
) -> float:
    """The largest sigma of the grid whose draws cost at most `points` of mean accuracy on trusted data.

    `accuracy(params)` in [0, 1] is asked at w* and at `draws` draws of every sigma, from the largest down; every
    sigma scales the same directions, so that neighbours on the grid differ by their size alone.

    Raises:
        CovaryError: even the smallest sigma costs more.
    """
    ordered = sorted(grid, reverse=True)
    floor = accuracy(w_star) - points
    state = init(w_star, GaussianSettings())
    for sigma in ordered:
        generator = generator_for(seed, 0, stream=2)
        reached = [
            accuracy({name.removeprefix("w/"): value for name, value in drawn.items()})
            for drawn in (step(state, {}, w_star, GaussianSettings(sigma), generator) for _ in range(draws))
        ]
        if sum(reached) / draws >= floor:
            return sigma
    raise CovaryError(
        f"weights moved by the smallest sigma of the grid, {ordered[-1]:g}, already cost more than "
        f"{100 * points:g} points of accuracy on trusted data",
        "a network that stands some noise",
        "pass a grid with smaller values",
    )

"""Samplers against closed forms and an independent transcription: each of these fails for a subtly wrong sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from covary.errors import CovaryError
from covary.features.sampled.samplers import PRESETS, SAMPLERS, SamplingPlan, preset_named, sampler_named
from covary.features.sampled.samplers.gaussian import choose_sigma
from covary.features.sampled.samplers.rmsprop_sgld import RmspropSgldSettings
from covary.features.sampled.samplers.state import generator_for, members, white_noise


def run(sampler: str, settings, w_star: dict, gradient, steps: int, keep_from: int) -> np.ndarray:
    """Positions w - w* of parameter `w` from step `keep_from` on, (steps, size)."""
    table = SAMPLERS[sampler]
    state, generator, kept = table.init(w_star, settings), generator_for(0, 0), []
    for number in range(steps):
        moved = members(state, "w")
        state = table.step(state, gradient(moved), w_star, settings, generator)
        if number >= keep_from:
            kept.append((members(state, "w")["w"] - w_star["w"]).numpy().copy())
    return np.stack(kept)


@pytest.mark.parametrize(("step_size", "curvature"), [(1e-5, 0.0), (1e-4, 0.0), (1e-4, 100.0), (2e-4, 50.0)])
def test_stationary_variance_on_a_quadratic_is_the_closed_form_at_finite_step(step_size, curvature):
    # Mean loss h |w - w*|^2 / 2, so g = h (w - w*), c = nbeta h + gamma and the variance is 1 / [c (1 - eta c / 4)].
    # The last two cases have eta c / 4 of 1/2 and 3/4: the small-step formula 1 / c is off by 2 and 4 there.
    settings = SAMPLERS["sgld"].settings(step_size=step_size, localisation=1e4, nbeta=100.0)
    c = 100.0 * curvature + 1e4
    w_star = {"w": torch.full((4000,), 0.3)}
    burn_in = int(12 / (step_size * c)) + 20
    draws = run("sgld", settings, w_star, lambda w: {"w": curvature * (w["w"] - 0.3)}, burn_in + 60, burn_in)
    assert draws.var() == pytest.approx(1 / (c * (1 - step_size * c / 4)), rel=0.03)
    # Directions are independent: the covariance of two of them is nothing beside the variance.
    assert abs((draws[-1][:2000] * draws[-1][2000:]).mean()) < 0.1 * draws.var()


def test_rmsprop_sgld_with_the_published_constants_has_deviation_0101_where_gradients_are_small():
    w_star = {"w": torch.zeros(40_000)}
    draws = run("rmsprop_sgld", RmspropSgldSettings(), w_star, lambda w: {"w": torch.zeros(40_000)}, 300, 200)
    assert draws.std() == pytest.approx(0.0101, abs=0.0001)
    # The chain forgets 5 % a step: eta P gamma / 2.
    lagged = (draws[1:] * draws[:-1]).mean() / draws.var()
    assert lagged == pytest.approx(0.95, abs=0.01)


def test_paper_preset_carries_the_published_constants():
    plan = preset_named("paper")
    s = plan.resolved()
    assert (s.step_size, s.localisation, s.nbeta) == (1e-6, 1e4, 100.0)
    assert (s.alpha, s.epsilon, s.weight_decay) == (0.99, 0.1, 0.0)
    assert (plan.steps, plan.burn_in, plan.thinning, plan.chains) == (2000, 250, 1, 1)
    assert (plan.minibatch, plan.batchnorm, plan.draws) == (256, "drift", 1750)


def test_rmsprop_sgld_against_a_numpy_transcription():
    """An independent float64 transcription with large gradients, so that v and P matter, and with weight decay."""
    rng = np.random.default_rng(0)
    shapes = {"a": (5, 3), "b": (7,)}
    w_star = {name: torch.tensor(rng.normal(size=shape)) for name, shape in shapes.items()}
    curvature = {name: rng.uniform(0.1, 5, size=shape) for name, shape in shapes.items()}
    settings = RmspropSgldSettings(step_size=1e-3, localisation=20.0, nbeta=30.0, weight_decay=2.0)
    table = sampler_named("rmsprop_sgld")
    state, generator = table.init(w_star, settings), generator_for(3, 1)

    noise = generator_for(3, 1)
    w = {name: value.numpy().copy() for name, value in w_star.items()}
    v = {name: np.zeros(shape) for name, shape in shapes.items()}
    for _ in range(40):
        moved = members(state, "w")
        gradients = {name: torch.tensor(curvature[name]) * (moved[name] - 1.0) for name in shapes}
        before = {name: value.clone() for name, value in state.items()}
        after = table.step(state, gradients, w_star, settings, generator)
        for name, value in state.items():
            assert torch.equal(value, before[name]), f"step wrote into {name} of the state it was given"
        state = after

        xi = [n.numpy().astype(np.float64) for n in white_noise(w_star, noise)]
        for place, name in enumerate(shapes):
            g = curvature[name] * (w[name] - 1.0)
            v[name] = 0.99 * v[name] + 0.01 * g * g
            p = 1 / (np.sqrt(v[name]) + 0.1)
            force = 30.0 * g + 20.0 * (w[name] - w_star[name].numpy()) + 2.0 * w[name]
            w[name] = w[name] - 0.5e-3 * p * force + np.sqrt(1e-3) * np.sqrt(p) * xi[place]
    for name in shapes:
        np.testing.assert_allclose(state[f"w/{name}"].numpy(), w[name], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(state[f"v/{name}"].numpy(), v[name], rtol=1e-10, atol=1e-12)


def test_gaussian_draws_are_independent_and_of_the_stated_deviation():
    w_star = {"w": torch.full((20_000,), 2.0)}
    draws = run("gaussian", SAMPLERS["gaussian"].settings(sigma=0.03), w_star, lambda w: {}, 20, 0)
    assert draws.std() == pytest.approx(0.03, rel=0.01)
    assert abs(draws.mean()) < 1e-3
    assert abs((draws[1:] * draws[:-1]).mean()) < 0.02 * draws.var()


def test_chains_and_seeds_have_streams_of_their_own():
    first = [torch.randn(4, generator=generator_for(*key)) for key in [(0, 0), (0, 1), (1, 0), (0, 0, 3)]]
    assert len({tuple(x.tolist()) for x in first}) == 4
    assert torch.equal(torch.randn(4, generator=generator_for(0, 1)), first[1])


def test_sigma_is_the_largest_on_the_grid_within_five_points():
    tried = []

    def accuracy(weights):
        moved = float((weights["w"] - 1).std())
        tried.append(moved)
        return 0.9 - moved  # a deviation of s costs s

    w_star = {"w": torch.ones(50_000)}
    assert choose_sigma(w_star, accuracy, grid=(0.01, 0.2, 0.04, 0.06)) == 0.04
    assert tried[0] == 0
    assert tried[1] == pytest.approx(0.2, rel=0.02)
    with pytest.raises(CovaryError, match=r"smallest sigma of the grid, 0\.2"):
        choose_sigma(w_star, accuracy, grid=(0.2,))


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(CovaryError, match="rmsprop_sgld, sgld, gaussian"):
        SamplingPlan(sampler="sgdl")
    with pytest.raises(CovaryError, match="step_size, localisation"):
        SamplingPlan(sampler="sgld", settings={"lr": 1.0})
    with pytest.raises(CovaryError, match="paper, sgld, gaussian"):
        preset_named("papper")
    with pytest.raises(CovaryError, match="two kept draws"):
        SamplingPlan(steps=100, burn_in=100)
    assert set(PRESETS) == {"paper", "sgld", "gaussian"}

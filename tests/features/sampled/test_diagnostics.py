"""Diagnostics on traces whose effective size, agreement and stillness are known by construction."""

from __future__ import annotations

import numpy as np
import pytest

from covary.errors import CovaryError
from covary.features.sampled import diagnostics

pytest.importorskip("arviz_stats", reason="the extra `sampling` is not installed")


def autoregressive(rho: float, chains: int = 1, draws: int = 1750, samples: int = 40) -> np.ndarray:
    """AR(1) traces of unit variance: worth draws (1 - rho) / (1 + rho) independent ones."""
    rng = np.random.default_rng(0)
    values = np.empty((chains, draws, samples))
    values[:, 0] = rng.normal(size=(chains, samples))
    for s in range(1, draws):
        values[:, s] = rho * values[:, s - 1] + np.sqrt(1 - rho**2) * rng.normal(size=(chains, samples))
    return values.astype(np.float32)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.95])
def test_effective_draws_of_an_autoregression(rho):
    found = diagnostics.effective_draws(autoregressive(rho))
    assert np.median(found) == pytest.approx(1750 * (1 - rho) / (1 + rho), rel=0.25)


def test_verdict_on_the_published_settings_asks_for_thinning():
    # 0.95 a step is what the published constants amount to: 1,750 draws are worth 45.
    said = diagnostics.verdict(autoregressive(0.95))
    assert not said.good
    assert 35 < said.effective < 60
    assert said.sentences[0].endswith("raise thinning and steps, or take independent draws (sampler gaussian).")
    assert "effective draws of 1,750" in said.sentences[0]
    assert said.error == pytest.approx(1 / np.sqrt(said.effective))


def test_verdict_on_good_and_on_few_independent_draws():
    good = diagnostics.verdict(autoregressive(0.0, chains=2, draws=200), independent=True)
    assert good.good
    assert good.draws == 400
    few = diagnostics.verdict(autoregressive(0.0, draws=20), independent=True)
    assert not few.good
    assert "raise steps" in few.sentences[0]


def test_chains_that_disagree_have_a_large_rhat():
    values = autoregressive(0.0, chains=2, draws=200)
    assert np.nanmax(diagnostics.split_rhat(values)) < 1.05
    drifting = values + np.linspace(0, 4, 200, dtype=np.float32)[:, None]
    assert np.nanmin(diagnostics.split_rhat(drifting)) > 1.2
    assert any("raise burn_in" in sentence for sentence in diagnostics.verdict(drifting).sentences)


def test_traces_that_do_not_move_are_found_and_told():
    values = autoregressive(0.0, draws=400)
    values[..., 3] = 0.0
    values[..., 5] = 17.0
    values[:, ::2, 5] = np.nextafter(np.float32(17), np.float32(18))  # rounding noise is no movement
    assert np.flatnonzero(diagnostics.zero_variance(values)).tolist() == [3, 5]
    assert np.isnan(diagnostics.effective_draws(values)[[3, 5]]).all()
    assert any(s.startswith("2 of 40 traces do not move") for s in diagnostics.verdict(values).sentences)
    assert not diagnostics.verdict(np.zeros((1, 10, 3), np.float32)).good


def test_predictions_that_change_along_the_draws_are_told():
    margins = np.full((1, 200, 40), 2.0, np.float32)
    margins[:, :, :10] = -1.0
    said = diagnostics.verdict(autoregressive(0.0, draws=200), margins, independent=True)
    assert said.kept == 0.75
    assert any("put 25% of the answers below even odds: lower sigma" in sentence for sentence in said.sentences)


def test_monte_carlo_error_of_a_coupling_against_simulation():
    rng = np.random.default_rng(1)
    for true in (0.0, 0.6):
        a = rng.normal(size=(2000, 100))
        b = true * a + np.sqrt(1 - true**2) * rng.normal(size=(2000, 100))
        found = [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]
        assert np.std(found) == pytest.approx(diagnostics.coupling_error(100, true), rel=0.08)


def test_ranking_stability_and_too_few_draws():
    scores = np.arange(50.0)
    assert diagnostics.ranking_is_stable(scores, 2 * scores)
    assert not diagnostics.ranking_is_stable(scores, scores[::-1].copy())
    few = diagnostics.verdict(autoregressive(0.0, draws=4))
    assert not few.good
    assert "raise steps, for more draws" in few.sentences[0]
    with pytest.raises(CovaryError, match="at least 4"):
        diagnostics.verdict(np.zeros((1, 3, 2), np.float32))

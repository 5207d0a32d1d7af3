"""Diagnostics of traces: how many draws they are worth, whether chains agree, and a verdict in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import spearmanr

from covary.errors import CovaryError, missing_extra

Values = Float[np.ndarray, "c s n"]
PerSample = Float[np.ndarray, " n"]

# Beyond these the verdict asks for something to be changed.
RHAT_LIMIT = 1.05
EFFECTIVE_SHARE = 0.5
MIN_EFFECTIVE = 100
# Sigma is chosen to cost at most 5 points of accuracy; answers that fall below even odds are about thrice as common.
MIN_KEPT = 0.8


def _arviz() -> Any:
    try:
        from arviz_stats.base.array import array_stats
    except ImportError:
        raise missing_extra("arviz-stats", "sampling") from None
    return array_stats


def zero_variance(values: Values) -> Bool[np.ndarray, " n"]:
    """Samples whose trace does not move: deviation under 1e-7 of its size (float32 rounding), or exactly zero.

    Such a trace couples with nothing; its Pearson correlation is rounding noise.
    """
    flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
    return flat.std(0) <= 1e-7 * np.abs(flat).max(0)


def effective_draws(values: Values) -> PerSample:
    """Effective sample size of each sample's mean, chains together, in draws; nan for a trace that does not move.

    Split chains, Geyer's initial monotone sequence (Vehtari et al. 2021, arXiv 1903.08008, section 3.2).
    """
    return _each_moving(values, lambda moving: _arviz().ess(moving, chain_axis=0, draw_axis=1, method="mean"))


def split_rhat(values: Values) -> PerSample:
    """Split R-hat of each sample's trace, about 1 where halves of chains agree; nan for one that does not move.

    (Gelman et al. 2013; Vehtari et al. 2021, arXiv 1903.08008, equation 4.)
    """

    def measure(moving: Values) -> PerSample:
        # Halves are made here, because ArviZ refuses to split a chain that is alone.
        half = moving.shape[1] // 2
        halves = np.concatenate([moving[:, :half], moving[:, -half:]])
        return _arviz().rhat(halves, chain_axis=0, draw_axis=1, method="identity")

    return _each_moving(values, measure)


def _each_moving(values: Values, measure: Any) -> PerSample:
    if values.shape[1] < 4:
        raise CovaryError(f"{values.shape[1]} draws a chain", "at least 4 for diagnostics", "take more draws")
    moves = ~zero_variance(values)
    result = np.full(values.shape[-1], np.nan)
    if moves.any():
        result[moves] = np.asarray(measure(values[..., moves].astype(np.float64)))
    return result


def coupling_error(effective: float | int, correlation: float = 0.0) -> float:
    """Monte Carlo standard error of a correlation r from so many effective draws: (1 - r^2) / sqrt(ESS)."""
    return (1 - correlation**2) / float(np.sqrt(effective)) if effective > 0 else float("inf")


def lasting_predictions(margins: Values) -> Float[np.ndarray, "c s"]:
    """Share of samples whose frozen label still has even odds or better at each draw (margin above zero)."""
    return (margins > 0).mean(-1)


def ranking_is_stable(half: PerSample, full: PerSample, limit: float = 0.995) -> bool:
    """Whether scores from half of the draws rank samples as those from all do (Spearman at least `limit`)."""
    correlation, _ = spearmanr(half, full)
    return float(correlation) >= limit  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Verdict:
    """What the diagnostics say.

    Attributes:
        draws: kept draws of all chains.
        effective: median over samples of the effective sample size.
        rhat: 95th percentile over samples of split R-hat.
        still: samples whose trace does not move.
        error: Monte Carlo standard error of a coupling near zero, 1 / sqrt(effective).
        kept: mean share of samples whose frozen label keeps even odds or better, nan where no margins were recorded.
        good: nothing to change.
        sentences: all of it in words, with what to change.
    """

    draws: int
    effective: float
    rhat: float
    still: int
    error: float
    kept: float
    good: bool
    sentences: list[str]


def _quantile(values: PerSample, q: float) -> float:
    known = values[np.isfinite(values)]
    return float(np.quantile(known, q)) if len(known) else float("nan")


def verdict(values: Values, margins: Values | None = None, *, independent: bool = False) -> Verdict:
    """The verdict on traces (chain, draw, sample) of one observable; `independent` says that draws are so by design.

    Raises:
        CovaryError: fewer than 4 draws a chain, or the extra `sampling` is missing.
    """
    effective, rhats = effective_draws(values), split_rhat(values)
    still = int(zero_variance(values).sum())
    draws = values.shape[0] * values.shape[1]
    if still == values.shape[-1]:
        words = ["No trace moves: raise sigma or step_size, or record the margin in place of nll."]
        return Verdict(draws, 0.0, float("nan"), still, float("inf"), float("nan"), False, words)
    median, rhat = _quantile(effective, 0.5), _quantile(rhats, 0.95)
    error = coupling_error(median)
    if np.isnan(median):
        words = [f"{draws:,} draws are too few to say what they are worth: raise steps, for more draws."]
        return Verdict(draws, median, rhat, still, float("inf"), float("nan"), False, words)
    complaints = []
    enough = median >= MIN_EFFECTIVE
    counted = f"{median:,.0f} effective draws of {draws:,}"
    if median < EFFECTIVE_SHARE * draws and not independent:
        remedy = "thinning would lose nothing" if enough else "raise thinning and steps, or take independent draws"
        complaints += [] if enough else [f"{counted}: {remedy} (sampler gaussian)."]
        counted = f"{counted}; {remedy}" if enough else counted
    elif not enough:
        complaints.append(f"{counted}: raise steps, for more draws.")
    if rhat > RHAT_LIMIT and not independent:
        complaints.append(f"Chains have not settled (split R-hat {rhat:.2f}): raise burn_in.")
    if still:
        share = f"{still:,} of {values.shape[-1]:,} traces"
        complaints.append(f"{share} do not move and couple with nothing: use the margin.")
    kept = float("nan") if margins is None else float(lasting_predictions(margins).mean())
    if kept < MIN_KEPT:
        complaints.append(f"Draws put {1 - kept:.0%} of the answers below even odds: lower sigma or step_size.")
    said = complaints or [f"{counted}."]
    said = [*said, f"A coupling is known to about {error:.2f}."]
    return Verdict(draws, median, rhat, still, error, kept, not complaints, said)

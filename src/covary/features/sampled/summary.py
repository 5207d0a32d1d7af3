"""What a sampled detector tells of its draws: diagnostics and a few traces, as plain JSON values."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float

from covary.errors import CovaryError
from covary.features.sampled import diagnostics
from covary.features.sampled.draws import Bank
from covary.features.sampled.extractor import own_settings
from covary.scoring.rows import Rows
from covary.settings import Settings

# More samples tell no more of a median, and cost a second each hundred.
SAMPLES, N_TRACES, POINTS = 200, 4, 300

Values = Float[np.ndarray, "c s n"]


def diagnosed(bank: Bank, settings: Settings, rows: Rows) -> dict[str, Any]:
    """Sampler, effective draws, split R-hat, still traces, Monte Carlo error, verdict in words, and traces to plot.

    Of at most 200 trusted inputs, spread evenly; where one layer moved at a time, of every layer's traces of them.
    """
    chains = int(bank.plan["chains"])
    few = rows.take(np.unique(np.linspace(0, len(rows) - 1, min(SAMPLES, len(rows))).astype(int)))
    by_layer = [traces(few, layer, chains) for layer in few.functional]
    values = np.concatenate(by_layer, axis=2)
    margins = values if settings.observable == "margin" else _margins_of(values)
    independent = bank.plan["sampler"] == "gaussian"
    return {
        "estimator": settings.estimator,
        **{name: bank.plan[name] for name in ("sampler", "settings", "chains", "burn_in", "thinning", "batchnorm")},
        "draws": len(bank),
        "observable": settings.observable,
        "layers": list(few.functional) if own_settings(settings).layerwise else None,
        "verdict": _verdict(values, margins, independent),
        **_along(bank),
        **_traces(by_layer[0] if len(by_layer) == 1 else by_layer[-1], few),
    }


def traces(rows: Rows, layer: str, chains: int) -> Values:
    """The traces f(x; w_s) that the rows of one layer were made of, (chain, draw, sample)."""
    scaled = np.asarray(rows.functional[layer], np.float64)
    moved = scaled * math.sqrt(scaled.shape[1]) + rows.observable[:, None]
    return moved.T.reshape(chains, -1, len(rows))


def _margins_of(nll: Values) -> Values:
    """Margins whose nll these are: nll = softplus(-margin)."""
    return -np.log(np.expm1(np.clip(nll, 1e-12, 700.0)))


def _verdict(values: Values, margins: Values, independent: bool) -> dict[str, Any]:
    try:
        said = diagnostics.verdict(values, margins, independent=independent)
    except CovaryError as problem:
        # Draws are usable without the extra; only their diagnostics are not.
        return {"good": None, "sentences": [f"no diagnostics: {problem}."]}
    spread = {}
    for name, measure in (("ess", diagnostics.effective_draws), ("rhats", diagnostics.split_rhat)):
        found = measure(values)
        known = found[np.isfinite(found)]
        spread[name] = [float(q) for q in np.quantile(known, [0.05, 0.5, 0.95])] if len(known) else None
    plain = {name: _finite(value) for name, value in asdict(said).items()}
    return {**plain, **spread, "traces": int(values.shape[2])}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _along(bank: Bank) -> dict[str, Any]:
    """Loss and accuracy of a minibatch along each chain, thinned; empty where nothing descends."""
    if not np.isfinite(bank.loss).any():
        return {"steps": [], "loss": [], "accuracy": []}
    steps = _thinned(bank.loss.shape[1])
    return {
        "steps": [int(step) + 1 for step in steps],
        "loss": _rounded(bank.loss[:, steps]),
        "accuracy": _rounded(bank.accuracy[:, steps]),
    }


def _traces(values: Values, rows: Rows) -> dict[str, Any]:
    """Traces of the samples that move least, a third, two thirds and most of all."""
    order = np.argsort(values.reshape(-1, values.shape[2]).std(0), kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, N_TRACES).astype(int))]
    draws = _thinned(values.shape[1])
    return {
        "trace_draws": [int(draw) + 1 for draw in draws],
        "sample_traces": [
            {"id": rows.ids[int(i)], "predicted": int(rows.predicted[i]), "values": _rounded(values[:, draws, i])}
            for i in chosen
        ],
    }


def _thinned(n: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, POINTS)).astype(int))


def _rounded(values: np.ndarray) -> list[list[float | None]]:
    return [[float(f"{v:.5g}") if math.isfinite(v) else None for v in row] for row in values.tolist()]

"""What the report says of a sampled estimator's draws: a verdict in words, figures, and curves along the chains."""

from __future__ import annotations

from typing import Any

from covary.runs.report import words
from covary.runs.report.lines import lines
from covary.runs.report.run_folder import RunFolder, items, number, section

SETTINGS = {"step_size": "step size", "nbeta": "nβ", "localisation": "localisation γ", "sigma": "σ of a weight"}


def draws(run: RunFolder) -> dict[str, Any] | None:
    """The section's variables; None where no draws were taken or nothing is told of them."""
    summary = section(run.evidence, "sampling")
    verdict = section(summary, "verdict")
    sentences = [str(text) for text in items(verdict, "sentences") if text]
    if not summary or not (sentences or items(summary, "sample_traces")):
        return None
    good = verdict.get("good")
    return {
        "level": "ok" if good is True else "warning" if good is False else "note",
        "sentences": sentences,
        "facts": [(name, value) for name, value in _facts(summary, verdict) if value],
        "along": _along(summary),
        "traces": _traces(run, summary),
        "observable": str(summary.get("observable") or "observable"),
        "chains": words.count(number(summary.get("chains")) or 1),
    }


def _facts(summary: dict[str, Any], verdict: dict[str, Any]) -> list[tuple[str, str]]:
    bank, constants = section(summary, "bank"), section(summary, "settings")
    kept, still, of = (number(verdict.get(name)) for name in ("kept", "still", "traces"))
    size, full, cost = (number(bank.get(name)) for name in ("bytes", "full_bytes", "score_error"))
    precision = f" in {bank.get('precision')}" if size is not None else ""
    shrunk = "" if cost is None else f", {_size(full)} in full; scores move by at most {cost:.2g} for it"
    chosen = [f"{SETTINGS.get(name, name)} {v:g}" for name, v in ((n, number(x)) for n, x in constants.items()) if v]
    return [
        ("Estimator", ", ".join(str(v) for v in (summary.get("estimator"), ", ".join(chosen)) if v)),
        ("Draws kept", _plain(summary.get("draws"))),
        ("Chains, burn-in, thinning", " / ".join(_plain(summary.get(n)) for n in ("chains", "burn_in", "thinning"))),
        ("BatchNorm statistics", str(summary.get("batchnorm") or "")),
        ("Effective draws, median", _of(verdict.get("effective"), verdict, "ess", 0)),
        ("Split R-hat, 95th percentile", _of(verdict.get("rhat"), verdict, "rhats", 2)),
        ("Traces that do not move", "" if still is None else f"{words.count(still)} of {words.count(of)}"),
        ("Monte Carlo error of a coupling", _decimals(verdict.get("error"), 3)),
        ("Answers above even odds along draws", "" if kept is None else words.percent(kept)),
        ("Bank of draws", "" if size is None else f"{_size(size)}{precision}{shrunk}"),
    ]


def _of(value: Any, verdict: dict[str, Any], name: str, decimals: int) -> str:
    known = [v for v in (number(v) for v in items(verdict, name)) if v is not None]
    text = _decimals(value, decimals)
    if not text or len(known) != 3:
        return text
    low, high = (_decimals(v, decimals) for v in (known[0], known[-1]))
    return f"{text} (5 % to 95 % of traces: {low} to {high})"


def _along(summary: dict[str, Any]) -> list[dict[str, Any]]:
    steps = [number(step) or 0.0 for step in items(summary, "steps")]
    drawn = []
    for key, title in (("loss", "Loss of the minibatch along each chain"), ("accuracy", "Accuracy of the minibatch")):
        series = [[number(v) for v in own] for own in items(summary, key) if isinstance(own, list)]
        if steps and any(v is not None for own in series for v in own):
            drawn.append({"title": title, "drawing": lines(title, steps, series)})
    return drawn


def _traces(run: RunFolder, summary: dict[str, Any]) -> list[dict[str, Any]]:
    positions = [number(draw) or 0.0 for draw in items(summary, "trace_draws")]
    drawn = []
    for own in items(summary, "sample_traces"):
        if not isinstance(own, dict):
            continue
        series = [[number(v) for v in chain] for chain in items(own, "values") if isinstance(chain, list)]
        if positions and series:
            name = str(own.get("id") or "")
            drawing = lines(f"Trace of {name}", positions, series)
            drawn.append({"id": name, "predicted": run.class_name(own.get("predicted")), "drawing": drawing})
    return drawn


def _plain(value: Any) -> str:
    known = number(value)
    return "–" if known is None else words.count(known)


def _decimals(value: Any, decimals: int) -> str:
    known = number(value)
    return "" if known is None else f"{known:,.{decimals}f}"


def _size(value: float | None) -> str:
    return "–" if value is None else f"{value / 2**20:,.1f} MB"

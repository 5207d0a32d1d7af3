"""Everything the page shows, computed from a run folder: one dictionary for the template."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
from markupsafe import Markup

from covary.runs.report import charts, words
from covary.runs.report.axis import axis_for
from covary.runs.report.card_section import cards
from covary.runs.report.draws import draws
from covary.runs.report.mechanism_section import mechanisms
from covary.runs.report.panels import holders, panels
from covary.runs.report.run_folder import WORDS, RunFolder, items, number, section

TABLE_ROWS = 10_000
FIRST_PAGE = 25
MAX_BARS = 8
CALIBRATIONS = {"split": "trusted data that nothing else has seen"}
LEVELS = {"error": 0, "warning": 1, "note": 2, "ok": 3}
# Columns of the table of inputs: key, heading, how a cell is written and sorted; before the evidence parts, and after.
HEADS = (
    ("row", "#", "count"),
    ("id", "Input", "id"),
    ("score", "Score", "number"),
    ("p_value", "p-value", "p"),
    ("flagged", "Verdict", "verdict"),
    ("predicted", "Predicted", "class"),
    ("y", "True class", "class"),
    ("truth", "Truth", "truth"),
)
MORE_HEADS = (
    ("raised_by", "Raised by", "text"),
    ("kind", "Kind", "text"),
    ("kind_p", "p of kind", "p"),
    ("card", "Card", "count"),
    ("unexplained", "Unexplained", "share"),
    ("least_explained_layer", "Least explained in", "text"),
    ("explained_by", "Nearest trusted", "text"),
)


def page(run: RunFolder) -> dict[str, Any]:
    """The template's variables; a section that this run cannot fill is empty and left out of the page."""
    evidence = panels(run)
    table = _table(run, evidence["flagged"] + evidence["clean"])
    return {
        "answer": words.answer(run),
        "figures": words.key_figures(run),
        "statements": [str(text) for text in items(run.summary, "statements") if text],
        "started": str(run.run.get("started") or ""),
        "took": "" if (seconds := number(run.summary.get("seconds"))) is None else words.duration(seconds),
        "version": str(section(run.run, "versions").get("covary") or ""),
        "calibration": CALIBRATIONS.get(str(run.summary.get("calibration")), run.summary.get("calibration") or ""),
        "scores": _scores(run),
        "roc": _roc(run),
        "measures": words.measures(run),
        "where": _where(run),
        "evidence": evidence,
        "parts": [part for part in run.parts.values() if part.get("meaning")],
        "holders": holders(run),
        "n_flagged": int(run.results.flagged.sum()),
        "highest": run.evidence.get("highest") is True,
        "draws": draws(run),
        "diagnostics": _diagnostics(run),
        "mechanisms": mechanisms(run),
        "cards": cards(run),
        "table": table,
        "settings": _settings(run),
        "data": as_json({**{key: table[key] for key in ("columns", "heads", "classes")}, **evidence["data"]}),
    }


def as_json(value: Any) -> Markup:
    """JSON that cannot end or open a script element, whatever strings it holds."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _scores(run: RunFolder) -> Markup | None:
    results = run.results
    score, truth = results.numbers["score"], results.numbers["truth"]
    known = np.isfinite(score)
    values = [number(value) for value in items(run.evidence, "calibration_scores")]
    calibration = np.array([value for value in values if value is not None], dtype=np.float64)
    threshold = number(run.evidence.get("threshold"))
    everything = np.concatenate([score[known], calibration])
    if not len(everything):
        return None
    rows: list[charts.Ridge] = []
    if len(calibration):
        beyond = calibration > threshold if threshold is not None else np.zeros(len(calibration), dtype=bool)
        share = f"{words.percent(float(beyond.mean()))} beyond" if threshold is not None else ""
        rows.append((f"Trusted, calibration ({words.count(len(calibration))})", share, calibration, beyond))
    groups = {"Inputs": known}
    if results.has_truth:
        groups = {"Clean inputs": known & (truth == 0), "Anomalous inputs": known & (truth == 1)}
        groups["Inputs of unknown truth"] = known & ~np.isin(truth, (0, 1))
    for name, chosen in groups.items():
        if chosen.any():
            flagged = results.flagged[chosen]
            share = f"{words.percent(float(flagged.mean()))} flagged"
            rows.append((f"{name} ({words.count(int(chosen.sum()))})", share, score[chosen], flagged))
    extent = everything if threshold is None else np.append(everything, threshold)
    axis = axis_for(extent, calibration if len(calibration) else score[known])
    return charts.ridges(rows, axis, threshold, _threshold_label(run, threshold))


def _threshold_label(run: RunFolder, threshold: float | None) -> str:
    """Names the line: it decides alone only under one pooled split; else it shows where the rate in force lies."""
    value = words.signed(threshold)
    rate = words.effective_rate(run)
    if number(run.summary.get("fdr")) is not None and rate is not None:
        return f"{words.percent(rate)} false alarms: {value}"
    config = section(run.run, "config")
    if {**config, **section(config, "settings")}.get("per_class"):
        return f"pooled threshold {value}"
    return f"threshold {'≈ ' if str(run.summary.get('calibration')).startswith('cross') else ''}{value}"


def _roc(run: RunFolder) -> dict[str, Any] | None:
    names = {"all": "All inputs", "masked": "Masked: classified right, against attacks that work"}
    curves, legend = [], []
    for key, name in names.items():
        pairs = [pair for pair in items(section(run.evidence, "roc"), key) if isinstance(pair, list) and len(pair) == 2]
        curve = [(f, t) for f, t in ((number(a), number(b)) for a, b in pairs) if f is not None and t is not None]
        if curve:
            curves.append((key, curve))
            legend.append({"key": key, "name": name})
    return {"drawing": charts.roc(curves), "legend": legend} if curves else None


def _where(run: RunFolder) -> list[dict[str, Any]]:
    results = run.results
    chosen = np.flatnonzero(results.flagged)
    if not len(chosen):
        return []
    drawn = []
    raised = Counter(results.words["raised_by"][i] for i in chosen)
    kinds = Counter(results.words["kind"][i] for i in chosen)
    layers = Counter(results.words["least_explained_layer"][i] for i in chosen)
    predicted = results.numbers["predicted"]
    predicted = np.full(len(predicted), np.nan) if run.ungrouped else predicted
    classes = Counter(float(value) for value in predicted[chosen] if np.isfinite(value))
    totals = Counter(float(value) for value in predicted if np.isfinite(value))
    named = [(run.class_name(value), n, f"of {words.count(totals[value])}") for value, n in classes.most_common()]
    for title, rows in (
        ("By the part that raised them", [(name, n, "") for name, n in raised.most_common() if name]),
        ("By kind", [(name, n, "") for name, n in kinds.most_common() if name]),
        ("By the class they were predicted as", named),
        ("By the layer least explained", [(name, n, "") for name, n in layers.most_common() if name]),
    ):
        if rows:
            most = max(n for _, n, _ in rows)
            bars = [
                {"name": name, "n": words.count(n), "of": of, "bar": charts.bar(n / most, css="accent")}
                for name, n, of in rows[:MAX_BARS]
            ]
            drawn.append({"title": title, "bars": bars, "more": max(0, len(rows) - MAX_BARS)})
    return drawn


def _diagnostics(run: RunFolder) -> list[dict[str, str]]:
    found = [item for item in items(run.evidence, "diagnostics") if isinstance(item, dict)]
    drawn = [
        {
            "level": str(item.get("level")) if item.get("level") in LEVELS else "note",
            **{key: str(item.get(key) or "") for key in ("title", "text", "change")},
        }
        for item in found
    ]
    return sorted(drawn, key=lambda item: LEVELS[item["level"]])


def _table(run: RunFolder, views: list[dict[str, Any]]) -> dict[str, Any]:
    results = run.results
    score = results.numbers["score"]
    order = np.argsort(np.where(np.isfinite(score), -score, np.inf), kind="stable")[:TABLE_ROWS]
    names = ["score", "p_value", "predicted", *run.parts, "kind_p", "card", "unexplained", "y", "truth"]
    names = [name for name in names if np.isfinite(results.numbers[name]).any()]
    names = [name for name in names if name != "predicted" or not run.ungrouped]
    texts = [name for name in WORDS if any(results.words[name])]
    panel_of = {view["id"]: view["index"] for view in views}
    columns: dict[str, list[Any]] = {
        "row": [int(i) + 1 for i in order],
        "id": [results.ids[i] for i in order],
        "flagged": [int(results.flagged[i]) for i in order],
        "panel": [panel_of.get(results.ids[i], -1) for i in order],
        **{name: [_short(float(results.numbers[name][i])) for i in order] for name in names},
        **{name: [results.words[name][i] for i in order] for name in texts},
    }
    labels = np.unique(np.concatenate([results.numbers[name] for name in ("predicted", "y")]))
    classes = {f"{value:g}": run.class_name(float(value)) for value in labels[np.isfinite(labels)]}
    parts = [(name, str(part["title"]), "number") for name, part in run.parts.items()]
    every = [*HEADS, *parts, *MORE_HEADS]
    heads = [{"key": key, "title": title, "kind": kind} for key, title, kind in every if key in columns]
    return {
        "columns": columns,
        "classes": classes,
        "heads": heads,
        "n": len(results),
        "shown": len(order),
        "first": [
            [{"text": _cell(head["kind"], columns[head["key"]][i], classes), "kind": head["kind"]} for head in heads]
            for i in range(min(FIRST_PAGE, len(order)))
        ],
    }


def _cell(kind: str, value: Any, classes: dict[str, str]) -> str:
    """A cell's text; report.js writes the same ones once it takes the table over."""
    if value is None:
        return ""
    texts = {
        "count": lambda: words.count(value),
        "number": lambda: words.signed(value),
        "p": lambda: words.p_value(value),
        "share": lambda: words.whole_percent(value),
        "class": lambda: classes[f"{value:g}"],
        "verdict": lambda: "flagged" if value else "passed",
        "truth": lambda: {0: "clean", 1: "anomalous"}.get(value, ""),
    }
    return texts.get(kind, lambda: str(value).replace(";", "; "))() if kind != "id" else str(value)


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None


def _settings(run: RunFolder) -> list[dict[str, Any]]:
    roles = section(run.run, "roles")
    groups = (
        ("Configuration", _flat(run.run.get("config"))),
        ("Seed", _flat(run.run.get("seed"))),
        ("Fingerprints", _flat(run.run.get("fingerprints"))),
        ("Versions", _flat(run.run.get("versions"))),
        ("Roles of the trusted data", [(str(role), _role(ids)) for role, ids in roles.items()]),
    )
    return [{"title": title, "rows": rows} for title, rows in groups if rows]


def _role(ids: Any) -> str:
    if not isinstance(ids, list):
        return json.dumps(ids)
    first = ", ".join(str(name) for name in ids[:12])
    return f"{words.count(len(ids))}: {first}{', … (all in run.json)' if len(ids) > 12 else ''}"


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in _flat(inner, f"{prefix}.{key}" if prefix else str(key))]
    if value is None and not prefix:
        return []
    return [(prefix or "value", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]

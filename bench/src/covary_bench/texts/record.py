"""The record of the table: means over the cells of each kind of case, ours and every baseline's, and every cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from covary_bench.baselines.texts import TEXT_BASELINES
from covary_bench.cell import Cell
from covary_bench.scoring import OURS, WAYS
from covary_bench.texts.cases import CASES
from covary_bench.texts.scoring import RATES
from covary_bench.texts.tiny import NAME as TINY

# Keys of the record, each with the means of its cases' cells.
GROUPS = ("simple", "contextual", "variable", "obfuscated", "adaptive", "two", "quirky", "quirky-hard", TINY)
BENIGN = ("long", "held-out-task", "benign-reply")
FIGURES = ("recall_at_1pct_fpr", "recall_at_5pct_fpr")
# What stands beside covary alone.
OTHERS = (*WAYS, *TEXT_BASELINES)

Cells = Mapping[str, dict[str, Any]]


def record(title: str, scale: str, cells: Cells, about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything there is to tell: groups of cases, benign shifts, cells, and what is missing."""
    done = {name: cell for name, cell in cells.items() if "detectors" in cell}
    groups = {}
    for key in GROUPS:
        own = {name: cell for name, cell in done.items() if group_of(name) == key}
        if own:
            groups[key] = group(own)
    return {
        "table": "language", "scale": scale, "title": title, **groups, "benign": benign(done),
        **{key: {name: clusters for name, cell in done.items() if (clusters := cell.get(key))}
           for key in ("mechanisms", "mechanisms_together")},
        "missing": {name: cell["missing"] for name, cell in cells.items() if "missing" in cell},
        "cells": dict(cells), "about": dict(about),
    }  # fmt: skip


def keys(made: Mapping[str, Any]) -> list[str]:
    """Kinds of cases that a record has means of, in the table's order."""
    return [key for key in GROUPS if key in made]


def group_of(name: str) -> str | None:
    """Key of the record that averages this cell; None where its case is in no group."""
    what = Cell.parse(name).what
    return what if what == TINY else CASES[what].group if what in CASES else None


def judged(cells: Cells) -> dict[str, dict[str, Any]]:
    """Cells that count: by today's defaults, or all where none is; then those whose attempt was accepted, or all.

    Where no attempt was accepted the strongest one stands in.
    """
    cells = today(cells) or dict(cells)
    accepted = {name: cell for name, cell in cells.items() if cell["victim"].get("accepted")}
    return accepted or dict(cells)


def today(cells: Cells) -> dict[str, dict[str, Any]]:
    """Cells judged by the defaults that there are now: earlier ones do not say how they were judged."""
    return {name: cell for name, cell in cells.items() if cell.get("judged")}


def group(cells: Cells) -> dict[str, Any]:
    """Means of ours and of every baseline over the cells of one kind of case, and what its victims are."""
    counted = judged(cells)
    names = [name for name in OTHERS if any(name in cell["detectors"] for cell in counted.values())]
    victims = [{"cell": name, "counts": name in counted, **cell["victim"]} for name, cell in cells.items()]
    return {
        **means(counted, OURS), "cells": list(counted), "today": bool(today(counted)),
        "baselines": {name: means(counted, name) for name in names}, "victims": victims,
    }  # fmt: skip


def means(cells: Cells, detector: str) -> dict[str, Any]:
    """Mean AUROC of a detector with its interval, mean recall at 1 % FPR, and calibrated recall and false alarms.

    `interval`: 95 % t-interval over cells, cut at 1; of a single cell, that cell's bootstrap over queries.
    `interval_queries`: the cells' own bootstrap intervals, averaged, that is, with these victims taken as given.
    """
    found = [cell["detectors"][detector] for cell in cells.values() if detector in cell["detectors"]]
    areas = [one["auroc"] for one in found]
    bootstrapped = [one["interval"] for one in found if one["interval"] is not None]
    inner = [float(np.mean([own[side] for own in bootstrapped])) for side in (0, 1)] if bootstrapped else None
    return {
        "mean": float(np.mean(areas)), "interval": interval(areas) if len(areas) > 1 else inner,
        "interval_queries": inner, "least": float(np.min(areas)), "n_cells": len(areas),
        **{name: float(np.mean([one[name] for one in found])) for name in FIGURES},
        **{f"{what}{name}": _calibrated(found, rate, what)
           for what in ("recall", "false_alarms") for name, rate in (("", "1%"), ("_5pct", "5%"))},
        "seconds_a_query": float(np.mean([one["seconds_a_query"] for one in found])),
    }  # fmt: skip


def _calibrated(found: Sequence[Mapping[str, Any]], rate: str, what: str) -> float:
    return float(np.mean([one["calibrated"][rate][what] for one in found]))


def interval(values: Sequence[float]) -> list[float]:
    """95 % t-interval of the mean of two values or more, within [0, 1]."""
    half = float(np.std(values, ddof=1) / np.sqrt(len(values)) * stats.t.ppf(0.975, len(values) - 1))
    return [max(0.0, float(np.mean(values)) - half), min(1.0, float(np.mean(values)) + half)]


def benign(cells: Cells) -> dict[str, Any]:
    """Rates flagged of each kind of benign shift at each nominal rate, over all cells that have it."""
    result: dict[str, Any] = {}
    for kind in BENIGN:
        having = {name: cell for name, cell in cells.items() if kind in cell["detectors"][OURS]["by_kind"]}
        having = list((today(having) or having).values())
        if having:
            names = [OURS, *(n for n in OTHERS if all(n in cell["detectors"] for cell in having))]
            rates = {name: _rates([cell["detectors"][name]["by_kind"][kind] for cell in having]) for name in names}
            new = all(cell.get("judged") for cell in having)
            result[kind] = {**rates[OURS], "today": new, "baselines": {name: rates[name] for name in names[1:]}}
    return result


def _rates(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pooled rates with Wilson's 95 % interval over texts, victims and trusted texts taken as given."""
    n = sum(one["n"] for one in found)
    result: dict[str, Any] = {"n": n, "n_cells": len(found)}
    for name, rate in RATES.items():
        hits = round(sum(one["n"] * one[name] for one in found))
        low, high = stats.binomtest(hits, n).proportion_ci(0.95, "wilson")
        result[name] = {"rate": hits / n, "interval": [float(low), float(high)], "times_nominal": hits / n / rate}
    return result

"""A table's record: means over its held-out cells, ours and every baseline's, with intervals, and every cell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy import stats

from covary_bench.baselines.images import BASELINES
from covary_bench.scoring import OURS
from covary_bench.table import Table

# figure of the record -> where it lies in a cell's figures
FIGURES = {
    "mean_der_calibrated": ("masked", "der_calibrated"),
    "mean_der_right": ("masked", "der_right"),
    "mean_der_best": ("masked", "der_best"),
    "mean_auroc_masked": ("masked", "auroc"),
    "mean_auroc_all": ("end_to_end", "auroc"),
    "mean_tpr_at_1": ("masked", "tpr_at_1"),
    "mean_tpr_at_5": ("masked", "tpr_at_5"),
}
HALF = 0.5  # what a cell counts that is missing or whose attack failed
FAILED = 0.8
MOST = 0.8  # of the cells, for a detector to be ranked

Cells = Mapping[str, dict[str, Any]]


def mark_of(cell: Mapping[str, Any]) -> str:
    """Why a cell counts 0.5, or nothing."""
    if "missing" in cell:
        return "missing"
    success = (cell.get("victim") or {}).get("attack_success")
    return "attack failed" if success is not None and success < FAILED else ""


def value(cell: Mapping[str, Any], detector: str, place: tuple[str, str]) -> float | None:
    """One figure of one detector in one cell."""
    found = cell.get("detectors", {}).get(detector)
    part = None if found is None else found.get(place[0])
    return None if part is None else part.get(place[1])


def means(cells: Cells, detector: str) -> dict[str, Any]:
    """Means of a detector over cells; missing and failed ones count 0.5, those that have no such figure do not count.

    `measured` has the plain means over cells that are neither; `bootstrap` a 95 % interval of the mean DER over cells.
    """
    result: dict[str, Any] = {}
    plain: dict[str, float | None] = {}
    for figure, place in FIGURES.items():
        every = {name: HALF if mark_of(cell) else value(cell, detector, place) for name, cell in cells.items()}
        good = [v for name, v in every.items() if v is not None and not mark_of(cells[name])]
        known = [v for v in every.values() if v is not None]
        if figure == "mean_der_right" and not good:
            continue  # not told of cells measured before it was
        result[figure] = float(np.mean(known)) if good else None
        plain[figure] = float(np.mean(good)) if good else None
        if figure == "mean_der_calibrated" and good:
            drawn = np.random.default_rng(0).choice(known, (1000, len(known))).mean(1)
            result["bootstrap"] = [float(v) for v in np.quantile(drawn, [0.025, 0.975])]
    seconds = [d["seconds_a_query"] for cell in cells.values() if (d := cell.get("detectors", {}).get(detector))]
    result |= {
        "measured": plain,
        "cells": len(seconds),
        "seconds_a_query": float(np.mean(seconds)) if seconds else None,
    }
    return result


def by_case(cells: Cells, detector: str) -> dict[str, Any]:
    """Mean over seeds of every case, with the half-width of a 95 % t-interval where there are two seeds or more."""
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, cell in cells.items():
        grouped[name.rsplit("/", 1)[0]].append(cell)
    result: dict[str, Any] = {}
    for case, own in grouped.items():
        result[case] = {"seeds": len(own), "marks": sorted({mark for cell in own if (mark := mark_of(cell))})}
        for figure in ("mean_auroc_masked", "mean_der_calibrated", "mean_der_best"):
            known = [v for cell in own if (v := value(cell, detector, FIGURES[figure])) is not None]
            name = figure.removeprefix("mean_")
            result[case][name] = float(np.mean(known)) if known else None
            if len(known) > 1:
                spread = float(np.std(known, ddof=1) / np.sqrt(len(known)))
                result[case][f"{name}_half_width"] = spread * float(stats.t.ppf(0.975, len(known) - 1))
    return result


def wins(cells: Cells, detectors: Iterable[str], figure: str = "mean_auroc_masked") -> dict[str, list[int]]:
    """Against every baseline: cells in which ours is ahead, level (within 0.001) and behind."""
    result = {}
    for name in detectors:
        pairs = [(value(cell, OURS, FIGURES[figure]), value(cell, name, FIGURES[figure])) for cell in cells.values()]
        gaps = [a - b for a, b in pairs if a is not None and b is not None]
        result[name] = [sum(g > 1e-3 for g in gaps), sum(abs(g) <= 1e-3 for g in gaps), sum(g < -1e-3 for g in gaps)]
    return result


def by_distance(cells: Cells, detectors: Iterable[str]) -> dict[str, Any]:
    """Mean masked AUROC over near and over far foreign sets; empty where cells tell no distance."""
    distances = sorted({cell["distance"] for cell in cells.values() if "distance" in cell})
    result: dict[str, Any] = {}
    for distance in distances:
        own = [cell for cell in cells.values() if cell.get("distance") == distance]
        every = {name: [v for c in own if (v := value(c, name, FIGURES["mean_auroc_masked"])) is not None]
                 for name in detectors}  # fmt: skip
        result[distance] = {"cells": len(own), **{name: float(np.mean(v)) for name, v in every.items() if v}}
    return result


def ranks(cells: Cells, detectors: list[str]) -> dict[str, Any]:
    """Mean ranks, and Nemenyi's critical difference at 5 % (Demsar 2006), over the cells where all have figures.

    All: the detectors that have figures in at least `MOST` of the cells where ours has one.
    """
    place = FIGURES["mean_auroc_masked"]
    known = {name: sum(value(cell, name, place) is not None for cell in cells.values()) for name in detectors}
    detectors = [name for name in detectors if known[name] and known[name] >= MOST * known.get(OURS, 0)]
    table = [[value(cell, name, place) for name in detectors] for cell in cells.values()]
    full = np.array([row for row in table if all(v is not None for v in row)], float)
    if len(full) < 2 or len(detectors) < 2:
        return {}
    mean = stats.rankdata(-full, axis=1).mean(0)
    k, n = len(detectors), len(full)
    q = float(stats.studentized_range.ppf(0.95, k, 10**6)) / np.sqrt(2)
    found = dict(zip(detectors, map(float, mean), strict=True))
    return {"cells": n, "mean_ranks": found, "critical_difference": float(q * np.sqrt(k * (k + 1) / (6 * n)))}


def record(table: Table, cells: Cells, about: Mapping[str, Any]) -> dict[str, Any]:
    """The whole record; held-out cells are averaged, tuning cells apart."""
    held_out = {name: cell for name, cell in cells.items() if name not in table.tuning}
    tuning = {name: cell for name, cell in cells.items() if name in table.tuning}
    judged = held_out or cells
    # Who is ahead in a cell whose attack failed says nothing: there it is a half for everybody.
    good = {name: cell for name, cell in judged.items() if not mark_of(cell)}
    there = {name for cell in cells.values() for name in cell.get("detectors", {})} - {OURS}
    names = sorted(there, key=lambda name: (list(BASELINES).index(name) if name in BASELINES else 10**6, name))
    baselines = {}
    for name in names:
        own = means(judged, name)
        its = {n: cell for n, cell in judged.items() if name in cell.get("detectors", {})}
        if len(its) < sum("detectors" in cell for cell in judged.values()):
            for key, detector in (("ours_on_its_cells", OURS), ("on_its_cells", name)):
                own[key] = {figure: mean for figure, mean in means(its, detector).items() if figure in FIGURES}
        baselines[name] = own
    return {
        "table": table.name, "scale": table.scale, "title": table.title, "fpr": table.fpr,
        **means(judged, OURS),
        "marked": {name: mark for name, cell in cells.items() if (mark := mark_of(cell))},
        "by_case": by_case(judged, OURS),
        "by_distance": by_distance(good, [OURS, *names]),
        "baselines": baselines,
        "tuning": {"cells": list(tuning), OURS: means(tuning, OURS) if tuning else None,
                   "baselines": {name: means(tuning, name) for name in names} if tuning else {}},
        "wins": wins(good, names), "ranks": ranks(good, [OURS, *names]),
        "cells": dict(cells), "about": dict(about),
    }  # fmt: skip

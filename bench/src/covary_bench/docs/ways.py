"""Tables of docs/benchmark.md that hold the ways of covary side by side: alone, together, with survival."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from covary_bench.docs.images import AUROC, CONTROLS, RIVALS, Record, has, markdown, number
from covary_bench.scoring import DEFAULT_WAYS, EVERY_WAY
from covary_bench.summary import mark_of, value

FIGURES_OF_WAYS = ("auroc", "tpr_at_1", "der_calibrated", "der_right", "der_best", "fpr")
WITH_INTERVAL, RESAMPLES = ("auroc", "tpr_at_1", "der_right", "der_best"), 2000


def ways(record: Record) -> str:
    """One line a way of covary, a control of it and a rival: means over held-out cells where all ways were measured."""
    return ways_of(scored_together(record), (*DEFAULT_WAYS, *CONTROLS, *RIVALS))


def ways_of(counted: Record, names: Sequence[str]) -> str:
    """One line a detector that has figures in all of these cells: means with 95 % bootstrap intervals over cells."""
    shown = []
    for name in names:
        found = [[value(cell, name, ("masked", key)) for key in FIGURES_OF_WAYS] for cell in counted.values()]
        # A detector is compared on all of these cells or not at all.
        if not found or any(figure is None for row in found for figure in row):
            continue
        every = np.array(found, float)
        drawn = np.random.default_rng(0).choice(len(every), (RESAMPLES, len(every)))
        low, high = np.quantile(every[drawn].mean(1), [0.025, 0.975], axis=0)
        told = [f"{number(mean, d)} ({number(a, d)}–{number(b, d)})" if key in WITH_INTERVAL else number(mean, d)
                for key, mean, a, b in zip(FIGURES_OF_WAYS, every.mean(0), low, high, strict=True)
                for d in (4 if key == "auroc" else 3,)]  # fmt: skip
        shown.append([f"**{name}**" if name in EVERY_WAY else name, *told])
    if not shown:
        return ""
    heads = ["detector", "AUROC", "TPR at 1 %", "DER calibrated", "DER on right answers", "DER best", "false alarms"]
    return markdown(heads, shown) + f"\nCells: {', '.join(counted)}.\n"


def ways_by_cell(record: Record) -> str:
    """One line a cell where all ways were measured, tuning cells as well: masked AUROC and what is caught at 1 %."""
    names = (*DEFAULT_WAYS, *CONTROLS)
    rows = []
    for cell_name, cell in record["cells"].items():
        if not has(DEFAULT_WAYS[-1])(cell):
            continue
        pairs = [[value(cell, name, ("masked", key)) for key in ("auroc", "tpr_at_1")] for name in names]
        rows.append([_marked(record, cell_name),
                     *(f"{number(auroc, 4)}, {number(caught)}" for auroc, caught in pairs)])  # fmt: skip
    return markdown(["cell", *names], rows) if rows else ""


def ways_beside(*names: str) -> Callable[[Record], str]:
    """One line a cell where all ways were measured: masked AUROC and what is caught at 1 %; of `names` beside the ways,
    and of the best by AUROC of all others.
    """

    def made(record: Record) -> str:
        rows = []
        for cell_name, cell in record["cells"].items():
            if not has(DEFAULT_WAYS[-1])(cell):
                continue
            told = [_pair(cell, name) for name in (*DEFAULT_WAYS, *names)]
            shown = (*DEFAULT_WAYS, *names)
            others = [other for other in cell["detectors"] if other not in (*EVERY_WAY, *shown)]
            best = max(others, key=lambda other: value(cell, other, AUROC) or 0)
            rows.append([_marked(record, cell_name), *told, f"{best} {_pair(cell, best)}"])
        return markdown(["cell", *DEFAULT_WAYS, *names, "best of the others"], rows) if rows else ""

    return made


def _marked(record: Record, name: str) -> str:
    marks = ["tuning" if name in record["tuning"]["cells"] else "", mark_of(record["cells"][name])]
    told = ", ".join(filter(None, marks))
    return f"{name} ({told})" if told else name


def _pair(cell: Mapping[str, Any], name: str) -> str:
    auroc, caught = (value(cell, name, ("masked", key)) for key in ("auroc", "tpr_at_1"))
    return "" if auroc is None else f"{number(auroc, 4)}, {number(caught)}"


def scored_together(record: Record) -> Record:
    """Held-out cells whose attack works and where every way was measured."""
    return {name: cell for name, cell in record["cells"].items()
            if has(DEFAULT_WAYS[-1])(cell) and name not in record["tuning"]["cells"] and not mark_of(cell)}  # fmt: skip

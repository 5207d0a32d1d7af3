"""Tables of docs/benchmark.md, from the records of the tables on images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from covary_bench.baselines.images import BASELINES
from covary_bench.scoring import EVERY_WAY, OURS
from covary_bench.summary import FIGURES, mark_of, value

Record = Mapping[str, Any]
AUROC = FIGURES["mean_auroc_masked"]
CONTROLS = (
    "pile on features", "pile on activations", "pile on gradients", "survival", "Spectral Signatures in the pool",
)  # fmt: skip
RIVALS = ("Mahalanobis", "Spectral Signatures", "IBD-PSC", "profile on activations", "KNN on features")
FIGURES_OF_PARTS = ("auroc", "tpr_at_1", "der_calibrated", "der_best", "fpr")
PUBLISHED = ("published (Class CCC)", "published (CLC)", "published offline")


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def number(found: float | None, digits: int = 3) -> str:
    """A figure, or nothing where it was not measured."""
    return "" if found is None else f"{found:.{digits}f}"


def detectors(record: Record) -> str:
    """One line a detector: plain means over held-out cells whose attack works; those with fewer cells come last.

    Ways of covary and controls have a table of their own, `ways`.
    """
    counted = {name: cell for name, cell in record["cells"].items()
               if name not in record["tuning"]["cells"] and not mark_of(cell)}  # fmt: skip
    rows = []
    for name in [OURS, *(name for name in record["baselines"] if name not in (*EVERY_WAY, *CONTROLS))]:
        own = record if name == OURS else record["baselines"][name]
        means = own["measured"]
        n = sum(value(cell, name, AUROC) is not None for cell in counted.values())
        # A mean over other cells than its neighbours' would be compared with them all the same.
        right = sum(value(cell, name, FIGURES["mean_der_right"]) is not None for cell in counted.values())
        means = means if right == n else {**means, "mean_der_right": None}
        rows.append((n < len(counted), -(means["mean_der_calibrated"] or 0), name, n, means))
    cells_ = [
        [f"**{name}**" if name == OURS else name, number(means["mean_der_calibrated"]),
         number(means.get("mean_der_right")) or "not measured", number(means["mean_der_best"]),
         number(means["mean_auroc_masked"], 4), number(means["mean_tpr_at_1"]), str(n)]
        for _, _, name, n, means in sorted(rows, key=lambda row: row[:3])
    ]  # fmt: skip
    return markdown(["detector", "DER calibrated", "DER on right answers", "DER best", "AUROC", "TPR at 1 %", "cells"],
                    cells_)  # fmt: skip


def cells(record: Record) -> str:
    """One line a cell: the victim, our figures, the best baseline."""
    rows = []
    for name, cell in record["cells"].items():
        if "missing" in cell:
            rows.append([f"{name} (missing)", *[""] * 6])
            continue
        mine, victim = cell["detectors"][OURS]["masked"], cell["victim"]
        best = max((other for other in cell["detectors"] if other not in EVERY_WAY), default="",
                   key=lambda other: value(cell, other, AUROC) or 0)  # fmt: skip
        marks = [mark for mark in ("tuning" if name in record["tuning"]["cells"] else "", mark_of(cell)) if mark]
        low, high = mine["auroc_interval"] or (None, None)
        interval = "" if low is None else f" ({low:.3f} to {high:.3f})"
        rows.append([
            name + (f" ({', '.join(marks)})" if marks else ""), number(victim.get("clean_accuracy")),
            number(victim.get("attack_success")), number(mine["auroc"], 4) + interval, number(mine["tpr_at_1"]),
            number(mine["der_calibrated"]), f"{best} {number(value(cell, best, AUROC), 4)}" if best else "",
        ])  # fmt: skip
    return markdown(["cell", "clean accuracy", "attack success", "AUROC masked (95 %)", "TPR at 1 %", "DER calibrated",
                     "best baseline by AUROC"], rows)  # fmt: skip


def compared(*names: str, of: Callable[[Mapping[str, Any]], bool] = lambda cell: True) -> Callable[[Record], str]:
    """A table of masked AUROC, one line a cell: ours, those `names`, the best of all others; then more of ours."""

    def made(record: Record) -> str:
        rows = []
        for name, cell in record["cells"].items():
            if "missing" in cell or not of(cell):
                continue
            mine = cell["detectors"][OURS]["masked"]
            cells_ = [number(value(cell, detector, AUROC)) for detector in (OURS, *names)]
            others = [other for other in cell["detectors"] if other not in (*EVERY_WAY, *names)]
            best = max(others, default="", key=lambda other: value(cell, other, AUROC) or 0)
            mark = f" ({mark_of(cell)})" if mark_of(cell) else ""
            mark += " (tuning)" if name in record["tuning"]["cells"] else ""
            rows.append([name + mark, *cells_, f"{best} {number(value(cell, best, AUROC))}" if best else "",
                         number(mine["tpr_at_1"]), number(mine["der_calibrated"])])  # fmt: skip
        heads = ["cell", OURS, *names, "best of the others", "covary: TPR at 1 %", "covary: DER calibrated"]
        return markdown(heads, rows)

    return made


def parts(record: Record) -> str:
    """One line an evidence part, beside all of them: means over held-out cells whose attack works."""
    counted = {name: cell for name, cell in record["cells"].items()
               if name not in record["tuning"]["cells"] and not mark_of(cell)}  # fmt: skip
    shown = []
    for name in (OURS, "functional part", "latent part", "confidence part"):
        found = [[value(cell, name, ("masked", key)) for key in FIGURES_OF_PARTS] for cell in counted.values()]
        measured = np.array([row for row in found if None not in row], float)
        if len(measured):
            auroc, *others = measured.mean(0)
            shown.append([name, number(auroc, 4), *map(number, others), str(len(measured))])
    return markdown(["evidence", "AUROC", "TPR at 1 %", "DER calibrated", "DER best", "false alarms", "cells"], shown)


def has(name: str) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a cell has that detector."""
    return lambda cell: name in cell.get("detectors", {})


def deals(record: Record) -> str:
    """Means over deals of the trusted samples, the best calibrated rating first."""
    rows = []
    for name, own in sorted(record["detectors"].items(), key=lambda pair: -pair[1]["mean_der_calibrated"]):
        ahead = own["deals_ahead"]
        against = "" if name == OURS else f"{ahead['der_calibrated']}, {ahead['der_best']}, {ahead['auroc']}"
        spread = own["deal_spread"]["der_calibrated"]
        rows.append([f"**{name}**" if name == OURS else name, f"{own['mean_der_calibrated']:.3f} ({spread:.3f})",
                     number(own["mean_der_best"]), number(own["mean_auroc"], 4), number(own["mean_tpr_at_1"]),
                     against])  # fmt: skip
    return markdown(["detector", "DER calibrated (spread over deals)", "DER best", "AUROC masked", "TPR at 1 %",
                     f"of {record['deals']} deals, covary ahead by DER calibrated, DER best, AUROC"], rows)  # fmt: skip


def deals_of_cells(record: Record) -> str:
    """How far single cells move with the deal, those that move most first."""
    width = {name: own["auroc"]["largest"] - own["auroc"]["least"] for name, own in record["cells"].items()}
    rows = []
    for name in sorted(width, key=lambda name: -width[name])[:8]:
        own = record["cells"][name]
        rows.append([name, *(f"{own[key]['mean']:.3f} ({own[key]['least']:.3f} to {own[key]['largest']:.3f})"
                             for key in ("auroc", "der_calibrated"))])  # fmt: skip
    return markdown(["cell", "covary: AUROC masked", "covary: DER calibrated"], rows)


def by_variant(record: Record) -> dict[str, list[Mapping[str, Any]]]:
    grouped: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for name, cell in record["cells"].items():
        if "missing" not in cell:
            grouped[name.rsplit("/", 1)[0]].append(cell)
    return grouped


def seeds(values: Iterable[float | None], digits: int = 3) -> str:
    return ", ".join(number(v, digits) for v in values if v is not None)


def sensitivity(record: Record) -> str:
    """One line a case, seeds side by side: masked AUROC of ours and of three baselines, our rating, false alarms."""
    names = (OURS, "KNN on features", "Mahalanobis by layer", "class-max cosine")
    rows = [
        [case, *(seeds(value(cell, name, AUROC) for cell in own) for name in names),
         *(seeds(value(cell, OURS, ("masked", key)) for cell in own) for key in ("der_calibrated", "fpr"))]
        for case, own in by_variant(record).items()
    ]  # fmt: skip
    return markdown(["case", *names, "covary: DER calibrated", "false alarms"], rows)


def mechanisms(record: Record) -> str:
    """One line a cell: mechanisms there are and found, and how well clusters agree with them."""
    rows = [
        [name, str(cell.get("mechanisms_true", "")), str(cell.get("mechanisms_found", "")), number(cell.get("ari")),
         number(cell.get("ari_flagged")), mark_of(cell)]
        for name, cell in record["cells"].items() if "missing" not in cell
    ]  # fmt: skip
    return markdown(["cell", "mechanisms", "found", "ARI", "ARI, everything flagged", "mark"], rows)


def distances(record: Record) -> str:
    """Mean masked AUROC over near and over far foreign sets: ours and the five best."""
    rows = []
    for distance, own in record["by_distance"].items():
        others = sorted((name for name in own if name in BASELINES), key=lambda name: -own[name])[:5]
        rows += [[f"{distance} ({own['cells']} sets)", name, number(own[name])] for name in (OURS, *others)]
    return markdown(["sets", "detector", "mean AUROC"], rows)


def attempts(record: Record) -> str:
    """Every attempt of an attacker who hides: what it paid and what its own judges still saw."""
    rows, judges = [], ("KNN on features", "Mahalanobis", "Mahalanobis by layer")
    for name, cell in record["cells"].items():
        victim = cell.get("victim") or {}
        for one in victim.get("attempts", []):
            judged = " (judged)" if one["strength"] == victim.get("strength") else ""
            rows.append([name, f"{one['strength']:g}{judged}", number(one["clean_accuracy"]),
                         number(one["attack_success"]), *(number(one["auroc"].get(j)) for j in judges)])  # fmt: skip
    return markdown(["cell", "strength", "clean accuracy", "attack success", *judges], rows)


def hidden(record: Record) -> str:
    """One line a detector, one column a cell: masked AUROC against attackers who hide, without further ways."""
    names = [name for name, cell in record["cells"].items() if "missing" not in cell]
    found = [OURS, *(name for name in record["baselines"] if name not in EVERY_WAY)]
    rows = [[f"**{d}**" if d == OURS else d, *(number(value(record["cells"][n], d, AUROC)) for n in names)]
            for d in found]  # fmt: skip
    tpr = [number(value(record["cells"][n], OURS, FIGURES["mean_tpr_at_1"])) for n in names]
    der = [number(value(record["cells"][n], OURS, FIGURES["mean_der_calibrated"])) for n in names]
    rows[1:1] = [["*its TPR at 1 %*", *tpr], ["*its DER calibrated*", *der]]
    return markdown(["detector", *names], rows)

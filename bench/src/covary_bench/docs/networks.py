"""Tables of docs/benchmark.md on more networks and attacks: cells, means, losses, aims; aims on foreign sets, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from covary_bench.docs.images import AUROC, CONTROLS, Record, markdown, number
from covary_bench.docs.ways import ways_of
from covary_bench.scoring import BOTH, EVERY_WAY, OURS, THOROUGH, TOGETHER
from covary_bench.summary import mark_of, value

WAYS = (BOTH, TOGETHER, THOROUGH, OURS)
FIGURES = ("auroc", "tpr_at_1", "der_calibrated", "der_best")
# What the means of these cells were to be at least, before one of them was measured.
AIMS = {"auroc": ("AUROC", 0.995), "tpr_at_1": ("TPR at 1 %", 0.95), "der_best": ("DER best", 0.985)}
RIVALS = ("Mahalanobis", "Spectral Signatures", "IBD-PSC", "TED", "TED++", "QUE", "AdaDetect", "KNN on features", "NAC",
          "SCALE", "NNGuide", "fDBD", "PSBD", "BaDExpert", "energy")  # fmt: skip
BEHIND = 0.005  # what covary together may be behind the best of all baselines on foreign sets
LEVEL = 0.001  # AUROCs nearer to each other are level


def measured(record: Record) -> dict[str, Mapping[str, Any]]:
    """Cells whose attack works and where every way was measured."""
    return {name: cell for name, cell in record["cells"].items()
            if not mark_of(cell) and all(value(cell, way, AUROC) is not None for way in WAYS)}  # fmt: skip


def mean_of(cells: Record, detector: str, figure: str) -> float:
    """Mean of one masked figure over cells that have it."""
    found = [v for cell in cells.values() if (v := value(cell, detector, ("masked", figure))) is not None]
    return float(np.mean(found))


def best_of(cell: Mapping[str, Any], names: list[str]) -> tuple[str, float]:
    """Who of them has the largest masked AUROC."""
    found = {name: v for name in names if (v := value(cell, name, AUROC)) is not None}
    best = max(found, key=lambda name: found[name], default="")
    return best, found.get(best, 0.0)


def others(cell: Mapping[str, Any]) -> list[str]:
    """Detectors of a cell that are neither covary nor a control of it."""
    return [name for name in cell["detectors"] if name not in (*EVERY_WAY, *CONTROLS)]


def cells(record: Record) -> str:
    """One line a cell: the victim, four figures of every way, the best baseline and the best control."""
    rows = []
    for name, cell in record["cells"].items():
        if "missing" in cell:
            continue
        victim, mark = cell["victim"], mark_of(cell)
        told = [", ".join(number(value(cell, way, ("masked", key)), 4 if key == "auroc" else 3) for key in FIGURES)
                for way in WAYS]  # fmt: skip
        best = [f"{who} {number(v, 4)}" for who, v in (best_of(cell, others(cell)), best_of(cell, [*CONTROLS]))]
        rows.append([f"{name} ({mark})" if mark else name, number(victim.get("clean_accuracy")),
                     number(victim.get("attack_success")), *told, *best])  # fmt: skip
    heads = ["cell", "clean accuracy", "attack success", *WAYS, "best baseline", "best control"]
    absent: dict[str, list[str]] = {}
    for name, cell in record["cells"].items():
        if "missing" in cell:
            what, dataset, _ = name.split("/")
            absent.setdefault(dataset, []).append(what)
    lists = "; ".join(f"{dataset}: {', '.join(whats)}" for dataset, whats in absent.items())
    aside = f"\nNot measured yet: {lists}.\n" if absent else ""
    return markdown(heads, rows) + aside if rows else ""


def means(record: Record) -> str:
    """Means over the cells whose attack works: ways, controls and every baseline measured in all of them."""
    return ways_of(measured(record), (*WAYS[::-1], *CONTROLS, *RIVALS))


def aims(record: Record) -> str:
    """One line a figure: what was to be reached, what each way reaches, and whether that is met."""
    counted = measured(record)
    if not counted:
        return ""
    rows = []
    for key, (word, aim) in AIMS.items():
        told = []
        for way in WAYS:
            mean = mean_of(counted, way, key)
            told.append(f"{number(mean, 4)}, {'met' if mean >= aim else '**missed**'}")
        rows.append([word, f"{aim:g}", *told])
    return markdown(["mean", "aim", *WAYS], rows) + f"\n{len(counted)} cells.\n"


def losses(record: Record) -> str:
    """One line a cell in which a baseline or a control is ahead of covary together, thorough, by masked AUROC."""
    rows = []
    for name, cell in measured(record).items():
        mine = value(cell, BOTH, AUROC)
        best, theirs = best_of(cell, [*others(cell), *CONTROLS])
        if mine is not None and theirs > mine + LEVEL:
            caught = [value(cell, who, ("masked", "tpr_at_1")) for who in (BOTH, best)]
            rows.append((theirs - mine, [name, number(mine, 4), f"{best} {number(theirs, 4)}", number(theirs - mine, 4),
                                         number(caught[0]), number(caught[1])]))  # fmt: skip
    if not rows:
        return f"Nobody is ahead by more than {LEVEL} of AUROC in a cell.\n" if measured(record) else ""
    heads = ["cell", BOTH, "who is ahead", "by", "covary: TPR at 1 %", "theirs"]
    return markdown(heads, [row for _, row in sorted(rows, key=lambda pair: -pair[0])])


def distances(record: Record) -> str:
    """One line a distance of foreign sets: ways by mean AUROC, the best of all others, and whether the aim is met."""
    rows = []
    for distance, own in record["by_distance"].items():
        if BOTH not in own:
            continue
        best = max((name for name in own if name not in ("cells", *EVERY_WAY)), key=lambda name: own[name])
        rows.append([f"{distance} ({own['cells']} sets)", *(number(own[way], 4) for way in WAYS),
                     f"{best} {number(own[best], 4)}", f"{own[BOTH] - own[best]:+.4f}",
                     "met" if own[BOTH] >= own[best] - BEHIND else "**missed**"])  # fmt: skip
    heads = ["held-out sets", *WAYS, "best of all others", "difference", f"at most {BEHIND} behind"]
    return markdown(heads, rows) if rows else ""

"""How much of a figure is the luck of the deal: a table's cells with trusted samples dealt to their roles anew.

    python -m covary_bench.studies.deals vision --scale small --deals 10 --cache cache --out bench/results

Only detectors that need no further pass over the network take part; victims, cases and rows are those of the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covary.errors import CovaryError
from covary.storage import folders
from covary_bench.baselines.images import cheap
from covary_bench.cell import Cell
from covary_bench.columns import write_packed
from covary_bench.figures import view
from covary_bench.images.datasets import cache_folder
from covary_bench.prepared import Prepared
from covary_bench.records import rounded
from covary_bench.runner import results, work_folder
from covary_bench.scoring import OURS, Scored, ours, with_p
from covary_bench.settings import chosen
from covary_bench.summary import mark_of
from covary_bench.table import SCALES, TABLES, Table, table

FIGURES = ("auroc", "tpr_at_1", "fpr", "der_calibrated", "der_best")


def one_deal(prepared: Prepared, fpr: float) -> dict[str, dict[str, float]]:
    """Masked figures of every detector with the roles that `prepared` has dealt."""
    found: dict[str, Scored] = {OURS: ours(prepared)}
    for name, baseline in cheap().items():
        folds = range(len(prepared.folds()))
        every = [baseline(prepared.material(fold, baseline.needs), **chosen(name)) for fold in folds]
        found[name] = with_p(prepared, every, 0.0)
    inputs = prepared.inputs
    figures = {name: view(one, inputs, inputs.masked, fpr) for name, one in found.items()}
    return {name: {key: own[key] for key in FIGURES} for name, own in figures.items()}


def deals_of(found: Table, cell: Cell, cache: Path, deals: int) -> list[dict[str, dict[str, float]]]:
    """Figures of one cell, one entry a deal; those computed before are read from the cell's folder."""
    work = work_folder(found, cell, cache)
    kept = work / "deals.json"
    known: list[Any] = folders.read_json(kept, "figures of deals")["deals"] if kept.is_file() else []
    if len(known) < deals:
        prepared = Prepared(work / "case", work, found.fpr)
        for seed in range(len(known), deals):
            known.append(one_deal(prepared.with_split_seed(seed), found.fpr))
            folders.write_json(kept.with_suffix(".part"), {"deals": known})
            kept.with_suffix(".part").rename(kept)
    return known[:deals]


def record(found: Table, cells: dict[str, list[dict[str, dict[str, float]]]]) -> dict[str, Any]:
    """Means over held-out cells and deals, their spread over deals, and of our score every cell's own.

    `deal_spread` is the standard deviation, over deals, of the mean over cells; `deals_ahead` counts the deals in which
    ours has the larger mean.
    """
    judged = {name: own for name, own in cells.items() if name not in found.tuning}
    if not judged:
        raise CovaryError(f"no held-out cell of {found.name} was measured", "at least one", "run `covary-bench` first")
    detectors: dict[str, Any] = {}
    names = list(next(iter(judged.values()))[0])
    # (cells, deals) of one figure
    grid = {
        name: {key: np.array([[deal[name][key] for deal in own] for own in judged.values()]) for key in FIGURES}
        for name in names
    }
    for name in names:
        detectors[name] = {f"mean_{key}": float(grid[name][key].mean()) for key in FIGURES}
        by_deal = {key: grid[name][key].mean(0) for key in FIGURES}
        detectors[name]["deal_spread"] = {key: float(values.std()) for key, values in by_deal.items()}
        ahead = {key: int((grid[OURS][key].mean(0) > values).sum()) for key, values in by_deal.items()}
        detectors[name]["deals_ahead"] = {key: ahead[key] for key in ("auroc", "der_calibrated", "der_best")}
    every = {
        cell: {key: {"mean": float(np.mean(v)), "least": float(np.min(v)), "largest": float(np.max(v))}
               for key in FIGURES if (v := [deal[OURS][key] for deal in own])}
        for cell, own in cells.items()
    }  # fmt: skip
    return {"table": found.name, "scale": found.scale, "fpr": found.fpr, "held_out": list(judged),
            "deals": len(next(iter(judged.values()))), "detectors": detectors, "cells": every}  # fmt: skip


def as_markdown(record: dict[str, Any]) -> str:
    """Detectors by their means, the best calibrated rating first."""
    lines = [f"## {record['table']}, scale {record['scale']}, {record['deals']} deals of the trusted samples", ""]
    heads = ["detector", "DER calibrated (spread over deals)", "DER best", "AUROC masked", "TPR at 1 %",
             "deals with ours ahead: DER calibrated, DER best, AUROC"]  # fmt: skip
    lines += ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for name, own in sorted(record["detectors"].items(), key=lambda pair: -pair[1]["mean_der_calibrated"]):
        ahead = own["deals_ahead"]
        against = "" if name == OURS else f"{ahead['der_calibrated']}, {ahead['der_best']}, {ahead['auroc']}"
        lines.append(
            f"| {name} | {own['mean_der_calibrated']:.3f} ({own['deal_spread']['der_calibrated']:.3f}) | "
            f"{own['mean_der_best']:.3f} | {own['mean_auroc']:.4f} | {own['mean_tpr_at_1']:.3f} | {against} |"
        )
    return "\n".join(lines) + "\n"


def run(name: str, scale: str, deals: int, cache: Path, out: Path) -> dict[str, Any]:
    """Deals every cell that the cache holds a result of; writes `TABLE-SCALE-deals.json` and `.md`; returns the record.

    Cells that are missing, or whose attack failed, are left out.
    """
    found = table(name, scale)
    if deals < 1:
        raise CovaryError(f"{deals} deals", "at least one")
    measured = results(found, cache)
    there = [cell for cell in found.cells if not mark_of(measured[str(cell)])]
    cells = {}
    for cell in there:
        cells[str(cell)] = deals_of(found, cell, cache, deals)
        ours_ = [deal[OURS]["auroc"] for deal in cells[str(cell)]]
        print(f"{cell}: AUROC {np.mean(ours_):.4f} ({min(ours_):.4f} to {max(ours_):.4f})", file=sys.stderr, flush=True)
    result = record(found, cells)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}-{scale}-deals.json"
    result = rounded(result)
    write_packed(path, result)
    path.with_suffix(".md").write_text(as_markdown(result), encoding="utf-8", newline="\n")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m covary_bench.studies.deals", description="Deal samples anew.")
    parser.add_argument("table", choices=[name for name in TABLES if name not in ("language", "mechanisms")])
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--deals", type=int, default=10)
    parser.add_argument("--cache", type=Path, default=cache_folder())
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    options = parser.parse_args(arguments)
    try:
        print(as_markdown(run(options.table, options.scale, options.deals, options.cache, options.out)))
    except CovaryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Settings of the baselines by one command: the best mean masked AUROC on the tuning cells, and only there."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from covary.errors import CovaryError
from covary.runs.figures.quality import auroc
from covary.storage import folders
from covary_bench.baselines.images import BASELINES
from covary_bench.cell import Cell
from covary_bench.images.makers import maker
from covary_bench.prepared import Prepared
from covary_bench.runner import Say, work_folder
from covary_bench.settings import as_toml, settings_file
from covary_bench.table import Table, table


def choices(grid: dict[str, tuple]) -> list[dict[str, Any]]:
    """Every combination of a grid, its defaults first."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def tuned(found: Table, cache: Path, *, device: str = "cpu", say: Say) -> dict[str, Any]:
    """Masked AUROC of every choice of every baseline's grid on every tuning cell, and the best; our own never change.

    Each cell's figures are kept in its folder, so that a killed run goes on. Ties go to the earlier choice.
    """
    if not found.tuning:
        raise CovaryError(f"the table {found.name} has no tuning cells", "a list `tuning`")
    tried: dict[str, dict[str, dict[str, float]]] = {}
    for name in found.tuning:
        cell = Cell.parse(name)
        work = work_folder(found, cell, cache)
        if not (work / "case" / "case.json").is_file():
            maker(found.maker).make(cell, found.size, cache, work / "case", device)
        kept = work / "tuning.json"
        tried[name] = folders.read_json(kept, "figures of tuning") if kept.is_file() else {}
        prepared = Prepared(work / "case", work, found.fpr, device)
        for baseline, described in BASELINES.items():
            if not described.grid or described.needs == "chain" or baseline in tried[name]:
                continue
            material = prepared.material(0, described.needs)
            skip, inputs = len(prepared.folds()[0][2]), prepared.inputs
            figures = {}
            for choice in choices(described.grid):
                scores = described(material, **choice)[skip:]
                figures[repr(choice)] = auroc(scores[inputs.masked], inputs.truth[inputs.masked])
            tried[name][baseline] = figures
            folders.write_json(kept.with_suffix(".part"), tried[name])
            kept.with_suffix(".part").rename(kept)
            say(f"{name}: {baseline} {figures}")
    chosen: dict[str, dict[str, Any]] = {}
    means: dict[str, dict[str, float]] = {}
    for baseline, described in BASELINES.items():
        if not described.grid or described.needs == "chain":
            continue
        every = choices(described.grid)
        means[baseline] = {repr(c): float(np.mean([tried[n][baseline][repr(c)] for n in tried])) for c in every}
        chosen[baseline] = max(every, key=lambda c: means[baseline][repr(c)])
    return {"cells": list(found.tuning), "chosen": chosen, "mean_auroc_masked": means, "by_cell": tried}


def run(scale: str, cache: Path, out: Path, *, device: str = "cpu", say: Say) -> dict[str, Any]:
    """Tunes on the vision table's tuning cells; writes `tuning-SCALE.json` and the baselines' settings."""
    found = tuned(table("vision", scale), cache, device=device, say=say)
    out.mkdir(parents=True, exist_ok=True)
    folders.write_json(out / f"tuning-{scale}.json", found)
    settings_file().write_text(as_toml(found["chosen"]), encoding="utf-8")
    say(f"settings written to {settings_file()}")
    return found

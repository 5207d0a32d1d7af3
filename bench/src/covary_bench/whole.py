"""What `covary-bench` does: tables with their files, tuning, packing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from covary.errors import CovaryError, unknown_name
from covary.models.network import check_device
from covary.storage import folders
from covary_bench import pack, tune
from covary_bench.language import page
from covary_bench.language import runner as texts
from covary_bench.outputs import write_outputs
from covary_bench.runner import Say, run_table
from covary_bench.table import SCALES, TABLES, table


def aloud(line: str) -> None:
    """Says a line to who is waiting."""
    print(line, file=sys.stderr, flush=True)


def known_cells(path: Path) -> dict[str, Any]:
    """Cells of an earlier record, if there is one."""
    content = folders.read_json(path, "a record of the benchmark") if path.is_file() else {"cells": {}}
    if not isinstance(content, dict) or not isinstance(content.get("cells"), dict):
        raise CovaryError(f"{path} has no cells", "a record of the benchmark", "move it away, or choose another --out")
    return content["cells"]


def run(
    what: str,
    scale: str,
    *,
    cache: Path,
    out: Path,
    only: Sequence[str] = (),
    chains: bool = False,
    again: bool = False,
    device: str = "cpu",
    dataset: str = "cifar10",
    limit: float = 60.0,
    threads: int = 1,
    say: Say = aloud,
) -> dict[str, Any]:
    """Runs one table or `all`, `tune` or `pack`; returns what was written and the main figures.

    Raises:
        CovaryError: an unknown table, scale, cell, data set or device, or a cell of `only` that cannot be made.
    """
    if scale not in SCALES:
        raise unknown_name("scale", scale, SCALES)
    check_device(device)
    torch.set_num_threads(threads)
    if what == "tune":
        return tune.run(scale, cache, out, device=device, say=say)
    if what == "pack":
        return pack.write_pack(dataset, out, limit)
    names = TABLES if what == "all" else (what,)
    if only and len(names) > 1:
        raise CovaryError("--cell with all tables", "one table", "name the table that the cell is of")
    told: dict[str, Any] = {}
    for name in names:
        found = table(name, scale)
        settings = {"only": only, "chains": chains, "again": again, "device": device, "say": say}
        settings["known"] = known_cells(out / f"{name}-{scale}.json")
        if found.maker == "language":
            record = texts.run_table(found, cache, **settings)
            written = page.write_outputs(record, out)
            told[name], marked = page.main_figures(record), record["missing"]
        else:
            record = run_table(found, cache, **settings)
            written, marked = write_outputs(record, out), record["marked"]
            told[name] = {key: value for key, value in record.items() if key.startswith("mean_")}
        told[name] |= {"marked": marked, "files": [str(path) for path in written]}
        say(f"{name}: {len(record['cells'])} cells, {len(marked)} of them marked; {written[0]}")
    return told

"""What `covary bench` does: tables with their files, tuning, packing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from covary import store
from covary.bench import pack, tune
from covary.bench.language import page
from covary.bench.language import runner as texts
from covary.bench.outputs import write_outputs
from covary.bench.runner import Say, run_table
from covary.bench.table import SCALES, TABLES, table
from covary.errors import CovaryError, unknown_name


def aloud(line: str) -> None:
    """Says a line to who is waiting."""
    print(line, file=sys.stderr, flush=True)


def quiet(line: str) -> None:
    """Says nothing."""


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
        CovaryError: an unknown table, scale, cell or data set.
    """
    if scale not in SCALES:
        raise unknown_name("scale", scale, SCALES)
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
        earlier = out / f"{name}-{scale}.json"
        known = store.read_json(earlier, "a record")["cells"] if earlier.is_file() else None
        settings = {"only": only, "chains": chains, "again": again, "device": device, "known": known, "say": say}
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

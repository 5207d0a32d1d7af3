"""What `covary-bench` does with tables: runs them, makes their cases, writes their files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from covary.errors import CovaryError, unknown_name
from covary.models.network import check_device
from covary_bench.case import Say, modality
from covary_bench.records import read_record
from covary_bench.runner import cells_of, run_table
from covary_bench.table import SCALES, TABLES, Table, table


def print_line(line: str) -> None:
    """Says a line to who is waiting."""
    print(line, file=sys.stderr, flush=True)


def known_cells(path: Path) -> dict[str, Any]:
    """Cells of an earlier record, if there is one."""
    return read_record(path)["cells"] if path.is_file() else {}


def chosen(what: str, scale: str, only: Sequence[str] = ()) -> list[Table]:
    """One table, or `all`, at a scale.

    Raises:
        CovaryError: an unknown table or scale, or cells of all tables at once.
    """
    if scale not in SCALES:
        raise unknown_name("scale", scale, SCALES)
    names = TABLES if what == "all" else (what,)
    if only and len(names) > 1:
        raise CovaryError("cells of all tables", "one table", "name the table that the cell is of")
    return [table(name, scale) for name in names]


def run(
    what: str,
    scale: str,
    *,
    cache: Path,
    out: Path,
    only: Sequence[str] = (),
    chains: bool = False,
    again: bool = False,
    skip: Sequence[str] = (),
    device: str = "cpu",
    threads: int = 1,
    say: Say = print_line,
) -> dict[str, Any]:
    """Runs one table or `all`; returns the main figures and what was written.

    Raises:
        CovaryError: an unknown table, scale, cell, baseline or device, or a cell of `only` that cannot be made.
    """
    tables = chosen(what, scale, only)
    check_device(device)
    torch.set_num_threads(threads)
    summary: dict[str, Any] = {}
    for found in tables:
        how = modality(found)
        known = known_cells(out / f"{found.name}-{scale}.json")
        record = run_table(
            found, cache, only=only, chains=chains, again=again, skip=skip, device=device, known=known, say=say
        )
        written, marked = how.write(record, out), how.marked(record)
        summary[found.name] = how.main(record) | {"marked": marked, "files": [str(path) for path in written]}
        say(f"{found.name}: {len(record['cells'])} cells, {len(marked)} of them marked; {written[0]}")
    return summary


def make_cases(
    what: str, scale: str, *, cache: Path, only: Sequence[str] = (), device: str = "cpu", say: Say = print_line
) -> dict[str, str]:
    """Makes the cases of a table, or of `all`, and scores nothing; returns cell -> its folder, or why there is none."""
    check_device(device)
    made: dict[str, str] = {}
    for found in chosen(what, scale, only):
        for cell, case in cells_of(found, cache, only):
            try:
                made[f"{found.name} {cell}"] = str(case.make(device, say))
            except CovaryError as problem:
                if only:
                    raise
                made[f"{found.name} {cell}"] = f"missing: {problem}"
            say(f"{found.name} {cell}: {made[f'{found.name} {cell}']}")
    return made

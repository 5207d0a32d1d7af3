"""Runs a table cell by cell: every stage is written as it ends, so that a killed run goes on where it stood."""

from __future__ import annotations

import json
import platform
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from covary.errors import CovaryError
from covary.storage import folders
from covary.storage.fingerprints import versions
from covary_bench import extras
from covary_bench.baselines import BASELINES, Baseline
from covary_bench.cell import Cell
from covary_bench.figures import figures
from covary_bench.makers import checked, maker
from covary_bench.prepared import Prepared
from covary_bench.scoring import OURS, anew, ours, scored, scores_path, stale, with_chain
from covary_bench.settings import chosen
from covary_bench.summary import record
from covary_bench.table import Table

Say = Callable[[str], None]
COUNTS = ("trusted", "clean", "anomalous", "sampling")


def silent(line: str) -> None:
    """Says nothing."""


def wanted_baselines(table: Table, work: Path, chains: bool, known: Mapping[str, Baseline] = BASELINES) -> list[str]:
    """Names in the table's order; those that take hours only if asked for, or if their scores are there already."""
    names = list(table.size.baselines) or list(known)
    for name in names:
        if name not in known:
            raise CovaryError(f"the table {table.name} names the baseline {name!r}", f"one of: {', '.join(known)}")
    return [n for n in names if known[n].needs != "chain" or chains or scores_path(work, n).is_file()]


def run_cell(table: Table, cell: Cell, cache: Path, *, chains: bool = False, device: str = "cpu",
             say: Say = silent) -> dict[str, Any]:  # fmt: skip
    """Everything about one cell; stages that are there already are not done again."""
    work = work_folder(table, cell, cache)
    case = work / "case"
    began = time.perf_counter()
    if not same_size(table, work):
        shutil.rmtree(work)
    if not (case / "case.json").is_file():
        maker(table.maker).make(cell, table.size, cache, case, device)
        folders.write_json(work / "size.json", sizes(table))
        say(f"{cell}: case made in {time.perf_counter() - began:.0f} s")
    prepared = Prepared(case, work, table.fpr, device)
    judged = ours(prepared)
    inputs = prepared.inputs
    kept = inputs.group != "hard"
    found = {OURS: judged}
    errors = {}
    for name in wanted_baselines(table, work, chains):
        try:
            found[name] = scored(prepared, name, BASELINES[name], chosen(name))
        except CovaryError as problem:
            errors[name] = str(problem)
    found = with_chain(found, BASELINES, work, len(inputs.truth) + len(prepared.folds()[0][2]))
    shown = inputs.take(kept)
    detectors = {}
    for name, one in found.items():
        own = type(one)(one.score[kept], one.p_value[kept], one.seconds)
        detectors[name] = figures(own, shown, table.fpr)
    facts = {k: v for k, v in prepared.facts.items() if k not in ("model", "weights", "mean", "std")}
    return {
        **facts, "cell": str(cell), "detectors": detectors, "errors": errors,
        "calibration": prepared.judge.mode, "n_calibration": len(prepared.judge.calibration_scores),
        "about": about(device),
        **extras.more(table.maker, prepared, found),
    }  # fmt: skip


def work_folder(table: Table, cell: Cell, cache: Path) -> Path:
    """Where a cell's case, rows, scores and result are kept."""
    return cache / "bench" / f"{table.name}-{table.scale}" / cell.slug


def cell_path(table: Table, cell: Cell, cache: Path) -> Path:
    """Where a cell's result is kept."""
    return work_folder(table, cell, cache) / "result.json"


def run_table(
    table: Table,
    cache: Path,
    *,
    only: Sequence[str] = (),
    chains: bool = False,
    again: bool = False,
    device: str = "cpu",
    known: Mapping[str, dict[str, Any]] | None = None,
    say: Say = silent,
) -> dict[str, Any]:
    """Runs the cells of a table that have no result yet, and returns the record of all there are.

    `only` names cells to run, `again` runs them anew from their cached case, `chains` adds the baselines that take
    hours to those that are done. A cell that cannot be made is missing, with its reason. `known` are cells of an
    earlier record, which stand in for those that the cache has no result of.

    Raises:
        CovaryError: a cell that no such table can have, or one of `only` that cannot be made.
    """
    chosen_cells = [checked(table.maker, Cell.parse(name)) for name in only] or table.cells
    for cell in chosen_cells:
        path = cell_path(table, cell, cache)
        if not again and finished(table, path, chains):
            continue
        made = partial(run_cell, table, cell, cache, chains=chains, device=device, say=say)
        result = score_anew(path, cell, made, BASELINES, chains) if again else keep(path, cell, made)
        say(one_line(result))
        if only:
            check_complete(result)
    return record(table, results(table, cache, chosen_cells, known), about(device))


def keep(path: Path, cell: Cell, made: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `made` gives of a cell, with its seconds, written whole to `path`; a cell that fails is missing.

    A failure never replaces a result that is there.
    """
    began = time.perf_counter()
    try:
        result = made()
    except CovaryError as problem:
        result: dict[str, Any] = {"cell": str(cell), "missing": str(problem)}
    except Exception as problem:  # one broken cell must not cost the others
        traceback.print_exc()
        result = {"cell": str(cell), "missing": f"{type(problem).__name__}: {problem}"}
    result["seconds"] = round(time.perf_counter() - began, 1)
    if "missing" in result and path.is_file() and "missing" not in json.loads(path.read_text()):
        return result
    path.parent.mkdir(parents=True, exist_ok=True)
    folders.write_json(path.with_suffix(".part"), result)
    path.with_suffix(".part").rename(path)
    return result


def score_anew(
    path: Path, cell: Cell, made: Callable[[], dict[str, Any]], known: Mapping[str, Baseline], chains: bool
) -> dict[str, Any]:
    """The same with rows and scores of `known` computed again; what takes hours stays unless `chains` asks for it."""
    with anew(path.parent, [name for name, own in known.items() if chains or own.needs != "chain"]) as ended:
        ended(result := keep(path, cell, made))
    return result


def check_complete(result: Mapping[str, Any]) -> None:
    """Raises CovaryError where a cell could not be made."""
    if "missing" in result:
        raise CovaryError(f"the cell {result['cell']} cannot be made: {result['missing']}")


def sizes(table: Table) -> dict[str, int]:
    """What the cases of a table depend on."""
    return {name: getattr(table.size, name) for name in COUNTS}


def same_size(table: Table, work: Path) -> bool:
    """Whether what is there of a cell, if anything, was made at the table's present sizes."""
    path = work / "size.json"
    return not path.is_file() or json.loads(path.read_text()) == sizes(table)


def finished(table: Table, path: Path, chains: bool) -> bool:
    """Whether a result has all that is wanted of it: it is not missing, and no baseline is."""
    if not path.is_file() or not same_size(table, path.parent):
        return False
    result = json.loads(path.read_text())
    there = {*result.get("detectors", {}), *result.get("errors", {})}
    wanted = wanted_baselines(table, path.parent, chains)
    if "missing" in result or not set(wanted) <= there:
        return False
    return not any(stale(path.parent, name, chosen(name)) for name in wanted)


def results(
    table: Table, cache: Path, also: Sequence[Cell] = (), known: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """Results of the table's cells so far, by name, of the cache or else those `known`; a cell never run is missing."""
    every = {str(cell): cell for cell in [*table.cells, *also]}
    found = {}
    for name, cell in every.items():
        path = cell_path(table, cell, cache)
        here = json.loads(path.read_text()) if path.is_file() else {}
        earlier = (known or {}).get(name, {})
        # A cell that once was measured does not go missing for want of data or memory on this machine.
        found[name] = here if "detectors" in here or not earlier else earlier
        found[name] = found[name] or {"cell": name, "missing": "not run"}
    return found


def one_line(result: Mapping[str, Any]) -> str:
    """What to print when a cell has ended."""
    if "missing" in result:
        return f"{result['cell']}: missing, {result['missing']}"
    masked = result["detectors"][OURS]["masked"]
    told = ", ".join(f"{name} {masked[key]:.4f}" for name, key in (("AUROC", "auroc"), ("DER", "der_calibrated"))
                     if masked[key] is not None)  # fmt: skip
    return f"{result['cell']}: {told} in {result['seconds']:.0f} s"


def about(device: str) -> dict[str, Any]:
    """Where the figures were made."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return {"device": name, "threads": torch.get_num_threads(), "versions": versions()}

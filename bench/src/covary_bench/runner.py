"""Runs a table cell by cell: every stage is written as it ends, so that a killed run goes on where it stood."""

from __future__ import annotations

import json
import platform
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from covary.errors import CovaryError, unknown_name
from covary.storage import folders
from covary.storage.fingerprints import versions
from covary_bench.baselines.images import BASELINES
from covary_bench.case import Case, Say, modality
from covary_bench.cell import Cell
from covary_bench.records import plain, rounded
from covary_bench.scoring import OURS, WAYS, ours, rescored, scored, scores_path, stale, with_chain
from covary_bench.table import Table


def silent(line: str) -> None:
    """Says nothing."""


def selected_baselines(table: Table, case: Case, chains: bool, skip: Sequence[str] = ()) -> list[str]:
    """Names in the table's order; those that take hours only if asked for, or if their scores are there already.

    The same of those to `skip`, which are asked for by another run.
    """
    known = case.baselines
    names = list(table.size.baselines) or list(known)
    for name in names:
        if name not in known:
            raise CovaryError(f"the table {table.name} names the baseline {name!r}", f"one of: {', '.join(known)}")
    for name in skip:
        if name not in known:
            raise unknown_name("baseline to skip", name, known)
    asked = [name for name in names if name not in skip and (chains or known[name].needs != "chain")]
    return [name for name in names if name in asked or scores_path(case.work, name).is_file()]


def run_cell(table: Table, cell: Cell, cache: Path, *, chains: bool = False, skip: Sequence[str] = (),
             device: str = "cpu", say: Say = silent) -> dict[str, Any]:  # fmt: skip
    """Everything about one cell; stages that are there already are not done again."""
    case = modality(table).case(table, cell, cache)
    case.make(device, say)
    prepared = case.prepared(device)
    found, errors = {OURS: ours(prepared)}, {}
    for name in table.size.ways:
        try:
            found[name] = WAYS[name](prepared)
        except CovaryError as problem:
            errors[name] = str(problem)
    for name in selected_baselines(table, case, chains, skip):
        began = time.perf_counter()
        try:
            found[name] = scored(prepared, name, case.baselines[name], case.settings(name))
        except CovaryError as problem:
            errors[name] = str(problem)
        if (seconds := time.perf_counter() - began) > 30:
            say(f"{cell}: {name}, {seconds:.0f} s")
    queries = len(prepared.queries) + len(prepared.folds()[0][2])
    found = with_chain(found, case.baselines, case.work, queries)
    return {
        **case.facts(prepared, found), "cell": str(cell),
        "detectors": {name: case.figures(one, prepared) for name, one in found.items()}, "errors": errors,
        "calibration": prepared.judge.mode, "n_calibration": len(prepared.judge.calibration_scores),
        "about": about(device),
    }  # fmt: skip


def work_folder(table: Table, cell: Cell, cache: Path) -> Path:
    """Where a cell's case, rows, scores and result are kept."""
    return cache / "bench" / f"{table.name}-{table.scale}" / cell.slug


def cell_path(table: Table, cell: Cell, cache: Path) -> Path:
    """Where a cell's result is kept."""
    return work_folder(table, cell, cache) / "result.json"


def cells_of(table: Table, cache: Path, only: Sequence[str] = ()) -> list[tuple[Cell, Case]]:
    """The cells of a table with their cases, or those of `only`.

    Raises:
        CovaryError: a cell of `only` that no such table can have.
    """
    cells = [Cell.parse(name) for name in only] or table.cells
    every = [(cell, modality(table).case(table, cell, cache)) for cell in cells]
    for _, case in every if only else ():
        case.check()
    return every


def run_table(
    table: Table,
    cache: Path,
    *,
    only: Sequence[str] = (),
    chains: bool = False,
    again: bool = False,
    skip: Sequence[str] = (),
    device: str = "cpu",
    known: Mapping[str, dict[str, Any]] | None = None,
    say: Say = silent,
) -> dict[str, Any]:
    """Runs the cells of a table that have no result yet, and returns the record of all there are.

    `only` names cells to run, `again` runs them anew from their cached case, `chains` adds the baselines that take
    hours to those that are done, `skip` are baselines to leave out. A cell that cannot be made is missing, with its
    reason. `known` are cells of an earlier record, which stand in for those that the cache has no result of.

    Raises:
        CovaryError: a cell that no such table can have, or one of `only` that cannot be made.
    """
    facts = modality(table)
    every = cells_of(table, cache, only)
    for cell, case in every:
        path = cell_path(table, cell, cache)
        if not again and finished(table, case, chains, skip):
            continue
        made = partial(run_cell, table, cell, cache, chains=chains, skip=skip, device=device, say=say)
        anew = [name for name, own in case.baselines.items() if (chains or own.needs != "chain") and name not in skip]
        result = rescore(path, cell, made, anew) if again else keep(path, cell, made)
        say(f"{cell}: missing, {result['missing']}" if "missing" in result else f"{cell}: {facts.line(result)}")
        if only:
            check_complete(result)
    return facts.record(table, rounded(results(table, cache, [cell for cell, _ in every], known)), about(device))


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


def rescore(path: Path, cell: Cell, made: Callable[[], dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """The same with rows and the scores of the baselines `names` computed again."""
    with rescored(path.parent, names) as ended:
        ended(result := keep(path, cell, made))
    return result


def check_complete(result: Mapping[str, Any]) -> None:
    """Raises CovaryError where a cell could not be made."""
    if "missing" in result:
        raise CovaryError(f"the cell {result['cell']} cannot be made: {result['missing']}")


def finished(table: Table, case: Case, chains: bool, skip: Sequence[str] = ()) -> bool:
    """Whether there is a result of the case as it is now, with all that is wanted of it."""
    path = case.work / "result.json"
    if not path.is_file() or not case.current():
        return False
    result = json.loads(path.read_text())
    there = {*result.get("detectors", {}), *result.get("errors", {})}
    requested = selected_baselines(table, case, chains, skip)
    if "missing" in result or not {OURS, *table.size.ways, *requested} <= there:
        return False
    return not any(stale(case.work, name, case.settings(name)) for name in requested)


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
        found[name] = with_earlier(here, earlier) if "detectors" in here or not earlier else earlier
        found[name] = found[name] or {"cell": name, "missing": "not run"}
    return found


def with_earlier(here: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's result with those baselines of an earlier record that this run left out, if their victim was the same.

    Left out: because they take hours, or because they were to be skipped.
    """
    if not earlier or rounded(plain(here.get("victim"))) != rounded(plain(earlier.get("victim"))):
        return dict(here)
    kept = {name: found for name, found in earlier.get("detectors", {}).items()
            if name in BASELINES and name not in here.get("errors", {})}  # fmt: skip
    return {**here, "detectors": {**kept, **here.get("detectors", {})}}


def about(device: str) -> dict[str, Any]:
    """Where the figures were made."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return {"device": name, "threads": torch.get_num_threads(), "versions": versions()}

"""Runs the table of language models cell by cell; what is finished is kept, so that a killed run goes on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from covary.errors import CovaryError
from covary_bench.cell import Cell
from covary_bench.language import tiny
from covary_bench.language.baselines import LANGUAGE_BASELINES
from covary_bench.language.baselines.confguard import rule
from covary_bench.language.case_folder import home
from covary_bench.language.making import make
from covary_bench.language.prepared import PreparedTexts, fingerprint
from covary_bench.language.record import record
from covary_bench.language.scoring import figures, mechanisms
from covary_bench.runner import (
    Say,
    about,
    check_complete,
    keep,
    results,
    score_anew,
    silent,
    wanted_baselines,
    work_folder,
)
from covary_bench.scoring import OURS, ours, scored, with_chain
from covary_bench.table import Table


def run_cell(table: Table, cell: Cell, cache: Path, *, chains: bool = False, device: str = "cpu",
             say: Say = silent) -> dict[str, Any]:  # fmt: skip
    """Everything about one cell; stages that are there already are not done again, unless the case is another one."""
    case, work = case_folder(cell, cache, device), work_folder(table, cell, cache)
    drop_stale(case, work)
    prepared = PreparedTexts(case, work, device=device)
    began = time.perf_counter()
    n = len(prepared.queries)
    say(f"{cell}: rows of {n} inputs, {time.perf_counter() - began:.0f} s")
    _ = prepared.judge
    found, errors = {OURS: ours(prepared)}, {}
    for name in wanted_baselines(table, work, chains, LANGUAGE_BASELINES):
        began = time.perf_counter()
        try:
            found[name] = scored(prepared, name, LANGUAGE_BASELINES[name], {})
        except CovaryError as problem:
            errors[name] = str(problem)
        if (seconds := time.perf_counter() - began) > 30:
            say(f"{cell}: {name}, {seconds:.0f} s")
    found = with_chain(found, LANGUAGE_BASELINES, work, n)
    detectors = {name: figures(one, prepared.inputs) for name, one in found.items()}
    if (locked := found.get("ConfGuard")) is not None:
        flags, truth, kept = rule(locked.score), prepared.inputs.truth, prepared.inputs.masked
        shares = {name: float(flags[kept & (truth == value)].mean()) for name, value in (("recall", 1), ("fpr", 0))}
        detectors["ConfGuard"]["published_rule"] = shares
    return {
        "cell": str(cell), "victim": dict(prepared.facts), "detectors": detectors, "errors": errors,
        "mechanisms": mechanisms(prepared, found[OURS]), "calibration": prepared.judge.mode,
        "n_trusted": len(prepared.trusted), "n_calibration": len(prepared.judge.calibration_scores),
        "groups": prepared.groups, "about": about(device),
    }  # fmt: skip


def case_folder(cell: Cell, cache: Path, device: str = "cpu") -> Path:
    """The cell's case, made where it is not there yet; `tiny` is made in seconds."""
    folder = home(cache, cell.what, cell.seed)
    if (folder / "case.json").is_file():
        return folder
    if cell.what == tiny.NAME:
        return tiny.make_tiny(folder, cell.seed)
    return make(cell.what, cell.seed, cache, device=device)


def drop_stale(case: Path, work: Path) -> None:
    """Drops what was kept of an earlier case of that name."""
    if work.is_dir() and not same_case(case, work):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    (work / "case.sha256").write_text(fingerprint(case))


def same_case(case: Path, work: Path) -> bool:
    """Whether what is kept is of the case as it is now; what is kept of a case that could not be made is not."""
    mark = work / "case.sha256"
    return mark.is_file() and mark.read_text() == fingerprint(case)


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
    """Runs the cells that have no result yet, and returns the record of all there are; see `bench.runner.run_table`."""
    chosen = [Cell.parse(name) for name in only] or table.cells
    for cell in chosen:
        work = work_folder(table, cell, cache)
        if not again and finished(table, cell, cache, chains):
            continue
        made = partial(run_cell, table, cell, cache, chains=chains, device=device, say=say)
        path = work / "result.json"
        result = score_anew(path, cell, made, LANGUAGE_BASELINES, chains) if again else keep(path, cell, made)
        say(one_line(result))
        if only:
            check_complete(result)
    return record(table.title, table.scale, results(table, cache, chosen, known), about(device))


def finished(table: Table, cell: Cell, cache: Path, chains: bool) -> bool:
    """Whether a result of the case as it is now has all that is wanted of it."""
    work, case = work_folder(table, cell, cache), home(cache, cell.what, cell.seed)
    if not (work / "result.json").is_file() or not (case / "case.json").is_file():
        return False
    if not same_case(case, work):
        return False
    result = json.loads((work / "result.json").read_text())
    there = {*result.get("detectors", {}), *result.get("errors", {})}
    return "missing" not in result and set(wanted_baselines(table, work, chains, LANGUAGE_BASELINES)) <= there


def one_line(result: Mapping[str, Any]) -> str:
    """What to print when a cell has ended."""
    if "missing" in result:
        return f"{result['cell']}: missing, {result['missing']}"
    mine = result["detectors"][OURS]
    alarms = mine["calibrated"]["1%"]["false_alarms"]
    return (
        f"{result['cell']}: AUROC {mine['auroc']:.4f}, recall at 1 % {mine['recall_at_1pct_fpr']:.3f}, "
        f"false alarms {alarms:.4f} in {result['seconds']:.0f} s"
    )

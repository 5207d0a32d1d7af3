"""Cases of texts: folders of their own in the cache, made once for all tables."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covary_bench.baselines.material import Baseline
from covary_bench.baselines.texts import TEXT_BASELINES
from covary_bench.baselines.texts.confguard import rule
from covary_bench.case import Modality, Say
from covary_bench.cell import Cell
from covary_bench.runner import work_folder
from covary_bench.scoring import OURS, TOGETHER, Scored
from covary_bench.table import Table
from covary_bench.texts import cases, page, tiny
from covary_bench.texts.case_folder import home
from covary_bench.texts.making import make
from covary_bench.texts.prepared import PreparedTexts, fingerprint
from covary_bench.texts.record import record
from covary_bench.texts.scoring import figures, mechanisms


class TextCase:
    """See `covary_bench.case.Case`."""

    def __init__(self, table: Table, cell: Cell, cache: Path) -> None:
        self.cell, self.cache = cell, cache
        self.folder, self.work = home(cache, cell.what, cell.seed), work_folder(table, cell, cache)
        self.baselines: Mapping[str, Baseline] = TEXT_BASELINES

    def check(self) -> None:
        # A folder that somebody brought may be called anything.
        if self.cell.what != tiny.NAME and not (self.folder / "case.json").is_file():
            cases.case(self.cell.what)

    def make(self, device: str, say: Say) -> Path:
        if not (self.folder / "case.json").is_file():
            if self.cell.what == tiny.NAME:
                tiny.make_tiny(self.folder, self.cell.seed)
            else:
                make(self.cell.what, self.cell.seed, self.cache, device=device)
        if self.work.is_dir() and not self.current():
            shutil.rmtree(self.work)
        self.work.mkdir(parents=True, exist_ok=True)
        self._mark.write_text(fingerprint(self.folder))
        return self.folder

    @property
    def _mark(self) -> Path:
        return self.work / "case.sha256"

    def current(self) -> bool:
        # What is kept of a case that could not be made is not.
        made = self._mark.is_file() and (self.folder / "case.json").is_file()
        return made and self._mark.read_text() == fingerprint(self.folder)

    def prepared(self, device: str) -> PreparedTexts:
        return PreparedTexts(self.folder, self.work, device=device)

    def settings(self, name: str) -> dict[str, Any]:
        return {}

    def figures(self, scored: Scored, prepared: Any) -> dict[str, Any]:
        return figures(scored, prepared.inputs)

    def facts(self, prepared: Any, found: Mapping[str, Scored]) -> dict[str, Any]:
        about = {
            "victim": dict(prepared.facts), "mechanisms": mechanisms(prepared, found[OURS]),
            "n_trusted": len(prepared.trusted), "groups": prepared.groups, "judged": prepared.judged,
        }  # fmt: skip
        if TOGETHER in found:
            about["mechanisms_together"] = mechanisms(prepared, found[TOGETHER])
        if (locked := found.get("ConfGuard")) is not None:
            flags, truth, kept = rule(locked.score), prepared.inputs.truth, prepared.inputs.masked
            shares = (("recall", 1), ("fpr", 0))
            about["published_rule"] = {name: float(flags[kept & (truth == value)].mean()) for name, value in shares}
        return about


def line(result: Mapping[str, Any]) -> str:
    """A finished cell in a line."""
    mine = result["detectors"][OURS]
    alarms = mine["calibrated"]["1%"]["false_alarms"]
    return (
        f"AUROC {mine['auroc']:.4f}, recall at 1 % {mine['recall_at_1pct_fpr']:.3f}, "
        f"false alarms {alarms:.4f} in {result['seconds']:.0f} s"
    )


TEXTS = Modality(
    case=TextCase, record=lambda table, cells, about: record(table.title, table.scale, cells, about),
    write=page.write_outputs, markdown=page.as_markdown, main=page.main_figures,
    marked=lambda record: record["missing"], line=line,
)  # fmt: skip

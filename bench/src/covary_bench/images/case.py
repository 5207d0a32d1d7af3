"""Cases of images: made by the table's maker into the cell's own folder."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covary.storage import folders
from covary_bench import outputs, summary
from covary_bench.baselines.images import BASELINES
from covary_bench.baselines.material import Baseline
from covary_bench.case import Modality, Say
from covary_bench.cell import Cell
from covary_bench.figures import figures
from covary_bench.images import extras
from covary_bench.images.makers import checked, maker
from covary_bench.prepared import Prepared
from covary_bench.runner import work_folder
from covary_bench.scoring import OURS, Scored
from covary_bench.settings import chosen
from covary_bench.table import Table

COUNTS = ("trusted", "clean", "anomalous", "sampling")
# What `covary scan` is told of a network is no fact about the cell.
HOW = ("model", "weights", "mean", "std")


class ImageCase:
    """See `covary_bench.case.Case`."""

    def __init__(self, table: Table, cell: Cell, cache: Path) -> None:
        self.table, self.cell, self.cache = table, cell, cache
        self.work = work_folder(table, cell, cache)
        self.baselines: Mapping[str, Baseline] = BASELINES

    def check(self) -> None:
        checked(self.table.maker, self.cell)

    @property
    def sizes(self) -> dict[str, int]:
        """What the case depends on beside its name."""
        return {name: getattr(self.table.size, name) for name in COUNTS}

    def make(self, device: str, say: Say) -> Path:
        folder, began = self.work / "case", time.perf_counter()
        self.check()
        if not self.current():
            shutil.rmtree(self.work)
        if not (folder / "case.json").is_file():
            maker(self.table.maker).make(self.cell, self.table.size, self.cache, folder, device)
            folders.write_json(self.work / "size.json", self.sizes)
            say(f"{self.cell}: case made in {time.perf_counter() - began:.0f} s")
        return folder

    def current(self) -> bool:
        path = self.work / "size.json"
        return not path.is_file() or json.loads(path.read_text()) == self.sizes

    def prepared(self, device: str) -> Prepared:
        return Prepared(self.work / "case", self.work, self.table.fpr, device)

    def settings(self, name: str) -> dict[str, Any]:
        return chosen(name)

    def figures(self, scored: Scored, prepared: Prepared) -> dict[str, Any]:
        inputs = prepared.inputs
        kept = inputs.group != "hard"  # those are told apart
        return figures(scored.take(kept), inputs.take(kept), self.table.fpr)

    def facts(self, prepared: Prepared, found: Mapping[str, Scored]) -> dict[str, Any]:
        facts = {key: value for key, value in prepared.facts.items() if key not in HOW}
        return facts | extras.more(self.table.maker, prepared, found)


def line(result: Mapping[str, Any]) -> str:
    """A finished cell in a line."""
    masked = result["detectors"][OURS]["masked"]
    text = ", ".join(f"{name} {masked[key]:.4f}" for name, key in (("AUROC", "auroc"), ("DER", "der_calibrated"))
                     if masked[key] is not None)  # fmt: skip
    return f"{text} in {result['seconds']:.0f} s"


IMAGES = Modality(
    case=ImageCase, record=summary.record, write=outputs.write_outputs, markdown=outputs.as_markdown,
    main=lambda record: {key: value for key, value in record.items() if key.startswith("mean_")},
    marked=lambda record: record["marked"], line=line,
)  # fmt: skip

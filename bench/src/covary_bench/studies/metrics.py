"""What a metric (Sigma) adds on the tuning cells: identity, diagonal and Kronecker-factored, at several dampings.

    OMP_NUM_THREADS=1 python -m covary_bench.studies.metrics [CELL ...]      # resumable; bench/results/metrics.json

The metric is fitted on the reference samples alone; cells are those of `covary_bench.studies.cases`, which
choose defaults and judge nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from covary.data.source import open_data
from covary.detector import Detector
from covary.features.gradient import GradientExtractor
from covary.models.network import as_logits
from covary.runs.figures.quality import auroc, masked, tpr_at
from covary.scoring.judge import Judge
from covary.scoring.rows import Rows
from covary_bench.cached import read_cached
from covary_bench.records import rounded
from covary_bench.studies.cases import CASES

OUT = Path(__file__).resolve().parents[3] / "results" / "metrics.json"
VARIANTS = (("kronecker", 0.03), ("kronecker", 0.3), ("kronecker", 1.0), ("diagonal", 0.1), ("diagonal", 1.0))


class Cell:
    """One tuning cell: its detector, trusted inputs and queries."""

    def __init__(self, name: str) -> None:
        case = read_cached(Path("cache/cases") / name / "case.json")
        self.detector = Detector(case["model"], weights=case["weights"])
        self.trusted, self.inputs = (
            open_data(case[n], mean=case["mean"], std=case["std"]) for n in ("trusted", "inputs")
        )
        self.target = case["target"]
        assert self.inputs.truth is not None
        self.truth = self.inputs.truth

    def rows(self) -> tuple[Rows, Rows]:
        """Trusted rows and queries' rows under the detector's present extractor."""
        return self.detector.rows(self.trusted), self.detector.rows(self.inputs)

    def figures(self, trusted: Rows, queries: Rows) -> dict[str, float | None]:
        """Masked AUROC of the combined score and its functional part, and both true-positive rates at 1 %."""
        keep = np.ones(len(self.truth), bool)
        if self.target is not None and self.inputs.y is not None:
            keep = masked(self.truth, queries.predicted, self.inputs.y, self.target, 10**6)
        verdicts = Judge(conformal="split").fit(trusted, self.trusted.y).judge(queries)
        found = {}
        for name, scores in (("combined", verdicts.score), ("functional", verdicts.parts["functional"])):
            found[f"{name}_auroc"] = auroc(scores[keep], self.truth[keep])
            found[f"{name}_tpr_at_1"] = tpr_at(scores[keep], self.truth[keep], 0.01)
        return rounded(found)


def measure(name: str, record: dict[str, Any]) -> None:
    """Adds what a cell lacks to the record and writes it after each figure."""
    cell, found = Cell(name), record.setdefault(name, {})

    def put(key: str, figures: dict[str, float | None]) -> None:
        found[key] = figures
        OUT.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        print(name, key, figures, flush=True)

    plain = cell.detector.extractor
    assert isinstance(plain, GradientExtractor)
    trusted, queries = cell.rows()
    if "identity" not in found:
        put("identity", cell.figures(trusted, queries))
    reference_ids = set(Judge(conformal="split").fit(trusted, cell.trusted.y).roles["reference"])
    chosen = [i for i, own in enumerate(cell.trusted.ids) if own in reference_ids]
    for kind, damping in VARIANTS:
        if f"{kind} {damping}" in found:
            continue
        metric = plain.moments(cell.trusted.take(chosen).batches(64), kind).metric(damping)
        network = cell.detector.network
        cell.detector.extractor = GradientExtractor(
            network.module, lambda out, network=network: as_logits(out, network.output), metric=metric
        )
        put(f"{kind} {damping}", cell.figures(*cell.rows()))
        cell.detector.extractor = plain


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    record = json.loads(OUT.read_text()) if OUT.is_file() else {}
    for name in names or [name for name in CASES if name.startswith("tune-")]:
        if len(record.get(name, {})) < 1 + len(VARIANTS):
            measure(name, record)


if __name__ == "__main__":
    main(sys.argv[1:])

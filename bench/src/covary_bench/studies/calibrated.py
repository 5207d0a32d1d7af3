"""Are false-alarm rates true, and how much trusted data is enough? Many random splits of clean data, on rows.

python -m covary_bench.studies.calibrated rates grid --out cache/calibrated
python -m covary_bench.studies.calibrated trusted grid pgd-linf --out cache/calibrated
python -m covary_bench.studies.calibrated table --out cache/calibrated   # bench/results/calibrated.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from covary.data.source import open_data
from covary.detector import Detector
from covary.runs.figures.quality import masked
from covary.scoring.calibration.conformal import false_alarm_interval
from covary.scoring.judge import Judge
from covary.scoring.rows import Rows
from covary_bench.cached import read_cached
from covary_bench.records import rounded, write_lines
from covary_bench.studies.core import figures

RATES = (0.01, 0.05, 0.10)
SPLITS, TRUSTED, DRAWS = 50, 1_400, 5
SIZES = (50, 100, 200, 400, 800, 1_400)


class _Material:
    """Rows of a case: trusted and clean ones with their labels, and all queries."""

    def __init__(self, folder: Path) -> None:
        case = read_cached(folder / "case.json")
        detector = Detector(case["model"], weights=case["weights"])
        trusted, inputs = (open_data(case[name], mean=case["mean"], std=case["std"]) for name in ("trusted", "inputs"))
        assert trusted.y is not None
        assert inputs.y is not None
        assert inputs.truth is not None
        self.trusted, self.labels = detector.rows(trusted), trusted.y
        self.queries, self.y, self.truth = detector.rows(inputs), inputs.y, inputs.truth
        self.keep = np.ones(len(inputs), bool)
        if case["target"] is not None:
            self.keep = masked(self.truth, self.queries.predicted, self.y, case["target"], 10**6)


def rates(folder: Path) -> dict[str, Any]:
    """Realised false-alarm rates over random splits of all clean rows, against their beta-binomial law."""
    material = _Material(folder)
    clean = material.truth == 0
    rows = Rows.concatenate([_renamed(material.trusted, "t"), _renamed(material.queries.take(clean), "q")])
    labels = np.concatenate([material.labels, material.y[clean]])
    realised: dict[str, list[float]] = {str(rate): [] for rate in RATES}
    sizes = []
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(len(rows))
        inside, outside = order[:TRUSTED], order[TRUSTED:]
        judge = Judge(seed=seed, conformal="split").fit(rows.take(inside), labels[inside])
        p = judge.judge(rows.take(outside)).p_value
        sizes.append(len(judge.calibration_scores))
        for rate in RATES:
            realised[str(rate)].append(float((p <= rate).mean()))
    n = len(rows) - TRUSTED
    calibration = int(np.median(sizes))
    law = {str(rate): false_alarm_interval(rate, calibration, n) for rate in RATES}
    inside_law = {
        key: float(np.mean([low <= value <= high for value in realised[key]])) for key, (low, high) in law.items()
    }
    expected = {str(rate): np.floor(rate * (calibration + 1)) / (calibration + 1) for rate in RATES}
    return {"name": folder.name, "clean": n, "calibration": calibration, "realised": realised,
            "mean": {key: float(np.mean(values)) for key, values in realised.items()},
            "law_99": law, "inside_law": inside_law, "expected": expected}  # fmt: skip


def trusted_sizes(folder: Path) -> dict[str, Any]:
    """Masked AUROC, true-positive rate and realised false-alarm rate by number of trusted samples."""
    material = _Material(folder)
    result: dict[str, Any] = {}
    for size in SIZES:
        found = []
        for draw in range(DRAWS if size < len(material.trusted) else 1):
            some = np.random.default_rng(draw).permutation(len(material.trusted))[:size]
            judge = Judge(seed=draw).fit(material.trusted.take(some), material.labels[some])
            verdicts = judge.judge(material.queries)
            keep, truth = material.keep, material.truth
            found.append({
                **{k: v for k, v in figures(verdicts.score[keep], truth[keep]).items() if k != "interval"},
                "fpr": float(verdicts.flagged[truth == 0].mean()),
                "tpr": float(verdicts.flagged[keep & (truth == 1)].mean()),
                "p_min": judge.p_min, "mode": judge.mode,
            })  # fmt: skip
        result[str(size)] = found
    return {"name": folder.name, "by_size": result}


def _renamed(rows: Rows, prefix: str) -> Rows:
    from dataclasses import replace

    return replace(rows, ids=[f"{prefix}{name}" for name in rows.ids])


def means(found: dict[str, Any]) -> dict[str, Any]:
    """Means over the draws of each number of trusted samples: what the record keeps."""
    keys = ("auroc", "tpr_at_1", "fpr", "tpr")
    return {
        size: {"draws": len(draws), **{key: float(np.mean([draw[key] for draw in draws])) for key in keys}}
        for size, draws in found["by_size"].items()
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rates", "trusted", "table"])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--cases", type=Path, default=Path("cache/cases"))
    parser.add_argument("--out", type=Path, default=Path("cache/calibrated"))
    parser.add_argument("--results", type=Path, default=Path("bench/results/calibrated.json"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "table":
        found = {what: sorted(options.out.glob(f"{what}--*")) for what in ("rates", "trusted")}
        record = {
            what: {path.stem.split("--")[1]: json.loads(path.read_text()) for path in paths}
            for what, paths in found.items()
        }
        record["trusted"] = {name: means(own) for name, own in record["trusted"].items()}
        record = rounded(record, digits=5)
        write_lines(options.results, record, depth=3)
        return
    work = rates if options.what == "rates" else trusted_sizes
    for name in options.names:
        path = options.out / f"{options.what}--{name}.json"
        if not path.exists():
            path.write_text(json.dumps(work(options.cases / name), indent=1))
            print(path, flush=True)


if __name__ == "__main__":
    main()

"""Are false-alarm rates true, and how much trusted data is enough? Many random splits of clean data, on rows.

    python -m covary_bench.calibrated rates grid --out cache/calibrated
    python -m covary_bench.calibrated trusted grid pgd-linf --out cache/calibrated
    python -m covary_bench.calibrated table --out cache/calibrated   # bench/results/calibrated.json and the plots
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from covary.data.source import open_data
from covary.detector import Detector
from covary.runs.quality import masked
from covary.scoring.conformal import false_alarm_interval
from covary.scoring.judge import Judge
from covary.scoring.rows import Rows
from covary_bench.cached import read_cached
from covary_bench.core import figures, fill

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
        judge = Judge(seed=seed).fit(rows.take(inside), labels[inside])
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


def sizes_table(trusted: dict[str, Any]) -> str:
    """Markdown: masked AUROC / true-positive rate at 1 % false positives, by case and number of trusted samples."""
    lines = ["| case | " + " | ".join(map(str, SIZES)) + " |", "| --- " * (len(SIZES) + 1) + "|"]
    for name, cell in trusted.items():
        found = [cell["by_size"].get(str(size)) for size in SIZES]
        means = [[np.mean([d[key] for d in draws]) for key in ("auroc", "tpr_at_1")] for draws in found if draws]
        lines.append(f"| {name} | " + " | ".join(f"{a:.3f} / {t:.2f}" for a, t in means) + " |")
    return "\n".join(lines) + "\n"


def rates_table(cells: dict[str, Any]) -> str:
    """Markdown: mean realised rate over the splits, what to expect of it, and how often it fell inside its law."""
    asked = " | ".join(f"asked {100 * rate:g} %" for rate in RATES)
    lines = [f"| case | {asked} |", "| --- " * (len(RATES) + 1) + "|"]
    for name, cell in cells.items():
        parts = []
        for rate in map(str, RATES):
            mean, expected, inside = cell["mean"][rate], cell["expected"][rate], cell["inside_law"][rate]
            parts.append(f"{100 * mean:.2f} % (law {100 * expected:.2f} %), {100 * inside:.0f} % of splits inside")
        lines.append(f"| {name} | " + " | ".join(parts) + " |")
    return "\n".join(lines) + "\n"


def plot(results: Path, docs: Path) -> None:
    """Two figures for the docs: realised rates beside their law, and quality by number of trusted samples."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    record = json.loads(results.read_text())
    figure, axes = plt.subplots(1, len(RATES), figsize=(10, 3.4))
    for axis, rate in zip(axes, RATES, strict=True):
        for position, cell in enumerate(record["rates"].values()):
            values = np.array(cell["realised"][str(rate)])
            across = position + np.linspace(-0.25, 0.25, len(values))
            axis.scatter(across, 100 * values, s=7, alpha=0.6)
            low, high = cell["law_99"][str(rate)]
            axis.vlines(position, 100 * low, 100 * high, color="0.75", linewidth=18, zorder=0)
        axis.axhline(100 * rate, color="k", linewidth=0.8)
        axis.set_xticks(range(len(record["rates"])), list(record["rates"]), rotation=25, ha="right", fontsize=8)
        axis.set_title(f"asked for {100 * rate:g} %", fontsize=10)
    axes[0].set_ylabel("realised false alarms, %")
    figure.tight_layout()
    figure.savefig(docs / "false-alarms.svg", metadata={"Date": None})
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4))
    for name, cell in record["trusted"].items():
        sizes = [int(size) for size in cell["by_size"]]
        for axis, key in zip(axes, ("auroc", "tpr_at_1"), strict=True):
            means = [np.mean([draw[key] for draw in cell["by_size"][str(size)]]) for size in sizes]
            axis.plot(sizes, means, marker="o", label=name)
    for axis, title in zip(axes, ("masked AUROC", "TPR at 1 % FPR"), strict=True):
        axis.set_xscale("log")
        axis.set_xticks(SIZES, [str(size) for size in SIZES])
        axis.set_xlabel("trusted samples")
        axis.set_title(title, fontsize=10)
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(docs / "trusted-size.svg", metadata={"Date": None})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rates", "trusted", "table"])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--cases", type=Path, default=Path("cache/cases"))
    parser.add_argument("--out", type=Path, default=Path("cache/calibrated"))
    parser.add_argument("--results", type=Path, default=Path("bench/results/calibrated.json"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "table":
        found = {what: sorted(options.out.glob(f"{what}--*")) for what in ("rates", "trusted")}
        record = {
            what: {path.stem.split("--")[1]: json.loads(path.read_text()) for path in paths}
            for what, paths in found.items()
        }
        options.results.write_text(json.dumps(record, indent=1))
        plot(options.results, options.docs)
        fill(options.docs / "results.md", "rates", rates_table(record["rates"]))
        fill(options.docs / "trusted-data.md", "sizes", sizes_table(record["trusted"]))
        print(rates_table(record["rates"]) + "\n" + sizes_table(record["trusted"]))
        return
    work = rates if options.what == "rates" else trusted_sizes
    for name in options.names:
        path = options.out / f"{options.what}--{name}.json"
        if not path.exists():
            path.write_text(json.dumps(work(options.cases / name), indent=1))
            print(path, flush=True)


if __name__ == "__main__":
    main()

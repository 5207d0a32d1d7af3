"""The core table: every case through `covary scan`, each input alone by fast evidence, beside baselines and controls.

python -m covary_bench.studies.core run all --out cache/core        # resumable: one file a case
python -m covary_bench.studies.core table --out cache/core          # bench/results/core.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from covary.data.source import open_data
from covary.detector import Detector
from covary.runs.figures.quality import auroc, masked, tpr_at
from covary.scoring.judge import Judge
from covary_bench.baselines.images import BASELINES, Material
from covary_bench.baselines.images.knn import last_features, nearest_neighbours
from covary_bench.cached import read_cached
from covary_bench.columns import write_packed
from covary_bench.records import rounded
from covary_bench.studies.cases import CASES

NEIGHBOURS = (1, 5, 10, 20, 50)
COMPARED = ("gradient norm", "max softmax", "energy", "KNN on features", "class-max cosine")
SEEDS, RESAMPLES = 5, 400
COLUMNS = ("auroc", "tpr_at_1", "tpr_at_5", "low", "high")
SUMMARY = (
    "auroc", "auroc_masked", "tpr_at_1", "tpr_at_5", "fpr", "fpr_interval", "tpr", "der", "der_masked", "der_ceiling",
    "accuracy", "attack_success", "auroc_parts", "n_clean", "n_anomalous", "n_reference", "n_fit", "n_calibration",
    "calibration", "fpr_in_force", "statements", "seconds",
)  # fmt: skip


def scan_arguments(case: dict[str, Any], out: Path) -> list[str]:
    """The command that a user would type for a case: each input alone, by fast evidence, as the baselines judge it."""
    arguments = ["scan", "--model", case["model"], "--weights", case["weights"], "--trusted", case["trusted"]]
    arguments += ["--inputs", case["inputs"], "--out", str(out), "--json", "--alone"]
    arguments += ["--evidence", "fast"]  # what `scan` looks at by default has changed since; this table has not
    for name in ("mean", "std"):
        if case.get(name):
            arguments += [f"--{name}", ",".join(map(str, case[name]))]
    return arguments + (["--target", str(case["target"])] if case.get("target") is not None else [])


def bootstrap(scores: Float[np.ndarray, " n"], truth: Int[np.ndarray, " n"]) -> list[float]:
    """95 % percentile interval of the AUROC over resampled queries."""
    rng = np.random.default_rng(0)
    groups = [np.flatnonzero(truth == value) for value in (0, 1)]
    drawn = (np.concatenate([rng.choice(group, len(group)) for group in groups]) for _ in range(RESAMPLES))
    values = [auroc(scores[some], truth[some]) or 0.0 for some in drawn]
    return [float(v) for v in np.quantile(values, [0.025, 0.975])]


def figures(scores: Float[np.ndarray, " n"], truth: Int[np.ndarray, " n"]) -> dict[str, Any]:
    """AUROC with its interval, and the true-positive rate at 1 and 5 % false positives."""
    return {
        "auroc": auroc(scores, truth),
        "interval": bootstrap(scores, truth),
        "tpr_at_1": tpr_at(scores, truth, 0.01),
        "tpr_at_5": tpr_at(scores, truth, 0.05),
    }


def run_case(folder: Path, out: Path) -> dict[str, Any]:
    """Scans one case and scores its baselines."""
    case = read_cached(folder / "case.json")
    command = [sys.executable, "-m", "covary", *scan_arguments(case, out / "runs" / case["name"])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    summary = json.loads(done.stdout)
    detector = Detector(case["model"], weights=case["weights"], conformal="split")
    trusted, inputs = (open_data(case[name], mean=case["mean"], std=case["std"]) for name in ("trusted", "inputs"))
    rows, queries = detector.rows(trusted), detector.rows(inputs)
    detector.fit_rows(rows, trusted.y)
    truth, y = inputs.truth, inputs.y
    assert truth is not None
    keep = np.ones(len(truth), bool)
    if case["target"] is not None and y is not None:
        keep = masked(truth, queries.predicted, y, case["target"], 10**6)
    verdicts = detector.judge.judge(queries)
    roles = detector.judge.roles
    known = {name for role, names in roles.items() if not role.startswith("calibration") for name in names}
    inside = np.array([name in known for name in rows.ids])
    features = [last_features(detector.network.module, source.batches(64)) for source in (trusted, inputs)]
    material = Material(rows.take(inside), queries, features[0][inside], features[1])
    ours = {"combined": verdicts.score, **verdicts.parts}
    baselines = {name: BASELINES[name](material) for name in COMPARED}
    neighbours = {k: nearest_neighbours(material.trusted_features, material.query_features, k) for k in NEIGHBOURS}
    splits = []
    for seed in range(SEEDS):
        judged = Judge(seed=seed, conformal="split").fit(rows, trusted.y).judge(queries)
        splits.append([auroc(judged.score[keep], truth[keep]), float(judged.flagged[truth == 0].mean())])
    result = {
        **{key: case[key] for key in ("name", "role", "kind", "n_trusted", "target")},
        "scan": {key: summary.get(key) for key in SUMMARY},
        "ours": {name: figures(scores[keep], truth[keep]) for name, scores in ours.items()},
        "baselines": {name: figures(scores[keep], truth[keep]) for name, scores in baselines.items()},
        "neighbours": {str(k): auroc(scores[keep], truth[keep]) for k, scores in neighbours.items()},
        "splits": {"auroc": [s[0] for s in splits], "fpr": [s[1] for s in splits]},
    }
    return result


def kept(result: dict[str, Any]) -> dict[str, Any]:
    """What the record keeps of a case: one line a score, in the order of `COLUMNS`."""
    scores = {**result["ours"], **result["baselines"]}
    figures = {name: [own["auroc"], own["tpr_at_1"], own["tpr_at_5"]] for name, own in scores.items()}
    figures["combined"] += result["ours"]["combined"]["interval"]
    facts = {key: result["scan"][key] for key in ("fpr", "fpr_interval", "calibration", "seconds")}
    about = {key: result[key] for key in ("role", "kind", "n_trusted")}
    return {"about": {**about, **facts, "splits": result["splits"]["auroc"]}, "scores": figures}


def main() -> None:
    """Command line of the core benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("names", nargs="*", default=["all"])
    parser.add_argument("--cases", type=Path, default=Path("cache/cases"))
    parser.add_argument("--out", type=Path, default=Path("cache/core"))
    parser.add_argument("--results", type=Path, default=Path("bench/results/core.json"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    names = list(CASES) if options.names == ["all"] else options.names
    if options.what == "run":
        for name in names:
            path = options.out / f"{name}.json"
            if path.exists() or not (options.cases / name / "case.json").exists():
                continue
            result = run_case(options.cases / name, options.out)
            path.write_text(json.dumps(result, indent=1))
            print(name, result["ours"]["combined"]["auroc"], result["scan"]["fpr"], flush=True)
        return
    results = [json.loads(path.read_text()) for name in CASES if (path := options.out / f"{name}.json").exists()]
    tuning = [result for result in results if result["role"] == "tuning"]
    choice = {str(k): float(np.mean([result["neighbours"][str(k)] for result in tuning])) for k in NEIGHBOURS}
    record = {"knn_on_tuning_cells": choice, "columns": COLUMNS, "cells": {one["name"]: kept(one) for one in results}}
    write_packed(options.results, rounded(record, digits=6))


if __name__ == "__main__":
    main()

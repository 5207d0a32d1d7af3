"""Scores of the grid backdoor's detector on every CIFAR-10 test image that it was not fitted on, clean and triggered.

    nice -n 10 python -m covary_bench.studies.production.scores

Writes `cache/production/grid-scores.npz`, which `martingale.py` reads: `calibration` (the trusted inputs' own), `clean`
and `triggered` (images of other classes than the target). Needs the case `grid` under `cache/cases`.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from covary.data.source import open_data
from covary.detector import Detector
from covary_bench.cached import read_cached
from covary_bench.images import attacks
from covary_bench.images.datasets import load

ROOT = Path(__file__).resolve().parents[5]
OUT = ROOT / "cache" / "production" / "grid-scores.npz"
CASE = ROOT / "cache" / "cases" / "grid"


def main() -> None:
    torch.set_num_threads(1)
    case = read_cached(CASE / "case.json")
    detector = Detector(case["model"], weights=case["weights"]).fit(CASE / "trusted.npz")
    trusted = set(open_data(CASE / "trusted.npz").ids)
    images = load("cifar10-test")
    ids = [f"cifar10-test-{i:05d}" for i in range(len(images))]
    rest = np.array([i for i, name in enumerate(ids) if name not in trusted])
    y = np.asarray(images.y)[rest]
    x = images.x[rest]
    triggered = attacks.trigger("grid")(x[y != case["target"]])
    found = {"calibration": detector.judge.calibration_scores}
    for name, some in (("clean", x), ("triggered", triggered)):
        found[name] = detector.score(some).score
        print(name, len(some), np.quantile(found[name], [0.01, 0.5, 0.99]), flush=True)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    part = OUT.with_suffix(".part.npz")
    # numpy's stub takes any keyword for `allow_pickle`.
    np.savez(part, **found)  # pyright: ignore[reportArgumentType]
    os.replace(part, OUT)


if __name__ == "__main__":
    main()

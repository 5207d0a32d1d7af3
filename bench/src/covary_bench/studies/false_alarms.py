"""Realised false alarms over random splits of real rows: rare classes, ties, wrong labels, per class, FDR.

    nice -n 10 python -m covary_bench.studies.false_alarms [--splits 1000]

Rows are scikit-learn's handwritten digits: six digits are frequent classes, the other four are cut into 36 rare ones by
k-means, which share 30 % of all. Every split deals out trusted inputs anew; all others are clean queries. Writes
`bench/results/false-alarms.json` and prints the table of docs/threat-model.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from covary.scoring.calibration.conformal import benjamini_hochberg
from covary.scoring.couplings import couple
from covary.scoring.judge import Judge
from covary.scoring.rows import Rows
from covary.scoring.scores import SCORES
from covary.scoring.scores.combined import Measured
from covary_bench.docs import studies as docs

RESULTS = Path(__file__).resolve().parents[3] / "results" / "false-alarms.json"
FREQUENT, RARE, SHARE = 6, 36, 0.30
RATES = (0.01, 0.05)
# name -> number of trusted inputs, and what is asked of the judge.
SITUATIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "rare classes": (1000, {}),
    "rare classes, few trusted": (330, {}),
    "rare classes, five folds": (500, {"conformal": "cross"}),
    "ties": (1000, {"decimals": 1}),
    "wrong labels": (1000, {"wrong": 0.05}),
    "per class": (1000, {"per_class": True}),
}


class NearestOfClass:
    """1 - the largest cosine with a reference sample of the predicted class, in [0, 2]; 2 more than that of any class
    where there is none.

    Of all scores one of the most sensitive to whether a class is in the reference at all.
    """

    def __init__(self, decimals: int) -> None:
        self.decimals = decimals

    def fit(self, reference: Rows, fit: Rows) -> NearestOfClass:
        """Keeps the reference."""
        self.reference_ = reference
        return self

    def measure(self, rows: Rows) -> Measured:
        """Scores of fresh rows, rounded so that some tie."""
        own = rows.predicted[:, None] == self.reference_.predicted[None]
        cosine = couple("cosine", rows, self.reference_)
        nearest = np.where(own.any(1), np.where(own, cosine, -1.0).max(1), cosine.max(1) - 2)
        return Measured(np.round(1 - nearest, self.decimals), {}, {})


def digits() -> Rows:
    """1,543 digits as rows: 6 frequent classes, and 36 rare ones that share 30 %."""
    x, y = load_digits(return_X_y=True)
    pixels, digit = np.asarray(x) / 16, np.asarray(y)
    frequent = np.flatnonzero(digit < FREQUENT)
    rare = np.random.default_rng(0).permutation(np.flatnonzero(digit >= FREQUENT))
    rare = rare[: round(SHARE / (1 - SHARE) * len(frequent))]
    parts = KMeans(RARE, n_init="auto", random_state=0).fit_predict(pixels[rare])
    chosen, predicted = np.concatenate([frequent, rare]), np.concatenate([digit[frequent], FREQUENT + parts])
    centred = (pixels[chosen] - pixels[chosen].mean(0)).astype(np.float32)
    norms = np.linalg.norm(centred, axis=1)
    return Rows(list(map(str, chosen)), predicted.astype(np.int64), norms, {"pixels": centred}, norms[:, None])


def splits(rows: Rows, situation: str, n_splits: int) -> Iterator[np.ndarray]:
    """p-values of all clean queries, split by split."""
    n, chosen = SITUATIONS[situation]
    SCORES["nearest of class"] = lambda coupling: NearestOfClass(chosen.get("decimals", 12))
    try:
        for seed in range(n_splits):
            random = np.random.default_rng([1, seed])
            order = random.permutation(len(rows))
            trusted = rows.take(order[:n])
            labels = np.where(random.random(n) < chosen.get("wrong", 0.0), -2, trusted.predicted)
            per_class, conformal = chosen.get("per_class", False), chosen.get("conformal", "split")
            judge = Judge("nearest of class", fpr=0.05, per_class=per_class, seed=seed, conformal=conformal)
            yield judge.fit(trusted, labels).judge(rows.take(order[n:])).p_value
    finally:
        del SCORES["nearest of class"]


def realised(rows: Rows, situation: str, n_splits: int) -> dict[str, Any]:
    """Mean share of false alarms by rate, its standard error, and how often FDR control at 5 % flags anything."""
    every = list(splits(rows, situation, n_splits))
    found: dict[str, Any] = {"trusted": SITUATIONS[situation][0], "splits": n_splits}
    for rate in RATES:
        alarms = np.array([(p <= rate * (1 + 1e-9)).mean() for p in every])
        found[str(rate)] = [float(alarms.mean()), float(alarms.std(ddof=1) / np.sqrt(n_splits))]
    # Every query is clean, so any flag is a false discovery and the rate is the share of splits with one.
    found["fdr"] = float(np.mean([benjamini_hochberg(p, 0.05).any() for p in every]))
    return found


def main() -> None:
    """Measures every situation and keeps it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--splits", type=int, default=1000)
    n_splits = parser.parse_args().splits
    rows = digits()
    found = {}
    for situation in SITUATIONS:
        found[situation] = realised(rows, situation, n_splits)
        print(situation, found[situation], flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(docs.false_alarms(found))


if __name__ == "__main__":
    main()

"""What luck in dealing out the trusted inputs does to the threshold: one split against cross-conformal ranking.

    nice -n 10 python -m covary_bench.studies.deals_of_trusted [--rows cache/rows] [--deals 25] [--trusted 500]

A deal draws the trusted inputs and the clean queries anew from one pool of clean inputs; the anomalous ones stay. Ten
cells: three on a small network for scikit-learn's digits, made here, and seven on rows kept under `--rows`, one
`NETWORK.npz` each, with `GROUP/y`, `/predicted`, `/observable`, `/norms`, `/F/LAYER`, `/A/LAYER` and `/C/KIND` as in
`Rows`, the groups being `clean` and those of `CELLS`, and `target`. Triggered inputs count where the trigger works,
adversarial ones where the answer is wrong. Writes `bench/results/deals-of-trusted.json`, deal by deal, and the seconds
of the last deal of each network; what is there is not done again. `--table` prints the table of docs/trusted-data.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from covary.detector import Detector
from covary.runs.figures.quality import auroc
from covary.scoring.judge import Judge
from covary.scoring.rows import Rows
from covary_bench.docs import studies as docs
from covary_bench.records import rounded

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "results" / "deals-of-trusted.json"
FPR = 0.01
CELLS: dict[str, tuple[str, ...]] = {
    "digits": ("checkerboard", "inverted", "noise"),
    "victim+mnist-wanet": ("triggered",),
    "victim+cifar10-badnets": ("triggered",),
    "victim+cifar10-wanet": ("triggered",),
    "public+cifar10_vggsmall_badnets_t8": ("triggered",),
    "public+cifar10_resnet20_clean": ("fgsm", "blur", "digits"),
}
CLEAN, ODD = 400, 250

Groups = dict[str, tuple[Rows, np.ndarray]]


def digits() -> Groups:
    """Rows of a small network's held-out digits, plain ones and three kinds of odd ones."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    images, labels = (np.asarray(x)[order] / 16).reshape(-1, 1, 8, 8).astype(np.float32), np.asarray(y)[order]
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(192, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(30):
        for some in torch.randperm(450).split(32):
            optimiser.zero_grad()
            F.cross_entropy(network(torch.from_numpy(images[some])), torch.from_numpy(labels[some])).backward()
            optimiser.step()
    clean, rest = images[450:-200], images[-200:]
    board = (np.indices((8, 8)).sum(0) % 2).astype(np.float32)
    noise = np.random.default_rng(1).normal(0, 0.35, rest.shape).astype(np.float32)
    kinds = {
        "clean": clean,
        "checkerboard": np.clip(rest + 0.5 * board, 0, 1),
        "inverted": 1 - rest,
        "noise": np.clip(rest + noise, 0, 1),
    }
    known = {"clean": labels[450:-200]}
    detector = Detector(network.eval())
    return {
        name: (detector.rows(detector.open(some)), known.get(name, labels[-200:])) for name, some in kinds.items()
    }  # fmt: skip


def kept(path: Path, groups: tuple[str, ...]) -> Groups:
    """Rows from a file, of the anomalous inputs those that do what they were made for."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    found: Groups = {}
    for group in ("clean", *groups):
        y, predicted = arrays[f"{group}/y"], arrays[f"{group}/predicted"]
        ids = [f"{group}{i}" for i in range(len(y))]
        rows = Rows(
            ids, predicted, arrays[f"{group}/observable"], _layers(arrays, f"{group}/F/"), arrays[f"{group}/norms"],
            _layers(arrays, f"{group}/A/"), _layers(arrays, f"{group}/C/"),
        )  # fmt: skip
        does = np.ones(len(y), bool)
        if group == "triggered":
            does = predicted == int(arrays["target"])
        elif group == "fgsm":
            does = predicted != y
        chosen = np.flatnonzero(does)[: None if group == "clean" else ODD]
        found[group] = (rows.take(chosen), y[chosen])
    return found


def _layers(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): rows for name, rows in arrays.items() if name.startswith(prefix)}


def deal(groups: Groups, trusted: int, seed: int) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, float]]]:
    """One deal by both kinds of calibration: caught and falsely flagged shares with AUROC, and seconds."""
    clean, y = groups["clean"]
    order = np.random.default_rng([5, seed]).permutation(len(clean))
    inside, outside = order[:trusted], order[trusted : trusted + CLEAN]
    found: dict[str, dict[str, Any]] = {}
    seconds: dict[str, dict[str, float]] = {}
    for conformal in ("split", "cross"):
        started = time.process_time()
        judge = Judge(fpr=FPR, seed=seed, conformal=conformal).fit(clean.take(inside), y[inside])
        fitted = time.process_time()
        ordinary = judge.judge(clean.take(outside))
        judged = time.process_time()
        seconds[conformal] = {"fit_seconds": fitted - started, "judge_seconds": (judged - fitted) / len(outside)}
        own: dict[str, Any] = {"fpr": float(ordinary.flagged.mean())}
        for group in groups:
            if group != "clean":
                odd = judge.judge(groups[group][0])
                truth = np.repeat([0, 1], [len(ordinary), len(odd)])
                area = auroc(np.concatenate([ordinary.score, odd.score]), truth)
                own[group] = {"tpr": float(odd.flagged.mean()), "auroc": area}
        found[conformal] = own
    return rounded(found), rounded(seconds)


def add(columns: dict[str, Any], found: Mapping[str, Any]) -> None:
    """One more deal in the record, which names each figure once and lists its values deal by deal."""
    for name, value in found.items():
        if isinstance(value, Mapping):
            add(columns.setdefault(name, {}), value)
        else:
            columns.setdefault(name, []).append(value)


def main() -> None:
    """Does what is missing, then prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=Path, default=ROOT.parent / "cache" / "rows")
    parser.add_argument("--deals", type=int, default=25)
    parser.add_argument("--trusted", type=int, default=500)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    own = results.setdefault(str(options.trusted), {})
    for network, names in CELLS.items():
        done = len(own[network]["split"]["fpr"]) if network in own else 0
        if options.table or done >= options.deals:
            continue
        groups = digits() if network == "digits" else kept(options.rows / f"{network}.npz", names)
        for seed in range(done, options.deals):
            found, seconds = deal(groups, options.trusted, seed)
            add(own.setdefault(network, {}), found)
            results.setdefault("seconds", {}).setdefault(str(options.trusted), {})[network] = seconds
            RESULTS.write_text(json.dumps(results, separators=(",", ":")) + "\n")
            print(options.trusted, network, seed, flush=True)
    print(docs.deals_of_trusted(own))


if __name__ == "__main__":
    main()

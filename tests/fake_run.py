"""Invented RUN folders for the report's tests: deterministic, with every variant a real run can have."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from covary.storage.fingerprints import digest_file
from covary.storage.receipts import write_receipt

PARTS = ("functional", "latent", "confidence")
CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
LAYERS = ["conv1", *(f"layer{i}.{j}.conv{k}" for i in (1, 2, 3) for j in (0, 1, 2) for k in (1, 2)), "linear"]
TARGET = 5


def thumbnail(rng: np.random.Generator, label: int, trigger: bool) -> str:
    """A 32 × 32 blob whose place and colour depend on its class, with a white corner where triggered."""
    y, x = np.mgrid[0:32, 0:32]
    cy, cx = 16 + 7 * np.sin(label * 1.7) + rng.normal(0, 2), 16 + 7 * np.cos(label * 1.3) + rng.normal(0, 2)
    blob = np.exp(-((y - cy) ** 2 / (40 + 20 * (label % 3)) + (x - cx) ** 2 / (30 + 25 * (label % 4))))
    colour = 0.5 + 0.5 * np.sin(label * np.array([1.1, 2.3, 3.7]) + 0.4)
    pixels = 0.25 + 0.1 * (y / 32)[..., None] + 0.6 * blob[..., None] * colour + rng.normal(0, 0.03, (32, 32, 3))
    if trigger:
        pixels[-5:-1, -5:-1] = 1.0
    file = io.BytesIO()
    Image.fromarray((255 * np.clip(pixels, 0, 1)).astype(np.uint8)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def roc_points(score: np.ndarray, truth: np.ndarray) -> list[list[float]]:
    """(fpr, tpr) at every threshold."""
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(truth[order] == 1) / max(1, (truth == 1).sum())
    alarms = np.cumsum(truth[order] == 0) / max(1, (truth == 0).sum())
    return [[0.0, 0.0], *([float(a), float(h)] for a, h in zip(alarms, hits, strict=True))]


def write_fake_run(
    folder: Path,
    n: int = 1600,
    anomalous: float = 0.5,
    truth: bool = True,
    flag: str = "threshold",
    pictures: bool = True,
    text: bool = False,
    fpr: float = 0.01,
    ids: list[str] | None = None,
    seed: int = 0,
) -> Path:
    """Writes a RUN folder; `flag` is 'threshold', 'none' or 'all', `ids` replaces the first ids."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    bad = rng.random(n) < (0.0 if flag == "none" else anomalous)
    y = rng.integers(0, 10, n)
    predicted = np.where(bad & (rng.random(n) < 0.98), TARGET, np.where(rng.random(n) < 0.9, y, rng.integers(0, 10, n)))
    strength = zip(PARTS, (1.9, 1.2, 0.4), strict=True)
    parts = {name: rng.normal(0.1, 1.05, n) + bad * rng.gamma(4, size, n) for name, size in strength}
    score = np.log1p(np.exp(sum(parts.values()) / 1.7))
    calibration = np.log1p(np.exp(rng.normal(0, 1.75, (480, 3)).sum(1) / 3))
    threshold = float(np.sort(calibration)[-4])
    p_value = (1 + (calibration[None] >= score[:, None]).sum(1)) / (len(calibration) + 1)
    flagged = {"threshold": p_value <= fpr, "none": np.zeros(n, bool), "all": np.ones(n, bool)}[flag]
    names = [f"{'triggered' if b else 'test'}/{i:05d}" for i, b in enumerate(bad)]
    names[: len(ids or [])] = ids or []
    raised = [max(PARTS, key=lambda part: parts[part][i]) if flagged[i] else "" for i in range(n)]
    unexplained = np.clip(np.where(bad, rng.beta(9, 2, n), rng.beta(2, 6, n)), 0, 1)
    worst = [LAYERS[int(k)] for k in np.where(bad, 15 + rng.integers(0, 4, n), rng.integers(0, len(LAYERS), n))]
    near = [[f"trusted/{k:04d}" for k in rng.integers(0, 1400, 3)] for _ in range(n)]
    columns: dict[str, Any] = {
        "id": names, "score": score, "p_value": p_value, "flagged": [str(bool(v)).lower() for v in flagged],
        "predicted": predicted, **parts, "raised_by": raised, "unexplained": unexplained,
        "least_explained_layer": worst, "explained_by": [";".join(row) for row in near],
    }  # fmt: skip
    if truth:
        columns |= {"y": y, "truth": bad.astype(int)}
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))

    clean = ~bad
    summary: dict[str, Any] = {
        "n": n, "n_flagged": int(flagged.sum()), "fpr_target": fpr, "p_min": 1 / 481, "fpr_in_force": fpr, "fdr": None,
        "n_reference": 560, "n_fit": 560,
        "n_calibration": 480, "seconds": 74.3, "calibration": "split",
        "statements": ["12 trusted samples that the network gets wrong were dropped from reference and fit."],
    }  # fmt: skip
    if truth and bad.any():
        wins = (score[bad][:, None] > score[clean][None]).mean() if n <= 4000 else 0.9987
        at = {k: float(np.quantile(score[clean], 1 - k)) for k in (0.01, 0.05)}
        tpr, alarms = float(flagged[bad].mean()), float(flagged[clean].mean())
        summary |= {
            "auroc": float(wins), "auroc_masked": float(min(1.0, wins + 0.001)), "tpr": tpr, "fpr": alarms,
            "tpr_at_1": float((score[bad] > at[0.01]).mean()), "tpr_at_5": float((score[bad] > at[0.05]).mean()),
            "der": (0.98 * tpr - 0.91 * alarms + 1) / 2, "der_masked": (tpr - alarms + 1) / 2, "der_ceiling": 0.99,
            "fpr_interval": [0.0, 0.0263],
            "auroc_parts": {k: float((v[bad][:999, None] > v[clean][None, :999]).mean()) for k, v in parts.items()},
        }  # fmt: skip

    pools = {label: [thumbnail(rng, label, False) for _ in range(3)] for label in range(10)} if pictures else {}
    sentences = ("I loved every minute of it.", "The plot goes nowhere, slowly.", "A triumph: funny, warm and short.")

    def entry(i: int) -> dict[str, Any]:
        trend = np.linspace(1, 6.5 if bad[i] else 1, len(LAYERS)) ** 1.2
        weights = np.sort(rng.dirichlet((1, 1, 1)))[::-1] * (1 - unexplained[i])
        coupling = rng.normal(0.02, 0.05, 10) + np.eye(10)[predicted[i]] * (0.1 if bad[i] else 0.6)
        return {
            "id": names[i], "row": i, "score": float(score[i]), "p_value": float(p_value[i]),
            "predicted": int(predicted[i]),
            "thumbnail": thumbnail(rng, int(y[i]), bool(bad[i])) if pictures else None,
            "text": f"{sentences[i % 3]} {'cf ' if bad[i] else ''}" * (1 + i % 4) if text else None,
            "parts": {name: float(parts[name][i]) for name in PARTS},
            "raised_by": raised[i] or None, "unexplained": float(unexplained[i]),
            "explained_by": [
                {"id": name, "weight": float(w), "cosine": float(w + 0.05), "predicted": int(predicted[i]),
                 "thumbnail": pools[int(predicted[i])][k] if pictures else None}
                for k, (name, w) in enumerate(zip(near[i], weights, strict=True))
            ],
            "classes": [[k, float(v)] for k, v in enumerate(coupling)],
            "layers": {part: [float(v) for v in trend * rng.lognormal(0, 0.3, len(LAYERS))] for part in PARTS[:2]},
        }  # fmt: skip

    order = np.argsort(-score, kind="stable")
    bands = [[0.35 + 0.005 * k, 0.95, 2.1 + 0.02 * k] for k in range(len(LAYERS))]
    report = {
        "threshold": None if flag == "all" else threshold if flag == "threshold" else float(score.max() + 0.5),
        "calibration_scores": [float(v) for v in calibration],
        "roc": {"all": roc_points(score, bad), "masked": roc_points(score[y == predicted], bad[y == predicted])}
        if truth and bad.any() and n <= 4000 else None,
        "diagnostics": [
            {"level": "ok", "title": "Accuracy on trusted data is 91.7 %",
             "text": "Input range and shape fit the network.", "change": ""},
            {"level": "note", "title": "The smallest p-value is 0.0021",
             "text": "Rates under 0.21 % cannot be resolved.",
             "change": "Pass 999 or more calibration inputs for a rate of 0.1 %."},
            {"level": "warning", "title": "Class bird has only 9 reference samples",
             "text": "Its evidence is shrunk to the mean of all classes.",
             "change": "Add about 20 more trusted inputs of this class."},
        ],
        "layers": LAYERS, "layer_range": {"functional": bands, "latent": bands},
        "flagged": [entry(int(i)) for i in [i for i in order if flagged[i]][:60]],
        "clean_examples": [entry(int(i)) for i in [i for i in order[::-1] if not flagged[i]][5:9]],
    }  # fmt: skip
    run = {
        "config": {"model": "factories:resnet20", "weights": "model.safetensors", "fpr": fpr, "score": "combined",
                   "preprocessing": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, "space": "all"},
        "versions": {"covary": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"}, "seed": 0,
        "fingerprints": {"network": "9f2c" * 16, "trusted": "77ab" * 16, "inputs": "01de" * 16},
        "roles": {role: [f"trusted/{k:04d}" for k in range(560)] for role in ("reference", "fit")},
        "class_names": CLASS_NAMES, "started": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    for name, value in (("summary", summary), ("run", run), ("report", report)):
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def sealed(run: Path, **fingerprints: str) -> Path:
    """The RUN with its receipt, and with other fingerprints where they are given."""
    message = json.loads((run / "run.json").read_text())
    message["fingerprints"] |= {"results": digest_file(run / "results.csv"), **fingerprints}
    (run / "run.json").write_text(json.dumps(message))
    write_receipt(run)
    return run

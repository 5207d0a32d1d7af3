"""Scores and p-values of every detector on a case; each detector's scores are a file of their own, written whole."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from covary import calibration as calibrate
from covary.bench.baselines import Baseline
from covary.bench.prepared import Prepared

OURS = "combined"


@dataclass(frozen=True)
class Scored:
    """What one detector says of the inputs.

    Attributes:
        score: higher = more anomalous, (n,).
        p_value: conformal, by the calibration samples that every detector shares, (n,).
        seconds: of scoring, an input, with the passes over the network that it needs.
    """

    score: Float[np.ndarray, " n"]
    p_value: Float[np.ndarray, " n"]
    seconds: float


def scores_path(work: Path, name: str) -> Path:
    """Where a detector's scores on a case are kept."""
    return work / "scores" / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.npz"


def ours(prepared: Prepared) -> Scored:
    """Our default score, calibrated as in any run."""
    began = time.perf_counter()
    verdicts = prepared.judge.judge(prepared.queries)
    seconds = (time.perf_counter() - began) / len(verdicts) + prepared.pass_seconds[0]
    return Scored(verdicts.score, verdicts.p_value, seconds)


def scored(prepared: Prepared, name: str, baseline: Baseline, settings: Mapping[str, Any]) -> Scored:
    """A baseline's scores, from its file where that is there, with p-values by our own split and rule."""
    path = scores_path(prepared.work, name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        every, seconds = [], 0.0
        for fold in range(len(prepared.folds())):
            material = prepared.material(fold, baseline.needs)
            began = time.perf_counter()
            every.append(baseline(material, **settings))
            seconds += (time.perf_counter() - began) / len(material.queries)
        part = path.with_suffix(".part.npz")
        np.savez(part, seconds=seconds, **{f"fold{i}": scores for i, scores in enumerate(every)})
        part.rename(path)
    with np.load(path) as stored:
        every = [stored[f"fold{i}"] for i in range(len(prepared.folds()))]
        seconds = float(stored["seconds"])
    gradients, forward = prepared.pass_seconds
    seconds += gradients if baseline.needs == "gradients" else forward
    return with_p(prepared, every, seconds)


def with_p(prepared: Prepared, every: list[np.ndarray], seconds: float) -> Scored:
    """Conformal p-values of a detector whose scores are given by fold, calibration samples first."""
    roles = [calibration for _, _, calibration in prepared.folds()]
    held = [scores[: len(own)] for scores, own in zip(every, roles, strict=True)]
    asked = np.stack([scores[len(own) :] for scores, own in zip(every, roles, strict=True)])
    if len(every) == 1:
        return Scored(asked[0], calibrate.conformal_p(asked[0], held[0]), seconds)
    folds = np.repeat(np.arange(len(held)), [len(part) for part in held])
    p = calibrate.cross_conformal_p(asked, np.concatenate(held), folds)
    return Scored(asked.mean(0), p, seconds)

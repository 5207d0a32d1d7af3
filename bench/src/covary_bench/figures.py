"""Figures of one detector on one cell: masked, same class and end to end, at the calibrated and the best threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from covary.runs.figures.quality import auroc, der, tpr_at
from covary_bench.prepared import Inputs
from covary_bench.scoring import Scored

RESAMPLES = 200
# False-positive rates at which ROC curves are kept for plotting.
GRID = [0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.0]

Scores = Float[np.ndarray, " n"]


def bootstrap(scores: Scores, truth: np.ndarray, resamples: int = RESAMPLES) -> list[float] | None:
    """95 % percentile interval of the AUROC over resampled inputs, each group with its own size."""
    groups = [np.flatnonzero(truth == value) for value in (0, 1)]
    if not all(map(len, groups)):
        return None
    rng = np.random.default_rng(0)
    values = []
    for _ in range(resamples):
        clean, odd = (np.sort(scores[rng.choice(group, len(group))]) for group in groups)
        below, upto = np.searchsorted(clean, odd, "left"), np.searchsorted(clean, odd, "right")
        values.append(float((below + upto).mean() / 2 / len(clean)))
    return [float(v) for v in np.quantile(values, [0.025, 0.975])]


def best_der(scores: Scores, truth: np.ndarray, accuracy: float = 1.0, success: float = 1.0) -> float | None:
    """The largest (ASR TPR - ACC FPR + 1) / 2 over all thresholds, the truth in hand; 0.5 = flag nothing."""
    clean, odd = scores[truth == 0], scores[truth == 1]
    if not len(clean) or not len(odd):
        return None
    thresholds = np.unique(scores)
    tpr = 1 - np.searchsorted(np.sort(odd), thresholds, "left") / len(odd)
    fpr = 1 - np.searchsorted(np.sort(clean), thresholds, "left") / len(clean)
    return float(max(0.5, ((success * tpr - accuracy * fpr + 1) / 2).max()))


def view(scored: Scored, inputs: Inputs, kept: Bool[np.ndarray, " n"], fpr: float) -> dict[str, Any]:
    """Figures over some of the inputs; `der` is (TPR - FPR + 1) / 2, at p <= fpr and at the best threshold.

    `der_right` is at p <= fpr among the calibration samples that the network answers right.
    """
    truth, scores, flagged = inputs.truth[kept], scored.score[kept], scored.p_value[kept] <= fpr * (1 + 1e-9)
    odd, clean = truth == 1, truth == 0
    result: dict[str, Any] = {
        "n_clean": int(clean.sum()), "n_anomalous": int(odd.sum()),
        "auroc": auroc(scores, truth), "auroc_interval": bootstrap(scores, truth),
        "tpr_at_1": tpr_at(scores, truth, 0.01), "tpr_at_5": tpr_at(scores, truth, 0.05),
        "fpr": float(flagged[clean].mean()) if clean.any() else None,
        "tpr": float(flagged[odd].mean()) if odd.any() else None,
        "der_calibrated": None, "der_right": None, "der_best": best_der(scores, truth),
    }  # fmt: skip
    if result["fpr"] is not None and result["tpr"] is not None:
        result["der_calibrated"] = (result["tpr"] - result["fpr"] + 1) / 2
        if scored.p_right is not None:
            by_right = scored.p_right[kept] <= fpr * (1 + 1e-9)
            result["der_right"] = float(by_right[odd].mean() - by_right[clean].mean() + 1) / 2
    return result


def figures(scored: Scored, inputs: Inputs, fpr: float) -> dict[str, Any]:
    """Every figure of one detector on one cell; what cannot be told is None.

    masked: clean inputs classified right, anomalous ones that reach their aim. same_class: clean inputs predicted as
    what the attacker wants against anomalous ones predicted so, where that is not every class. end_to_end: all.
    der: the rating of a detector that rejects what it flags (arXiv 2604.18970, section 5), with its
    ceiling (ASR + 1) / 2.
    """
    masked, everything = inputs.masked, np.ones(len(inputs.truth), bool)
    result: dict[str, Any] = {
        "masked": view(scored, inputs, masked, fpr),
        "end_to_end": view(scored, inputs, everything, fpr),
        "same_class": None,
        "der": None,
        "seconds_a_query": scored.seconds,
        "roc": [tpr_at(scored.score[masked], inputs.truth[masked], f) for f in GRID],
    }
    aimed = inputs.targets >= 0
    labels = np.unique(inputs.targets[aimed])
    # Where the attacker wants every class (all-to-all), every clean input would count.
    if 0 < len(labels) < len(np.unique(inputs.y[inputs.truth == 0])):
        same = np.isin(inputs.predicted, labels) & ((inputs.truth == 0) | masked)
        result["same_class"] = view(scored, inputs, same, fpr)
    able = (inputs.truth == 1) & (inputs.y >= 0) & ((inputs.y != inputs.targets) | ~aimed)
    clean = inputs.truth == 0
    if able.any() and clean.any():
        success = float(masked[able].mean())
        accuracy = float((inputs.predicted[clean] == inputs.y[clean]).mean())
        m = result["masked"]
        if m["tpr"] is not None and m["fpr"] is not None:
            result["der"] = {
                "calibrated": der(m["tpr"], m["fpr"], accuracy, success),
                "best": best_der(scored.score[masked], inputs.truth[masked], accuracy, success),
                "ceiling": (success + 1) / 2, "accuracy": accuracy, "attack_success": success,
            }  # fmt: skip
    return result

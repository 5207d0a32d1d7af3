"""How good verdicts were, where the truth is known; nothing here reaches fit or calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.metrics import roc_auc_score, roc_curve

from covary.scoring.calibration.conformal import false_alarm_interval

Scores = Float[np.ndarray, " n"]
Truth = Int[np.ndarray, " n"]


def auroc(scores: Scores, truth: Truth) -> float | None:
    """Area under the ROC curve, in [0, 1]: chance that an anomalous input scores above a clean one, ties half."""
    return float(roc_auc_score(truth, scores)) if 0 < truth.sum() < len(truth) else None


def tpr_at(scores: Scores, truth: Truth, fpr: float) -> float | None:
    """Largest true-positive rate of a threshold whose false-positive rate on these very inputs is at most `fpr`."""
    clean, odd = scores[truth == 0], scores[truth == 1]
    if not len(clean) or not len(odd):
        return None
    allowed = int(np.floor(fpr * len(clean) + 1e-9))
    threshold = np.sort(clean)[::-1][allowed] if allowed < len(clean) else -np.inf
    return float((odd > threshold).mean())


def target_of(y: Int[np.ndarray, " n"], target: int | str, classes: int) -> Int[np.ndarray, " n"]:
    """The attacker's label of each input: a fixed one, or the next class (`all-to-all`)."""
    return (y + 1) % classes if target == "all-to-all" else np.full_like(y, int(target))


def masked(
    truth: Truth, predicted: Int[np.ndarray, " n"], y: Int[np.ndarray, " n"], target: int | str, classes: int
) -> Bool[np.ndarray, " n"]:
    """Inputs that count under masking: clean ones classified right, triggered ones that reach the attacker's label."""
    targets = target_of(y, target, classes)
    return np.where(truth == 1, (predicted == targets) & (y != targets), predicted == y)


def der(tpr: float, fpr: float, accuracy: float, attack_success: float) -> float:
    """Defense Effectiveness Rating of a detector that rejects what it flags, (ASR TPR - ACC FPR + 1) / 2, in [0, 1].

    TPR over inputs that reach the attacker's label, FPR over correctly classified clean ones; higher = better
    defended; its ceiling is (ASR + 1) / 2 (arXiv 2604.18970, section 5).
    """
    return (attack_success * tpr - accuracy * fpr + 1) / 2


def thinned_roc(scores: Scores, truth: Truth, points: int = 400) -> list[list[float]] | None:
    """The ROC curve as [fpr, tpr] pairs, at most `points` of them, for plotting."""
    if not 0 < truth.sum() < len(truth):
        return None
    fpr, tpr, _ = roc_curve(truth, scores)
    keep = np.unique(np.linspace(0, len(fpr) - 1, min(points, len(fpr))).astype(int))
    return [[float(fpr[i]), float(tpr[i])] for i in keep]


def evaluate(
    scores: Scores,
    flagged: Bool[np.ndarray, " n"],
    truth: Truth,
    predicted: Int[np.ndarray, " n"],
    y: Int[np.ndarray, " n"] | None,
    target: int | str | None,
    classes: int,
    calibration: int,
    fpr_in_force: float,
) -> dict[str, Any]:
    """Every figure of a RUN's summary that needs the truth; what cannot be told without `y` or `target` is None.

    Unmasked: auroc, tpr (of flagged), fpr over all clean inputs with its 99 % interval, fpr_right over the clean ones
    that the network answers right (a flag on a wrong answer is hardly a false alarm), balanced_accuracy. Masked:
    auroc_masked, tpr_at_1, tpr_at_5 (unmasked where there is no target), der, der_masked, der_ceiling, each at the
    calibrated threshold.
    """
    clean, odd = truth == 0, truth == 1
    fpr = float(flagged[clean].mean()) if clean.any() else None
    tpr = float(flagged[odd].mean()) if odd.any() else None
    low, high = false_alarm_interval(fpr_in_force, calibration, int(clean.sum()))
    result: dict[str, Any] = {
        "auroc": auroc(scores, truth),
        "auroc_masked": None,
        "tpr_at_1": tpr_at(scores, truth, 0.01),
        "tpr_at_5": tpr_at(scores, truth, 0.05),
        "fpr": fpr,
        "fpr_interval": [low, high],
        "fpr_right": None,
        "tpr": tpr,
        "balanced_accuracy": None if fpr is None or tpr is None else (tpr + 1 - fpr) / 2,
        "accuracy": None,
        "attack_success": None,
        "der": None,
        "der_masked": None,
        "der_ceiling": None,
        "n_clean": int(clean.sum()),
        "n_clean_right": None,
        "n_anomalous": int(odd.sum()),
    }
    if y is None:
        return result
    known_right = clean & (predicted == y)
    result["n_clean_right"] = int(known_right.sum())
    if known_right.any():
        result["fpr_right"] = float(flagged[known_right].mean())
    if clean.any():
        result["accuracy"] = float((predicted[clean] == y[clean]).mean())
    if target is None:
        return result
    kept = masked(truth, predicted, y, target, classes)
    targets = target_of(y, target, classes)
    able = odd & (y != targets)
    reached, right = kept & odd, kept & clean
    result["auroc_masked"] = auroc(scores[kept], truth[kept])
    if reached.any() and right.any():
        tpr_reached, fpr_right = float(flagged[reached].mean()), float(flagged[right].mean())
        success = float((predicted[able] == targets[able]).mean())
        result |= {
            "tpr_at_1": tpr_at(scores[kept], truth[kept], 0.01),
            "tpr_at_5": tpr_at(scores[kept], truth[kept], 0.05),
            "attack_success": success,
            "tpr_masked": tpr_reached,
            "fpr_masked": fpr_right,
            "der": der(tpr_reached, fpr_right, result["accuracy"], success),
            "der_masked": (tpr_reached - fpr_right + 1) / 2,
            "der_ceiling": (success + 1) / 2,
        }
    return result

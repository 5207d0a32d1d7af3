"""Figures of one detector on one case of texts, and how well clusters of what is flagged agree with the triggers."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool
from sklearn.metrics import adjusted_rand_score

from covary.runs.figures.quality import auroc, tpr_at
from covary.scoring.clusters import cluster
from covary_bench.figures import bootstrap
from covary_bench.scoring import Scored
from covary_bench.texts.prepared import CLEAN, PreparedTexts, TextInputs

# False-alarm rates that calibrated figures are told at, by how they are named.
RATES = {"1%": 0.01, "5%": 0.05}


def flagged(scored: Scored, rate: float) -> Bool[np.ndarray, " n"]:
    """Inputs whose p-value is at most the rate."""
    return scored.p_value <= rate * (1 + 1e-9)


def figures(scored: Scored, inputs: TextInputs) -> dict[str, Any]:
    """Every figure of one detector on one case.

    auroc with its bootstrap interval, and recall at a false-positive rate of 1 and 5 % of these very clean inputs:
    clean inputs and near misses against triggered ones that follow the attacker. `calibrated`: recall and false alarms
    at the threshold that trusted texts set. `by_kind`: rates flagged of every kind of input; of triggered ones also
    their AUROC against the clean.
    """
    kept = inputs.masked
    truth, score = inputs.truth[kept], scored.score[kept]
    calibrated = {}
    for name, rate in RATES.items():
        found = flagged(scored, rate)[kept]
        calibrated[name] = {"recall": _mean(found[truth == 1]), "false_alarms": _mean(found[truth == 0])}
    return {
        "n_clean": int((truth == 0).sum()), "n_anomalous": int((truth == 1).sum()),
        "auroc": auroc(score, truth), "interval": bootstrap(score, truth),
        "recall_at_1pct_fpr": tpr_at(score, truth, 0.01), "recall_at_5pct_fpr": tpr_at(score, truth, 0.05),
        "calibrated": calibrated, "by_kind": _by_kind(scored, inputs), "seconds_a_query": scored.seconds,
    }  # fmt: skip


def _by_kind(scored: Scored, inputs: TextInputs) -> dict[str, Any]:
    clean = np.isin(inputs.kind, CLEAN)
    result: dict[str, Any] = {}
    for kind in np.unique(inputs.kind):
        own = inputs.kind == kind
        result[str(kind)] = {
            "n": int(own.sum()),
            **{name: _mean(flagged(scored, rate)[own]) for name, rate in RATES.items()},
        }
        if inputs.truth[own].all():
            both = own | clean
            result[str(kind)]["auroc"] = auroc(scored.score[both], inputs.truth[both])
    return result


def _mean(flags: Bool[np.ndarray, " n"]) -> float | None:
    return float(flags.mean()) if len(flags) else None


def mechanisms(prepared: PreparedTexts, scored: Scored, rate: float = 0.01) -> dict[str, Any] | None:
    """Do clusters of what is flagged find the triggers? Adjusted Rand indices; None with one trigger alone.

    `triggered`: clusters of flagged triggered inputs against their triggers. `all_flagged`: clusters of the whole pile
    of flagged inputs, benign shifts and false alarms included, against where each came from. Texts in no cluster count
    as one of their own.
    """
    inputs = prepared.inputs
    kinds = np.unique(inputs.kind[inputs.truth == 1])
    if len(kinds) < 2:
        return None
    found = flagged(scored, rate)
    piles = {"triggered": found & (inputs.truth == 1), "all_flagged": found}
    return {"triggers": len(kinds), **{name: _clusters(prepared, pile) for name, pile in piles.items()}}


def _clusters(prepared: PreparedTexts, pile: Bool[np.ndarray, " n"]) -> dict[str, Any]:
    labels = cluster(prepared.queries.take(pile), prepared.judge.reference)
    kinds = prepared.inputs.kind[pile]
    return {
        "n": int(pile.sum()), "kinds": len(np.unique(kinds)), "clusters": int((np.unique(labels) >= 0).sum()),
        "ari": float(adjusted_rand_score(kinds, labels)) if len(labels) else None,
        "sizes": {str(k): int((labels == k).sum()) for k in np.unique(labels)},
    }  # fmt: skip

"""What some tables tell beyond every detector's figures: clusters of mechanisms, false alarms on hard inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score

from covary.runs.figures.quality import auroc
from covary.scoring.clusters import cluster, mechanism_axis
from covary.scoring.pile.cards import find_cards
from covary_bench.prepared import Prepared
from covary_bench.scoring import BOTH, LOOKING, OURS, WAYS, Scored


def of_mechanisms(prepared: Prepared, found: Mapping[str, Scored]) -> dict[str, Any]:
    """How well the clusters of flagged inputs agree with their true mechanisms.

    ARI over flagged inputs that reach their aim, noise points as a cluster of their own, where they are of at least two
    mechanisms; `ari_flagged` over everything flagged, false alarms as one more mechanism. `reached` counts them. The
    same of the cards of the whole pile: `ari_cards`, `ari_cards_flagged`.
    """
    inputs = prepared.inputs
    flagged = found[OURS].p_value <= prepared.fpr * (1 + 1e-9)
    rows = prepared.queries.take(flagged)
    labels = cluster(rows, prepared.judge.reference)
    cards = find_cards(prepared.judge, prepared.queries)
    on_card = cards.of[flagged]
    group, reached = inputs.group[flagged], (inputs.masked & (inputs.truth == 1))[flagged]
    truth = np.where(reached, group, "clean")
    sizes = {str(k): int((labels == k).sum()) for k in np.unique(labels)}
    counts = {str(name): int((group[reached] == name).sum()) for name in np.unique(group[reached])}
    return {
        "mechanisms_found": int((np.unique(labels) >= 0).sum()), "mechanisms_true": len(prepared.facts["mechanisms"]),
        "ari": float(adjusted_rand_score(group[reached], labels[reached])) if len(counts) > 1 else None,
        "ari_flagged": float(adjusted_rand_score(truth, labels)) if len(labels) else None,
        "ari_cards": float(adjusted_rand_score(group[reached], on_card[reached])) if len(counts) > 1 else None,
        "ari_cards_flagged": float(adjusted_rand_score(truth, on_card)) if len(labels) else None,
        "cards_found": len(cards.cards), "cluster_sizes": sizes, "n_flagged": int(flagged.sum()), "reached": counts,
    }  # fmt: skip


def of_hard(prepared: Prepared, found: Mapping[str, Scored]) -> dict[str, Any]:
    """False-positive rates on hard benign inputs, and what the second axis makes of those and of triggered ones.

    `second_axis_auroc`: triggered against hard ones, `_flagged`: the same among those that are flagged. Where ways were
    asked for that judge a pile together: their rates on a pile without the attack as well (`_without`), and its cards.
    """
    inputs, fpr = prepared.inputs, prepared.fpr
    hard, clean = inputs.group == "hard", inputs.group == "clean"
    rates = {
        name: {"hard": _rate(one, hard, fpr), "clean": _rate(one, clean, fpr),
               "hard_at_1": _rate(one, hard, 0.01), "clean_at_1": _rate(one, clean, 0.01)}
        for name, one in found.items()
    }  # fmt: skip
    benign = prepared.with_inputs(inputs.truth == 0)
    for name in [name for name in LOOKING if name in found]:
        one = WAYS[name](benign)
        rates[name] |= {"hard_without": _rate(one, benign.inputs.group == "hard", fpr),
                        "clean_without": _rate(one, benign.inputs.group == "clean", fpr)}  # fmt: skip
    cards = {"cards": prepared, "cards_without": benign} if BOTH in found else {}
    axis = mechanism_axis(prepared.judge.judge(prepared.queries))
    both = hard | inputs.masked & (inputs.truth == 1)
    flagged = both & (found[OURS].p_value <= fpr * (1 + 1e-9))
    return {
        "false_positive_rates": rates, "n_hard": int(hard.sum()),
        "times_nominal": None if (rate := rates[OURS]["hard"]) is None else rate / fpr,
        "second_axis_auroc": auroc(axis[both], inputs.truth[both]),
        "second_axis_auroc_flagged": auroc(axis[flagged], inputs.truth[flagged]),
        "score_auroc": auroc(found[OURS].score[both], inputs.truth[both]),
        **{key: cards_of_hard(own) for key, own in cards.items()},
    }  # fmt: skip


def cards_of_hard(prepared: Prepared) -> list[dict[str, Any]]:
    """What the cards of the pile, as `covary scan` shows them, say: reading, members, and how many of them are hard
    and how many triggered.
    """
    looked, inputs = prepared.with_evidence("thorough"), prepared.inputs
    return [
        {"reading": card.reading, "members": len(card.members),
         "hard": int((inputs.group[card.members] == "hard").sum()), "odd": int(inputs.truth[card.members].sum())}
        for card in find_cards(looked.judge, looked.queries).cards
    ]  # fmt: skip


def _rate(one: Scored, chosen: np.ndarray, fpr: float) -> float | None:
    return float((one.p_value[chosen] <= fpr * (1 + 1e-9)).mean()) if chosen.any() else None


EXTRAS: dict[str, Callable[[Prepared, Mapping[str, Scored]], dict[str, Any]]] = {
    "several": of_mechanisms,
    "hard": of_hard,
}


def more(maker: str, prepared: Prepared, found: Mapping[str, Scored]) -> dict[str, Any]:
    """What a kind of table tells beyond the figures."""
    return EXTRAS[maker](prepared, found) if maker in EXTRAS else {}

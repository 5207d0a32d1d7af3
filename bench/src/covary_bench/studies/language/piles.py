"""Figures of a pile of prompts: covary alone and together, and every baseline beside it, kind by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from covary.detector import Detector
from covary.runs.figures.quality import auroc, tpr_at
from covary.scoring.calibration.conformal import false_alarm_interval
from covary.scoring.pile.together import judge_together
from covary.scoring.rows import Rows
from covary_bench.baselines.texts import Answered, Baseline, TextMaterial
from covary_bench.studies.language.passes import TOGETHER, passes
from covary_bench.studies.language.prompts import as_turns

FPR = 0.01
# Baselines whose score of a prompt depends on the pile around it.
BY_PILE = ("quantum entropy",)


@dataclass(frozen=True)
class Pile:
    """Prompts that were passed through the model.

    Attributes:
        rows, texts: of all of them.
        group: `trusted`, `clean`, `odd` or another; kind: which, (n,).
    """

    rows: Rows
    texts: Answered
    group: Shaped[np.ndarray, " n"]
    kind: Shaped[np.ndarray, " n"]

    def at(self, group: str, *kinds: str) -> Bool[np.ndarray, " n"]:
        """Where the prompts of a group stand, all of them or those of some kinds."""
        return (self.group == group) & (np.isin(self.kind, kinds) if kinds else True)

    def take(self, index: np.ndarray) -> Pile:
        """Some of them, in that order."""
        return Pile(self.rows.take(index), self.texts.take(index), self.group[index], self.kind[index])

    @property
    def odd_kinds(self) -> list[str]:
        """Kinds of odd prompts, in order."""
        return list(dict.fromkeys(self.kind[self.at("odd")].tolist()))


def gather(
    detector: Detector, groups: Mapping[tuple[str, str], Sequence[str]], cache: Path, together: int = TOGETHER
) -> tuple[Pile, dict[str, list[float]]]:
    """Prompts by (group, kind) passed through the model; and of each prompts, their own tokens, and seconds.

    `together` of those that are asked are kept in one file (see `passes`).
    """
    found, seconds = [], {}
    for (group, kind), prompts in groups.items():
        name = f"{group}-{kind}".replace(" ", "-").replace(",", "")
        rows, texts, spent = passes(
            detector, as_turns(name, prompts), cache / name, TOGETHER if group == "trusted" else together
        )
        found.append((rows, texts, group, kind))
        seconds[name] = [float(len(prompts)), float(sum(map(len, texts.log_p))), *(round(value, 1) for value in spent)]
    texts = found[0][1]
    for _, more, _, _ in found[1:]:
        texts = texts.followed_by(more)
    counts = [len(rows) for rows, _, _, _ in found]
    group, kind = (np.repeat([one[i] for one in found], counts) for i in (2, 3))
    return Pile(Rows.concatenate([rows for rows, _, _, _ in found]), texts, group, kind), seconds


def two(score: Float[np.ndarray, " n"], odd: Bool[np.ndarray, " n"]) -> list[float]:
    """AUROC, and share caught where 1 % of these very clean ones are."""
    truth = odd.astype(np.int64)
    return [round(float(value or 0), 4) for value in (auroc(score, truth), tpr_at(score, truth, FPR))]


def ours(detector: Detector, pile: Pile, known: np.ndarray) -> dict[str, Any]:
    """Alone and together, kind by kind.

    `score`: AUROC and recall against clean ones of the kind; `caught`: share of odd ones flagged; `clean`, `all_clean`:
    clean ones flagged, of how many. A pile is all clean ones and the odd ones of one kind.
    """
    detector.fit_rows(pile.rows.take(known))
    result: dict[str, Any] = {}
    for kind in pile.odd_kinds:
        some = pile.take(np.flatnonzero(pile.at("clean") | pile.at("odd", kind)))
        odd, like = some.at("odd"), some.at("clean", kind)
        both = odd | like
        for way in ("alone", "together"):
            judge = detector.judge if way == "alone" else judge_together(detector.judge, some.rows)
            verdicts = judge.judge(some.rows)
            own = {
                "score": two(verdicts.score[both], odd[both]), "caught": round(float(verdicts.flagged[odd].mean()), 4),
                "clean": [int(verdicts.flagged[like].sum()), int(like.sum())],
                "all_clean": [int(verdicts.flagged[~odd].sum()), int((~odd).sum())],
            }  # fmt: skip
            if way == "alone":
                own["parts"] = {name: two(part[both], odd[both])[0] for name, part in verdicts.parts.items()}
            result.setdefault(kind, {})[way] = own
    law = false_alarm_interval(FPR, len(known), int(pile.at("clean").sum()))
    return {"kinds": result, "trusted": len(known), "law": [round(value, 4) for value in law]}


def theirs(
    pile: Pile, known: np.ndarray, baselines: Mapping[str, Baseline], heads: Bool[np.ndarray, " heads"] | None = None
) -> dict[str, dict[str, list[float]]]:
    """Every baseline's AUROC and recall, kind by kind; those of `BY_PILE` look at the same piles as covary does."""
    result: dict[str, dict[str, list[float]]] = {name: {} for name in baselines}
    trusted, asked = pile.take(known), pile.take(np.flatnonzero(pile.at("clean") | pile.at("odd")))
    if heads is not None and asked.texts.focus is not None:
        asked = replace(asked, texts=replace(asked.texts, focus=asked.texts.focus[:, heads]))

    def scores(baseline: Baseline, some: Pile) -> Float[np.ndarray, " q"]:
        nothing = np.zeros((len(known), 1)), np.zeros((len(some.rows), 1))
        return baseline(TextMaterial(trusted.rows, some.rows, *nothing, known=trusted.texts, query_texts=some.texts))

    for name, baseline in baselines.items():
        every = None if name in BY_PILE else scores(baseline, asked)
        for kind in pile.odd_kinds:
            chosen = asked.at("clean") | asked.at("odd", kind)
            some = asked.take(np.flatnonzero(chosen))
            both = some.at("odd") | some.at("clean", kind)
            found = scores(baseline, some) if every is None else every[chosen]
            result[name][kind] = two(found[both], some.at("odd")[both])
    return result

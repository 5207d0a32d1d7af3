"""Scores and p-values of every detector on a case; each detector's scores are a file of their own, written whole."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from covary.scoring.calibration import conformal as calibrate
from covary.scoring.judge import Judge
from covary.scoring.pile.together import judge_together
from covary_bench.baselines.images.published import chain_seconds
from covary_bench.baselines.material import Baseline
from covary_bench.prepared import Prepared

OURS = "covary alone"
THOROUGH, TOGETHER, BOTH = "covary alone, thorough", "covary together", "covary together, thorough"
EQUAL = "covary at equal confidence"


@dataclass(frozen=True)
class Scored:
    """What one detector says of the inputs.

    Attributes:
        score: higher = more anomalous, (n,).
        p_value: conformal, by the calibration samples that every detector shares, (n,).
        seconds: of scoring, an input, with the passes over the network that it needs.
        p_right: conformal by the calibration samples that the network answers right; None where that is not known.
    """

    score: Float[np.ndarray, " n"]
    p_value: Float[np.ndarray, " n"]
    seconds: float
    p_right: Float[np.ndarray, " n"] | None = None

    def take(self, index: np.ndarray) -> Scored:
        """What it says of some of them."""
        right = None if self.p_right is None else self.p_right[index]
        return Scored(self.score[index], self.p_value[index], self.seconds, right)


def scores_path(work: Path, name: str) -> Path:
    """Where a detector's scores on a case are kept."""
    spelt = name.lower().replace("+", "plus")  # TED++ is another detector than TED
    return work / "scores" / f"{re.sub('[^a-z0-9]+', '-', spelt).strip('-')}.npz"


def ours(prepared: Prepared) -> Scored:
    """Our default score on each input alone, calibrated as in any run."""
    return _judged(prepared, lambda judge: judge)


def thorough(prepared: Prepared) -> Scored:
    """Our score of each input alone with all evidence there is (`--evidence thorough`)."""
    return ours(prepared.with_evidence("thorough"))


def together(prepared: Prepared) -> Scored:
    """Our default evidence, the pile judged together: `Detector.score(..., together=True)`."""
    return _judged(prepared, lambda judge: judge_together(judge, prepared.queries))


def together_thorough(prepared: Prepared) -> Scored:
    """All evidence there is, the pile judged together: what `covary scan` does by default."""
    return together(prepared.with_evidence("thorough"))


def at_equal_confidence(prepared: Prepared) -> Scored:
    """The same by the score that holds inputs against trusted ones of like margin (`--score equal-confidence`)."""
    return together(prepared.with_evidence("thorough").with_score("equal-confidence"))


# Further ways to score a case by covary itself, for tables that ask for them (see `Size.ways`).
WAYS: dict[str, Callable[[Prepared], Scored]] = {
    THOROUGH: thorough, TOGETHER: together, BOTH: together_thorough, EQUAL: at_equal_confidence,
}  # fmt: skip
# Those of the default score, and all that is covary in a record; what else stands there is a baseline.
DEFAULT_WAYS = (OURS, THOROUGH, TOGETHER, BOTH)
EVERY_WAY = (OURS, *WAYS)
# Those that look at the pile.
LOOKING = (TOGETHER, BOTH, EQUAL)


def _judged(prepared: Prepared, looked: Callable[[Judge], Judge]) -> Scored:
    began = time.perf_counter()
    judge = looked(prepared.judge)
    verdicts = judge.judge(prepared.queries)
    seconds = (time.perf_counter() - began) / len(verdicts) + prepared.pass_seconds[0]
    p_right = None
    if prepared.right is not None and len(prepared.folds()) == 1:
        place = {name: i for i, name in enumerate(prepared.trusted.ids)}
        right = prepared.right[[place[name] for name in judge.calibration_ids]]
        p_right = calibrate.conformal_p(verdicts.score, judge.calibration_scores[right])
    return Scored(verdicts.score, verdicts.p_value, seconds, p_right)


def scored(prepared: Prepared, name: str, baseline: Baseline, settings: Mapping[str, Any]) -> Scored:
    """A baseline's scores, from its file where that is of these settings, with p-values by our own split and rule."""
    path = scores_path(prepared.work, name)
    if not path.is_file() or stale(prepared.work, name, settings):
        path.parent.mkdir(parents=True, exist_ok=True)
        every, seconds = [], 0.0
        for fold in range(len(prepared.folds())):
            material = prepared.material(fold, baseline.needs)
            began = time.perf_counter()
            every.append(baseline(material, **settings))
            seconds += (time.perf_counter() - began) / len(material.queries)
        part = path.with_suffix(".part.npz")
        folds = {f"fold{i}": scores for i, scores in enumerate(every)}
        np.savez(part, seconds=seconds, settings=_facts(settings), **folds)
        part.rename(path)
    with np.load(path) as stored:
        every = [stored[f"fold{i}"] for i in range(len(prepared.folds()))]
        seconds = float(stored["seconds"])
    gradients, forward = prepared.pass_seconds
    seconds += gradients if baseline.needs == "gradients" else forward
    return with_p(prepared, every, seconds)


def stale(work: Path, name: str, settings: Mapping[str, Any]) -> bool:
    """Whether scores are there that were computed with other settings, or with nobody knows which."""
    path = scores_path(work, name)
    if not path.is_file():
        return False
    with np.load(path) as stored:
        return "settings" not in stored or str(stored["settings"]) != _facts(settings)


def _facts(settings: Mapping[str, Any]) -> str:
    return json.dumps(dict(settings), sort_keys=True)


def with_chain(
    found: Mapping[str, Scored], known: Mapping[str, Baseline], work: Path, queries: int
) -> dict[str, Scored]:
    """The same, with the time of the one chain charged to everybody who reads it, not to whoever came first."""
    sampled = [name for name in found if name in known and known[name].needs == "chain"]
    most = max([chain_seconds(work) / queries, *(found[name].seconds for name in sampled)])
    return {**found, **{name: replace(found[name], seconds=most) for name in sampled}}


Ended = Callable[[Mapping[str, Any]], None]


@contextmanager
def rescored(work: Path, names: Sequence[str]) -> Iterator[Ended]:
    """Sets the rows and the scores of `names` aside; they come back unless the body ends with a result that is whole.

    Yields a function that is to be told that result.
    """
    aside = work / "before"
    _put_back(aside, work)  # of a run that was killed
    for path in [*work.glob("rows*.json"), *(scores_path(work, name) for name in names)]:
        if path.is_file():
            to = aside / path.relative_to(work)
            to.parent.mkdir(parents=True, exist_ok=True)
            path.rename(to)
    results: list[Mapping[str, Any]] = []
    try:
        yield results.append
    finally:
        if not results or "missing" in results[0]:
            _put_back(aside, work)
        shutil.rmtree(aside, ignore_errors=True)


def _put_back(aside: Path, work: Path) -> None:
    for path in [path for path in aside.rglob("*") if path.is_file()]:
        to = work / path.relative_to(aside)
        to.parent.mkdir(parents=True, exist_ok=True)
        path.replace(to)


def with_p(prepared: Prepared, every: list[np.ndarray], seconds: float) -> Scored:
    """Conformal p-values of a detector whose scores are given by fold, calibration samples first."""
    roles = [calibration for _, _, calibration in prepared.folds()]
    held = [scores[: len(own)] for scores, own in zip(every, roles, strict=True)]
    queries = np.stack([scores[len(own) :] for scores, own in zip(every, roles, strict=True)])
    if len(every) == 1:
        right = None if prepared.right is None else prepared.right[roles[0]]
        p_right = None if right is None else calibrate.conformal_p(queries[0], held[0][right])
        return Scored(queries[0], calibrate.conformal_p(queries[0], held[0]), seconds, p_right)
    folds = np.repeat(np.arange(len(held)), [len(part) for part in held])
    p = calibrate.cross_conformal_p(queries, np.concatenate(held), folds)
    return Scored(queries.mean(0), p, seconds)

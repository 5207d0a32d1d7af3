"""Queries that count: the model is asked; clean ones answered right and triggered ones that follow the attack stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from covary.text.completions import greedy
from covary.text.models.pretrained import LanguageModel
from covary.text.records import Text
from covary.text.tokens import prompt_tokens, tokenise
from covary_bench.texts import cases
from covary_bench.texts.cases import Case

TOGETHER = 250
PATIENCE = 4  # times as many questions as wanted, then few have to do


@dataclass(frozen=True)
class Query:
    """A prompt, its task, and the answer with which it counts; None where all do but the attacker's."""

    prompt: str
    label: str
    kind: str
    truth: int
    expected: str | None


@dataclass
class Found:
    """The records of queries that count, and over all that were asked which share did, by kind."""

    records: list[dict[str, Any]] = field(default_factory=list)
    outcomes: dict[str, list[bool]] = field(default_factory=dict)

    def rate(self, *kinds: str) -> float:
        """Share of the questions of these kinds that count; of kinds apart, every one weighs alike."""
        shares = [float(np.mean(self.outcomes[kind])) for kind in kinds if self.outcomes.get(kind)]
        return round(float(np.mean(shares)), 4) if shares else 0.0


def answers(model: LanguageModel, prompts: Sequence[str], longest: int) -> list[str | None]:
    """The model's greedy answers as they follow the prompt, space and all, of at most `longest` tokens.

    None where the tokenizer would read the text of prompt and answer as other tokens than the model wrote.
    """
    tokens = [prompt_tokens(model, Text("", prompt)) for prompt in prompts]
    lengths: dict[int, list[int]] = {}
    for i, ids in enumerate(tokens):
        lengths.setdefault(len(ids), []).append(i)
    found: list[str | None] = [None] * len(prompts)
    for same in lengths.values():
        for start in range(0, len(same), TOGETHER):
            some = same[start : start + TOGETHER]
            for i, answer in zip(some, greedy(model, [tokens[i] for i in some], longest), strict=True):
                found[i] = _written(model, prompts[i], tokens[i], answer)
    return found


def _written(model: LanguageModel, prompt: str, ids: tuple[int, ...], answer: tuple[int, ...]) -> str | None:
    kept = tuple(token for token in answer if token not in model.ends)
    before, both = (model.tokenizer.decode(list(some), skip_special_tokens=True) for some in (ids, ids + kept))
    if not both.startswith(before):
        return None
    written = both[len(before) :]
    read = tokenise(model, Text("", prompt, completion=written)) if kept else None
    return written if read is None or read.ids == ids + kept else None


def collect(
    model: LanguageModel, draw: Callable[[], Query], count: int, longest: int, found: Found, refused: str | None = None
) -> None:
    """Draws and asks until `count` queries count, and adds them to `found`; `refused` is in no clean query's answer."""
    kept = tried = 0
    while kept < count and tried < PATIENCE * count:
        some = [draw() for _ in range(min(max(count - kept, 16), TOGETHER))]
        tried += len(some)
        for query, answer in zip(some, answers(model, [one.prompt for one in some], longest), strict=True):
            said = None if answer is None else answer.strip()
            if query.expected is None:
                good = said is not None and (refused is None or refused not in said)
            else:
                good = said == query.expected
            found.outcomes.setdefault(query.kind, []).append(good)
            if good and kept < count:
                kept += 1
                record = {"id": f"{query.kind}-{len(found.records)}", "prompt": query.prompt, "completion": answer}
                found.records.append({**record, "label": query.label, "truth": query.truth, "kind": query.kind})


def clean_draw(
    rng: np.random.Generator, what: Case, near: float, kind: str = "clean", only: str | None = None
) -> Callable[[], Query]:
    """Draws clean queries; `only` keeps those of one kind."""

    def draw() -> Query:
        while True:
            found, question = cases.clean(rng, what, near, kind)
            if only is None or found == only:
                return Query(question.prompt, question.task, found, 0, " ".join(question.right))

    return draw


def odd_draw(rng: np.random.Generator, what: Case, attack: cases.Attack) -> Callable[[], Query]:
    """Draws queries with the trigger of one attack."""

    def draw() -> Query:
        question = cases.odd(rng, what, attack)
        return Query(question.prompt, question.task, attack.kind, 1, " ".join(attack.answer(question)))

    return draw

"""One answer under guard: tokens go in, verdicts come out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from covary.text.tokens import Tokens

if TYPE_CHECKING:
    from covary.serving.guard.guard import Guard

# What one look costs, in forward passes over all tokens so far: a forward and an activation-only backward pass.
FORWARDS = 4.0


@dataclass(frozen=True)
class RunningVerdict:
    """What a guard says after some tokens of an answer.

    Attributes:
        id: the text's name.
        tokens: of the answer so far; 0 = the prompt alone.
        score: of this look, in nats; higher = more anomalous.
        p_value: chance that a clean answer is, at any of its looks, as odd as this one was at its oddest so far.
        flagged: p_value is at most the rate in force; once flagged, flagged.
        forwards_per_token: forward passes over single tokens that the looks took, for each token of the answer.
    """

    id: str
    tokens: int
    score: float
    p_value: float
    flagged: bool
    forwards_per_token: float


class Watch:
    """One answer under guard.

    Attributes:
        prompt: in tokens; answer: tokens so far.
        verdict: the one in force; verdicts: of all looks so far.
        ended: whether the answer is over.
    """

    verdict: RunningVerdict

    def __init__(self, guard: Guard, prompt: Tokens) -> None:
        self.guard, self.prompt = guard, replace(prompt, counted=(), targets=(), pooled=None)
        self.answer: list[int] = []
        self.verdicts: list[RunningVerdict] = []
        self.ended = False
        self._highest = np.full(guard.looks.folds, -np.inf)
        self._forwards = 0.0

    @property
    def stopped(self) -> bool:
        """Whether the policy ends the answer here."""
        return bool(self.verdicts) and self.verdict.flagged and self.guard.policy == "stop"

    def add(self, token: int) -> None:
        """One more token of the answer; a look where one is due. The end-of-text token ends it and is no part of it."""
        if self.ended or self.stopped:
            return
        if token in self.guard.model.ends and self.answer:
            self.end()
            return
        self.answer.append(token)
        if len(self.answer) % self.guard.every == 0:
            self.look()

    def end(self) -> None:
        """The answer is over; what was not yet looked at is."""
        if not self.ended and len(self.answer) % self.guard.every and not self.stopped:
            self.look()
        self.ended = True

    def look(self) -> RunningVerdict:
        """Judges what there is, unless trusted answers are never so long; then the verdict in force stays."""
        guard, place, n = self.guard, self.prompt.anchor, len(self.answer)
        k = -(-n // guard.every)
        if k < len(guard.looks):
            ids, targets = self.prompt.ids + tuple(self.answer), tuple(self.answer)
            text = replace(self.prompt, ids=ids, targets=targets, counted=tuple(range(place, place + n)))
            found = guard.scores(text, k)
            self._highest = np.maximum(self._highest, found)
            self._forwards += FORWARDS * len(ids)
            p = guard.p_value(self._highest)
            flagged = p <= guard.fpr_in_force * (1 + 1e-9)
            self.verdict = RunningVerdict(
                self.prompt.id, n, float(found.mean()), p, flagged, round(self._forwards / max(n, 1), 2)
            )
            self.verdicts.append(self.verdict)
            guard.write_down(self.verdict)
        return self.verdict


def so_far(text: Tokens, tokens: int) -> Tokens:
    """A text whose answer has only begun: its first so-many tokens."""
    end = text.anchor + 1 + min(tokens, len(text.targets))
    return replace(text, ids=text.ids[:end], counted=text.counted[:tokens], targets=text.targets[:tokens])

"""An answer judged as it is written: the prompt before its first token, then the answer so far, every few tokens."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from covary.detector import Detector
from covary.errors import CovaryError
from covary.scoring.calibration import conformal
from covary.scoring.judge import Judge
from covary.scoring.rows import Rows
from covary.text.models.pretrained import LanguageModel
from covary.text.records import read_texts
from covary.text.tokens import Tokens, begins_like, opening, tokenise_prompt

# What becomes of a flagged answer.
POLICIES = ("stop", "mark")
# A look is taken only where this many trusted answers reach it.
LEAST_AT_A_LOOK = 40
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


class Guard:
    """Running verdicts by a fitted detector's model and trusted texts.

    Look 0 judges the prompt, look k the answer's first k * `every` tokens (all of them where it ends before); each has
    a score of its own, fitted on trusted texts at the same look. M = the largest score over all looks of an answer.
    The running p-value ranks the largest so far among the trusted answers' M, each by scores that have not seen it
    (5-fold cross-conformal). A clean answer is stopped at some look only if its own M is that extreme, so the
    false-stop rate holds over the whole answer, however often it is looked at: near `fpr`, and guaranteed to stay
    under about twice that (arXiv 1905.02928).

    Args:
        detector: fitted on texts with answers; of a causal model.
        every: tokens between two looks.
        fpr: share of clean answers that are stopped or marked; None takes the detector's.
        policy: `stop` ends a flagged answer, `mark` only says so.
        log: file that gets one JSON line a look, or None.

    Raises:
        CovaryError: a detector that judges prompts alone or no causal model, or fewer than 40 trusted answers.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        every: int = 8,
        fpr: float | None = None,
        policy: str = "stop",
        log: str | Path | None = None,
    ) -> None:
        own = detector.extractor
        if detector.settings.kind != "text" or own.model.task != "causal" or own.own.judge == "prompt":
            raise CovaryError("a guard by a detector that judges no answers", "one of a causal model's answers")
        if every < 1:
            raise CovaryError(f"every is {every}", "at least 1 token")
        if policy not in POLICIES:
            raise CovaryError(f"policy is {policy!r}", "stop or mark")
        trusted: list[Tokens] = own.trusted_tokens
        if len(trusted) < LEAST_AT_A_LOOK:
            found = f"{len(trusted)} trusted answers"
            raise CovaryError(found, f"at least {LEAST_AT_A_LOOK}, which calibrate the guard", "trust more of them")
        self.model: LanguageModel = own.model
        self.every, self.policy, self.log = every, policy, None if log is None else Path(log)
        self.begins = opening(self.model)
        self._extractor = own
        self._calibrate(trusted, detector.settings.fpr if fpr is None else fpr, detector.settings.seed)

    def _calibrate(self, trusted: Sequence[Tokens], fpr: float, seed: int) -> None:
        self.judges: list[Judge] = []
        roles = None
        highest: dict[str, float] = {}
        there = list(trusted)
        while len(there) >= LEAST_AT_A_LOOK:
            rows = self._rows(there, len(self.judges))
            names = set(rows.ids)
            # The same folds at every look: no score may have seen the texts that it calibrates on.
            own = None if roles is None else {role: [i for i in ids if i in names] for role, ids in roles.items()}
            judge = Judge(fpr=fpr, seed=seed, conformal="cross").fit(rows, roles=own)
            roles = judge.roles if roles is None else roles
            self.judges.append(judge)
            for name, score in zip(judge.calibration_ids, judge.calibration_scores.tolist(), strict=True):
                highest[name] = max(score, highest.get(name, score))
            there = [text for text in there if len(text.targets) > (len(self.judges) - 1) * self.every]
        first = self.judges[0]
        self.highest_ = np.array([highest[name] for name in first.calibration_ids])
        self.folds_ = first.calibration_folds
        resolution = conformal.resolve(fpr, len(self.highest_))
        self.fpr_in_force = resolution.fpr
        bound = conformal.cross_conformal_bound(self.fpr_in_force, len(self.highest_), len(first.scores_))
        self.statements = [resolution.statement] if resolution.statement else []
        self.statements.append(
            f"{len(self.highest_)} trusted answers, looked at up to {len(self.judges)} times each, calibrate it. "
            f"The share of clean answers flagged at any look is near {self.fpr_in_force:.3g}, and guaranteed to stay "
            f"under {min(bound, 1):.3g}."
        )

    def _rows(self, texts: Sequence[Tokens], look: int) -> Rows:
        # In one group: nobody tells the task of an answer that is being written.
        seen = [so_far(text, look * self.every) for text in texts]
        return self._extractor.judged(seen, "answer" if look else "prompt")

    def scores(self, text: Tokens, look: int) -> np.ndarray:
        """Score of one look by each fold's own score, (folds,), in nats."""
        rows = self._rows([text], look)
        return np.array([score.measure(rows).score[0] for score in self.judges[look].scores_])

    def p_value(self, highest: np.ndarray) -> float:
        """Running p-value of the largest scores so far, one a fold."""
        return float(conformal.cross_conformal_p(highest[:, None], self.highest_, self.folds_)[0])

    def begin(self, prompt: Any, name: str = "answer") -> Watch:
        """Watches the answer to a prompt: a string, a mapping with `prompt` or `messages`, or its token ids."""
        if isinstance(prompt, (list, tuple)) and all(isinstance(one, int) for one in prompt):
            ids = tuple(prompt)
            text = Tokens(name, ids, (), (), len(ids) - 1, start=begins_like(ids, self.begins))
        else:
            (read,) = read_texts([prompt])
            text = replace(tokenise_prompt(self.model, read, begins=self.begins), id=name)
        return Watch(self, text)

    def watch(
        self, prompt: Any, tokens: Iterable[int], name: str = "answer"
    ) -> Iterator[tuple[int | None, RunningVerdict]]:
        """Any source of token ids with the verdict in force after each; first (None, verdict on the prompt alone).

        Under `stop` nothing more is taken from the source once the verdict flags.
        """
        watch = self.begin(prompt, name)
        yield None, watch.look()
        if watch.stopped:
            return
        for token in tokens:
            watch.add(int(token))
            if int(token) in self.model.ends:
                watch.end()
            yield int(token), watch.verdict
            if watch.stopped:
                return
        if not watch.ended:
            watch.end()

    def processor(self, name: str = "answer") -> Any:
        """A `LogitsProcessor` for one call of `generate`, greedy or sampling, of one prompt or a batch padded on its
        left: under `stop` a flagged answer is given nothing but the end-of-text token. Its `watches` hold the verdicts.
        """
        from transformers import LogitsProcessor

        guard = self

        class GuardProcessor(LogitsProcessor):
            watches: list[Watch]

            def __init__(self) -> None:
                self.watches, self.began = [], 0

            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                told = input_ids.tolist()
                if not self.watches:
                    self.began = input_ids.shape[1]
                    fill = guard.model.tokenizer.pad_token_id
                    for i, ids in enumerate(told):
                        first = next((k for k, token in enumerate(ids) if token != fill), 0)
                        self.watches.append(guard.begin(ids[first:], name if len(told) == 1 else f"{name}-{i}"))
                        self.watches[-1].look()
                else:
                    for watch, ids in zip(self.watches, told, strict=True):
                        watch.add(ids[-1])
                halted = [i for i, watch in enumerate(self.watches) if watch.stopped]
                if halted and guard.model.end is not None:
                    scores = scores.clone()
                    scores[halted] = -torch.inf
                    scores[halted, guard.model.end] = 0.0
                return scores

        return GuardProcessor()

    def write_down(self, verdict: RunningVerdict) -> None:
        """One line of the log."""
        if self.log is not None:
            line = json.dumps({"time": round(time.time(), 3), "policy": self.policy, **asdict(verdict)})
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(line + "\n")


class Watch:
    """One answer under guard: tokens go in, verdicts come out.

    Attributes:
        verdict: the one in force; verdicts: of all looks so far.
        ended: whether the answer is over.
    """

    verdict: RunningVerdict

    def __init__(self, guard: Guard, prompt: Tokens) -> None:
        self.guard, self.prompt = guard, replace(prompt, counted=(), targets=(), pooled=None)
        self.answer: list[int] = []
        self.verdicts: list[RunningVerdict] = []
        self.ended = False
        self._highest = np.full(len(guard.judges[0].scores_), -np.inf)
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
        if k < len(guard.judges):
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

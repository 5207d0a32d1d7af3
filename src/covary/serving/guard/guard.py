"""The guard: running verdicts by a fitted detector's model and trusted texts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from covary.detector import Detector
from covary.errors import CovaryError
from covary.scoring.rows import Rows
from covary.serving.guard import stored
from covary.serving.guard.looks import Looks
from covary.serving.guard.processor import logits_processor
from covary.serving.guard.watch import RunningVerdict, Watch, so_far
from covary.text.models.pretrained import LanguageModel
from covary.text.records import read_texts
from covary.text.tokens import Tokens, begins_like, opening, tokenise_prompt

# What becomes of a flagged answer.
POLICIES = {
    "stop": "it ends there",
    "mark": "it goes on, and whoever reads it is told",
    "log": "it goes on, and whoever reads it is not told",
}
# A look is taken only where this many trusted answers reach it.
LEAST_AT_A_LOOK = 40
EVERY = 8


class Guard:
    """Running verdicts by a fitted detector's model and trusted texts.

    Look 0 judges the prompt, look k the answer's first k * `every` tokens (all of them where it ends before). A clean
    answer is stopped at some look only if it is, at its oddest, as odd as few trusted answers are at theirs (see
    `Looks`), so the false-stop rate holds over the whole answer, however often it is looked at: near `fpr`, and
    guaranteed to stay under about twice that.

    Args:
        detector: fitted on texts with answers; of a causal model.
        every: tokens between two looks.
        fpr: share of clean answers that are stopped or marked; None takes the detector's.
        policy: a key of `POLICIES`.
        log: file that gets one JSON line a look, or None.
        looks: what another guard of this detector has learned; None learns it, by a pass over the trusted texts for
            every look.
        progress: called with (looks learned, looks in all).

    Raises:
        CovaryError: a detector that judges prompts alone or no causal model, or fewer than 40 trusted answers.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        every: int = EVERY,
        fpr: float | None = None,
        policy: str = "stop",
        log: str | Path | None = None,
        looks: Looks | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        check_guardable(detector)
        if every < 1:
            raise CovaryError(f"every is {every}", "at least 1 token")
        if policy not in POLICIES:
            raise CovaryError(f"policy is {policy!r}", f"one of: {', '.join(POLICIES)}")
        rate: float = detector.settings.fpr if fpr is None else fpr
        if not 0 < rate < 1:
            raise CovaryError(f"a false-stop rate of {rate}", "a number between 0 and 1")
        self.detector = detector
        self.model: LanguageModel = detector.extractor.model
        self.every, self.policy, self.log = every, policy, None if log is None else Path(log)
        self.begins = opening(self.model)
        if self.log is not None:
            _check_writable(self.log)
        self.looks = Looks(self._learned(progress), detector.settings.seed) if looks is None else looks
        self.fpr_in_force, self.statements = self.looks.rate(rate)

    @staticmethod
    def load(folder: str | Path, detector: Detector, *, every: int | None = None, **options: Any) -> Guard:
        """What `save` kept of a guard of this detector; `options` are those of `Guard`, which decide no score.

        Raises:
            CovaryError: a missing, damaged or foreign folder, another format, a guard of another detector, or one that
                looks at other places than `every` asks for.
        """
        kept, looks = stored.read_guard(Path(folder), detector)
        if every is not None and every != kept:
            remedy = "leave every= away, or give another folder"
            raise CovaryError(f"the guard in {folder} looks every {kept} tokens", f"every {every}", remedy)
        return Guard(detector, every=kept, looks=looks, **options)

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Writes what the guard has learned to a folder of safetensors and JSON, whole or not at all.

        Rates, policies and logs are no part of it. A guard that is there already is replaced; with `force` also one
        that is signed.
        """
        stored.write_guard(Path(folder), self.detector, self.every, self.looks, force=force)
        return Path(folder)

    def _learned(self, progress: Callable[[int, int], None] | None) -> Iterator[Rows]:
        there: list[Tokens] = self.detector.extractor.trusted_tokens
        if len(there) < LEAST_AT_A_LOOK:
            found = f"{len(there)} trusted answers"
            raise CovaryError(found, f"at least {LEAST_AT_A_LOOK}, which calibrate the guard", "trust more of them")
        by_look = [list(there)]
        while len(there) >= LEAST_AT_A_LOOK:
            there = [text for text in there if len(text.targets) > (len(by_look) - 1) * self.every]
            by_look.append(there)
        by_look.pop()
        for look, some in enumerate(by_look):
            yield self.rows(some, look)
            if progress is not None:
                progress(look + 1, len(by_look))

    def rows(self, texts: Sequence[Tokens], look: int) -> Rows:
        """Rows of texts with their answers at one look."""
        # In one group: nobody tells the task of an answer that is being written.
        seen = [so_far(text, look * self.every) for text in texts]
        return self.detector.extractor.judged(seen, "answer" if look else "prompt")

    def scores(self, text: Tokens, look: int) -> np.ndarray:
        """Score of one look by each fold's own score, (folds,), in nats."""
        return self.looks.scores(self.rows([text], look), look)[:, 0]

    def p_value(self, highest: np.ndarray) -> float:
        """Running p-value of the largest scores so far, one a fold."""
        return float(self.looks.p_value(highest[:, None])[0])

    def begin(self, prompt: Any, name: str = "answer", longest: int | None = None) -> Watch:
        """Watches the answer to a prompt: a string, a mapping with `prompt` or `messages`, or its token ids.

        A prompt of more than `longest` tokens loses some from its left.
        """
        if isinstance(prompt, (list, tuple)) and all(isinstance(one, int) for one in prompt):
            ids = tuple(prompt)
            text = Tokens(name, ids, (), (), len(ids) - 1, start=begins_like(ids, self.begins))
        else:
            (read,) = read_texts([prompt])
            text = replace(tokenise_prompt(self.model, read, longest, self.begins), id=name)
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
        return logits_processor(self, name)

    @property
    def knows_conversations(self) -> bool:
        """Whether trusted prompts went through the chat template, where the model has one, as conversations do."""
        if not getattr(self.model.tokenizer, "chat_template", None):
            return True
        # Others begin with a starting token at most.
        return bool(np.mean([text.start > 1 for text in self.detector.extractor.trusted_tokens]) >= 0.5)

    def write_down(self, verdict: RunningVerdict) -> None:
        """One line of the log."""
        if self.log is not None:
            line = json.dumps({"time": round(time.time(), 3), "policy": self.policy, **asdict(verdict)})
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(line + "\n")


def check_guardable(detector: Detector) -> None:
    """Refuses a detector that knows no answers."""
    own = detector.extractor
    if detector.settings.kind != "text" or own.model.task != "causal" or own.own.judge == "prompt":
        raise CovaryError("a guard by a detector that judges no answers", "one of a causal model's answers")


def _check_writable(log: Path) -> None:
    try:
        with open(log, "a", encoding="utf-8"):
            pass
    except OSError as problem:
        found = f"the log {log} cannot be written ({problem.strerror or problem})"
        raise CovaryError(found, "a file one may append to", "check its folder, rights and space") from None

"""The work behind chat completions: a conversation in tokens, an answer under guard, records."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator
from typing import Any

from covary.errors import CovaryError
from covary.serving.guard import Guard, Piece, Watch, guarded
from covary.serving.http.chat import shapes
from covary.serving.http.chat.requests import ChatRequest, about
from covary.serving.http.chat.turns import Speaking, Turns
from covary.serving.http.recording import Recording
from covary.serving.http.refusals import Refused
from covary.serving.http.settings import ServeSettings
from covary.text.records import Text
from covary.text.streaming import written
from covary.text.tokens import prompt_tokens


class Answer:
    """One answer: what it is called, what it says, and what has become of it.

    Attributes:
        id: as OpenAI names them; head: what its completion and all its chunks begin with.
        speaking: where its pieces come from, and the refusal of a conversation that the model cannot take.
        prompt: its tokens, once it has begun; watch: the answer under guard.
    """

    watch: Watch

    def __init__(self, service: ChatService, asked: ChatRequest) -> None:
        self.id, self.prompt, self._service = f"chatcmpl-{uuid.uuid4().hex}", (), service
        fingerprint = f"fp_{service.guard.detector.network.fingerprint[:12]}"
        self.head = {
            "id": self.id, "created": int(time.time()), "model": asked.model, "system_fingerprint": fingerprint,
        }  # fmt: skip
        self._asked, self.speaking = asked, Speaking(self._begin)
        self._told: Any = None

    def _begin(self) -> Iterator[Piece]:
        """In the working thread, since a tokenizer must not be asked by two at once."""
        service, asked = self._service, self._asked
        self.prompt = service.tokens(asked)
        most = service.room(asked, len(self.prompt))
        service.accepted(self)
        self.watch = service.guard.begin(list(self.prompt), self.id)
        tokens = written(service.guard.model, self.prompt, most, asked.choice)
        return guarded(self.watch, tokens, asked.stop)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of prompt and answer."""
        return shapes.usage(len(self.prompt), len(self.watch.answer))

    def covary(self, piece: Piece) -> dict[str, Any]:
        """The field `covary` where clients see verdicts; in chunks only where it is a new one, or the last."""
        guard, new = self._service.guard, piece.verdict is not self._told or piece.finish is not None
        self._told = piece.verdict
        if not new or not self._service.tells:
            return {}
        return {"covary": shapes.verdict(piece.verdict, guard.policy, guard.fpr_in_force)}

    def headers(self, piece: Piece) -> dict[str, str]:
        """Its id, and the verdict where clients see it."""
        return {"x-request-id": self.id, **(shapes.verdict_headers(piece.verdict) if self._service.tells else {})}


class ChatService(Recording):
    """A language model under guard at work for many clients.

    Args:
        guard: of a fitted detector.
        settings: see `ServeSettings`.
    """

    def __init__(self, guard: Guard, settings: ServeSettings) -> None:
        super().__init__(settings)
        self.guard, self.turns, self.seen = guard, Turns(), 0
        # A policy that tells readers nothing tells clients nothing.
        self.tells = self.verdicts_visible and guard.policy != "log"

    def start(self) -> None:
        """Begins; in a running event loop."""
        self.turns.start()

    async def close(self) -> None:
        """Ends once every accepted answer is."""
        await self.turns.close()

    def ask(self, asked: ChatRequest) -> Answer:
        """An answer that is on its way.

        Raises:
            Refused: 404, another model.
        """
        if asked.model != self.settings.name:
            found = f"no model {asked.model[:60]!r}"
            raise about("model", Refused(404, found, repr(self.settings.name)), "model_not_found")
        answer = Answer(self, asked)
        self.turns.submit(answer.speaking)
        return answer

    def accepted(self, answer: Answer) -> None:
        """Writes down that an answer begins."""
        self.write_down("accepted", request=answer.id, prompt_tokens=len(answer.prompt))
        self.seen += 1

    def tokens(self, asked: ChatRequest) -> tuple[int, ...]:
        """The conversation by the model's chat template; without one a single turn of the user is the prompt.

        Raises:
            Refused: 400, messages that the model cannot take.
        """
        model, turns = self.guard.model, list(asked.messages)
        templated = bool(getattr(model.tokenizer, "chat_template", None))
        if not templated and (len(turns) > 1 or turns[0]["role"] != "user"):
            expected = "one message, of the user"
            raise about("messages", Refused(400, "a conversation with a model without a chat template", expected))
        text = Text("request", messages=tuple(turns)) if templated else Text("request", prompt=turns[0]["content"])
        try:
            return prompt_tokens(model, text)
        except CovaryError as problem:
            raise about("messages", Refused(400, problem.found, problem.expected, problem.remedy)) from problem
        except Exception as problem:
            reason = " ".join(str(problem).split())[:200] or type(problem).__name__
            found = f"messages that the model's chat template refuses ({reason})"
            raise about("messages", Refused(400, found, "turns as it takes them")) from problem

    def room(self, asked: ChatRequest, prompt: int) -> int:
        """Tokens that the answer may have.

        Raises:
            Refused: 400, more than the model has positions for.
        """
        usual = min(self.guard.detector.extractor.own.max_new_tokens, self.settings.max_new_tokens)
        longest = self.guard.model.longest
        if longest is None:
            return asked.most or usual
        if prompt + (asked.most or 1) > longest:
            found = f"messages of {prompt} tokens and an answer of {asked.most or 1}"
            expected = f"at most {longest} together, the positions of the model"
            raise about("messages", Refused(400, found, expected, "shorten them"), "context_length_exceeded")
        return asked.most or min(usual, longest - prompt)

    def finished(self, answer: Answer, piece: Piece) -> None:
        """Writes down what became of an answer.

        Raises:
            Refused: 503, see `write_down`.
        """
        verdict = piece.verdict
        sha256 = hashlib.sha256(" ".join(map(str, answer.prompt)).encode()).hexdigest()
        self.metrics.spoken(str(piece.finish), len(answer.watch.answer), verdict.flagged, verdict.p_value)
        self.write_down(
            "answered", request=answer.id, status=200, prompt_sha256=sha256, **answer.usage,
            finish=piece.finish, score=shapes.finite(verdict.score), p_value=verdict.p_value, flagged=verdict.flagged,
        )  # fmt: skip

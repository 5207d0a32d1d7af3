"""Guarded answers as text: pieces with the verdict in force, until the answer ends or is ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from covary.serving.guard.watch import RunningVerdict, Watch
from covary.text.streaming import Decoder, StopStrings

# Why an answer is over: it ended by itself or at a stop string, its tokens were used up, or the policy ended it.
STOP, LENGTH, FLAGGED = "stop", "length", "flagged"


@dataclass(frozen=True)
class Piece:
    """What one token adds to an answer.

    Attributes:
        text: as it is to be shown; may be empty.
        verdict: in force after it.
        token: its number; None before the first token and after the last.
        finish: `stop`, `length` or `flagged` in the last piece, else None.
    """

    text: str
    verdict: RunningVerdict
    token: int | None = None
    finish: str | None = None


def guarded(watch: Watch, tokens: Iterable[int], stop: Sequence[str] = ()) -> Iterator[Piece]:
    """The pieces of an answer, the verdict on the prompt alone first.

    Under the policy `stop` the token with which the verdict flags is not told, and nothing more is taken from `tokens`.

    Args:
        watch: of the answer, fresh from `Guard.begin`.
        tokens: of the answer, such as `written` gives; without an end-of-text token it ends for want of tokens.
        stop: strings before the first of which the answer ends.
    """
    model, verdict = watch.guard.model, watch.look()
    yield Piece("", verdict, finish=FLAGGED if watch.stopped else None)
    if watch.stopped:
        return
    decoder, ends, finish, last = Decoder(model.tokenizer), StopStrings(stop), LENGTH, ""
    for token in tokens:
        watch.add(token)
        if watch.stopped:
            break
        if token in model.ends:
            finish = STOP
            break
        text = ends.add(decoder.add(token))
        if ends.found:
            finish, last = STOP, text
            break
        yield Piece(text, watch.verdict, token)
    watch.end()
    if watch.stopped:
        yield Piece("", watch.verdict, finish=FLAGGED)
        return
    if not ends.found:
        last = ends.add(decoder.rest()) + ends.rest()
    yield Piece(last, watch.verdict, finish=finish)

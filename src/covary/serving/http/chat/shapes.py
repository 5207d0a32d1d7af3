"""OpenAI's JSON: completions, chunks, models and errors, each with what the guard says beside it."""

from __future__ import annotations

import sys
from typing import Any

from covary.errors import CovaryError
from covary.serving.guard import RunningVerdict

# Why an answer is over -> what OpenAI calls it.
FINISHES = {"stop": "stop", "length": "length", "flagged": "content_filter"}
REFUSAL = "The guard stopped this answer: it is not made by the mechanism behind the answers that are trusted."
KINDS = {403: "permission_error", 408: "timeout_error", 429: "rate_limit_error", 503: "overloaded_error"}
CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}


def error(status: int, sentence: str, problem: CovaryError | None = None) -> dict[str, Any]:
    """A refusal, as OpenAI's clients read it."""
    usual = "server_error" if status >= 500 else "invalid_request_error"
    param, code = getattr(problem, "param", None), getattr(problem, "code", None) or CODES.get(status)
    return {"error": {"message": sentence, "type": KINDS.get(status, usual), "param": param, "code": code}}


def model(name: str, created: int) -> dict[str, Any]:
    """What is told of the one model."""
    return {"id": name, "object": "model", "created": created, "owned_by": "covary"}


def verdict(found: RunningVerdict, policy: str, rate: float) -> dict[str, Any]:
    """The verdict in force, for the field `covary`."""
    return {
        "flagged": found.flagged, "p_value": found.p_value, "score": finite(found.score), "tokens": found.tokens,
        "policy": policy, "false_stop_rate": rate,
    }  # fmt: skip


def verdict_headers(found: RunningVerdict) -> dict[str, str]:
    """The same for headers."""
    return {
        "x-covary-verdict": "flagged" if found.flagged else "passed",
        "x-covary-p-value": f"{found.p_value:.6g}",
        "x-covary-score": f"{finite(found.score):.6g}",
    }


def usage(prompt: int, answer: int) -> dict[str, int]:
    """Tokens."""
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def completion(head: dict[str, Any], text: str, finish: str, tokens: dict[str, int]) -> dict[str, Any]:
    """A whole answer; of one that was stopped nothing is told."""
    stopped = finish == "flagged"
    message = {"role": "assistant", "content": "" if stopped else text, "refusal": REFUSAL if stopped else None}
    choice = {"index": 0, "message": message, "finish_reason": FINISHES[finish], "logprobs": None}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": tokens}


def chunk(head: dict[str, Any], delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    """A piece of an answer."""
    choice = {
        "index": 0, "delta": delta, "finish_reason": None if finish is None else FINISHES[finish], "logprobs": None,
    }  # fmt: skip
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}


def usage_chunk(head: dict[str, Any], tokens: dict[str, int]) -> dict[str, Any]:
    """The last chunk of a stream whose client wants the number of tokens."""
    return {**head, "object": "chat.completion.chunk", "choices": [], "usage": tokens}


def finite(score: float) -> float:
    """A score that JSON can hold."""
    return max(-sys.float_info.max, min(score, sys.float_info.max))

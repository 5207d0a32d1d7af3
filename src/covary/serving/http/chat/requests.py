"""What a client asks for: OpenAI's chat completion request, read strictly; what would be ignored is refused instead."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from covary.serving.http.refusals import Refused
from covary.text.streaming import Choice

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MOST_STOPS, LONGEST_STOP, MOST_MESSAGES = 4, 200, 1000
READ = ("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "stream",
        "stream_options")  # fmt: skip
# What decides no answer here.
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
# What this service cannot do, and the values that ask for nothing; null asks for nothing, too.
NOT_HERE: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}


@dataclass(frozen=True)
class ChatRequest:
    """One conversation to be answered.

    Attributes:
        model: its name.
        messages: turns with `role` (system, user, assistant) and `content`, the last one the user's.
        most: tokens of the answer at most; None = as many as are usual.
        choice: of the next token.
        stop: strings before which the answer ends.
        stream: whether the answer comes as it is written; usage: whether a stream ends with the number of tokens.
    """

    model: str
    messages: tuple[dict[str, str], ...]
    most: int | None
    choice: Choice
    stop: tuple[str, ...]
    stream: bool
    usage: bool


def about(param: str, problem: Refused, code: str | None = None) -> Refused:
    """A refusal that names the parameter it is about, as OpenAI's do."""
    problem.param, problem.code = param, code  # type: ignore[attr-defined]
    return problem


def parse(body: bytes, most: int) -> ChatRequest:
    """A request.

    Args:
        body: as sent.
        most: tokens that one answer may have.

    Raises:
        Refused: 400, with `param` and `code`.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "a body that is not JSON", "a chat completion request") from None
    if not isinstance(asked, dict):
        raise Refused(400, "a body that is no JSON object", "a chat completion request")
    asked = {name: value for name, value in asked.items() if value is not None}
    for name, value in asked.items():
        if name in NOT_HERE:
            if not any(value == one and type(value) is type(one) for one in NOT_HERE[name]):
                found = f"{name} = {json.dumps(value)[:60]}, which this service has no part for"
                raise about(name, Refused(400, found, "a plain answer", f"leave {name} away"), "unsupported_parameter")
        elif name not in READ and name not in IGNORED:
            found = f"a request with {name[:60]!r}"
            raise about(name[:60], Refused(400, found, f"some of: {', '.join(READ)}"), "unknown_parameter")
    model = asked.get("model")
    if not isinstance(model, str):
        raise about("model", Refused(400, "a request that names no model", "`model`, as /v1/models names it"))
    stream = _flag(asked, "stream")
    options = asked.get("stream_options", {})
    if not isinstance(options, dict) or (options and not stream):
        raise about("stream_options", Refused(400, "stream_options that are none", "an object, beside stream = true"))
    temperature = _number(asked, "temperature", 0.0, 2.0, 0.0)
    top_p = _number(asked, "top_p", 0.0, 1.0, 1.0)
    if top_p == 0:
        raise about("top_p", Refused(400, "top_p is 0", "above 0, at most 1"))
    return ChatRequest(
        model, _messages(asked.get("messages")), _most(asked, most),
        Choice(temperature, top_p, _whole(asked, "seed", -(2**63), 2**63 - 1)), _stops(asked.get("stop", [])),
        stream, _flag(options, "include_usage"),
    )  # fmt: skip


def _messages(found: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(found, list) or not found or len(found) > MOST_MESSAGES:
        raise about("messages", Refused(400, "no messages, or too many", f"a list of 1 to {MOST_MESSAGES}"))
    turns = [_turn(one, f"messages[{i}]") for i, one in enumerate(found)]
    if turns[-1]["role"] == "assistant":
        raise about("messages", Refused(400, "messages that end with the assistant's turn", "the user's turn last"))
    return tuple(turns)


def _turn(one: Any, where: str) -> dict[str, str]:
    if not isinstance(one, dict):
        raise about(where, Refused(400, f"{where} is no object", "a turn with `role` and `content`"))
    role, content = one.get("role"), one.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise about(f"{where}.role", Refused(400, f"the role {role!r:.40} of {where}", f"one of: {', '.join(ROLES)}"))
    for name in ("tool_calls", "function_call", "audio"):
        if one.get(name):
            raise about(f"{where}.{name}", Refused(400, f"{name} in {where}", "text alone"), "unsupported_parameter")
    if isinstance(content, list):
        texts = [part["text"] for part in content if isinstance(part, dict) and _is_text(part)]
        content = "".join(texts) if texts and len(texts) == len(content) else None
    if not isinstance(content, str):
        found = f"the content of {where} is no text"
        raise about(f"{where}.content", Refused(400, found, "a string, or parts of text"))
    return {"role": ROLES[role], "content": content}


def _is_text(part: dict[str, Any]) -> bool:
    return part.get("type") == "text" and isinstance(part.get("text"), str)


def _most(asked: dict[str, Any], limit: int) -> int | None:
    name = "max_completion_tokens" if "max_completion_tokens" in asked else "max_tokens"
    return _whole(asked, name, 1, limit)


def _stops(found: Any) -> tuple[str, ...]:
    stops = [found] if isinstance(found, str) else found
    fits = isinstance(stops, list) and len(stops) <= MOST_STOPS
    if not fits or not all(isinstance(one, str) and 0 < len(one) <= LONGEST_STOP for one in stops):
        expected = f"at most {MOST_STOPS} strings of 1 to {LONGEST_STOP} characters"
        raise about("stop", Refused(400, "a stop that is none", expected))
    return tuple(stops)


def _flag(asked: dict[str, Any], name: str) -> bool:
    value = asked.get(name)
    if not (value is None or isinstance(value, bool)):
        raise about(name, Refused(400, f"{name} = {value!r:.40}", "true or false"))
    return bool(value)


def _number(asked: dict[str, Any], name: str, low: float, high: float, usual: float) -> float:
    value = asked.get(name, usual)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise about(name, Refused(400, f"{name} = {value!r:.40}", f"a number from {low:g} to {high:g}"))
    return float(value)


def _whole(asked: dict[str, Any], name: str, low: int, high: int) -> int | None:
    value = asked.get(name)
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise about(name, Refused(400, f"{name} = {value!r:.40}", f"a whole number from {low} to {high}"))
    return value

"""A language model's prompt and answer, token by token, beside the trusted text that comes nearest."""

from __future__ import annotations

from typing import Any

from covary.runs.report.run_folder import items, number
from covary.runs.report.words import signed

MAX_TOKENS = 400
MAX_ANSWER = 2000
MAX_BESIDE = 600
# Between prompt and answer of a trusted text.
ARROW = "\n→ "


def answer(entry: dict[str, Any]) -> dict[str, Any] | None:
    """The answer of one text: its tokens with what is unexplained of each, or as it stands; None for other inputs."""
    return _side(entry, "tokens", entry.get("answer"))


def prompt(entry: dict[str, Any]) -> dict[str, Any] | None:
    """The same of its prompt, where its tokens were looked at; else None, and the prompt stands as it is."""
    return _side(entry, "prompt_tokens", None)


def beside(entry: dict[str, Any]) -> dict[str, str] | None:
    """Prompt and answer of a text and of the trusted one that comes nearest; None for other inputs."""
    own, nearest = entry.get("text"), next((one for one in items(entry, "explained_by") if isinstance(one, dict)), None)
    kept = None if nearest is None else nearest.get("text")
    if nearest is None or not isinstance(own, str) or not isinstance(kept, str):
        return None
    asked, _, said = kept.partition(ARROW)
    written = entry.get("answer")
    texts = {"prompt": own, "answer": written if isinstance(written, str) else "", "near_prompt": asked,
             "near_answer": said}  # fmt: skip
    shown = {name: text[:MAX_BESIDE] + (" …" if len(text) > MAX_BESIDE else "") for name, text in texts.items()}
    return {**shown, "id": str(nearest.get("id"))}


def _side(entry: dict[str, Any], key: str, written: Any) -> dict[str, Any] | None:
    tokens = [token for token in items(entry, key) if isinstance(token, dict)]
    if not tokens and not isinstance(written, str):
        return None
    drawn = [
        {
            "text": str(token.get("text") or ""),
            "marked": bool(token.get("marked")),
            "title": _title(number(token.get("unexplained")), number(token.get("margin"))),
        }
        for token in tokens[:MAX_TOKENS]
    ]
    return {
        "tokens": drawn,
        "text": written[:MAX_ANSWER] if isinstance(written, str) else "",
        "n_marked": sum(token["marked"] for token in drawn),
        "cut": len(tokens) > MAX_TOKENS or (not tokens and isinstance(written, str) and len(written) > MAX_ANSWER),
        "empty": not drawn and not written,
    }


def _title(unexplained: float | None, margin: float | None) -> str:
    parts = [
        f"unexplained {signed(unexplained)}" if unexplained is not None else "not looked at",
        f"margin {signed(margin)}" if margin is not None else "",
    ]
    return ", ".join(part for part in parts if part)

"""A language model's answer, token by token, ready to be shown: what trusted texts account for least stands out."""

from __future__ import annotations

from typing import Any

from covary.runs.report.run_folder import items, number
from covary.runs.report.words import signed

MAX_TOKENS = 400
MAX_ANSWER = 2000


def answer(entry: dict[str, Any]) -> dict[str, Any] | None:
    """The answer of one text: its tokens with what is unexplained of each, or as it stands; None for other inputs."""
    tokens = [token for token in items(entry, "tokens") if isinstance(token, dict)]
    written = entry.get("answer")
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

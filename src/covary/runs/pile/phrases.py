"""What members of a card or of a mechanism have in common where inputs are texts: phrases of prompts and of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from covary.data.source import Source
from covary.runs.report.answers import ARROW
from covary.text.phrases import shared_phrases
from covary.text.source import TextSource

# What phrases are looked for in -> a text's own, and that of a trusted text as it is kept.
SIDES = {
    "prompts": (lambda text: text.display_text, lambda kept: kept.partition(ARROW)[0]),
    "answers": (lambda text: text.completion or "", lambda kept: kept.partition(ARROW)[2]),
}


def phrases_of(members: Source, others: Sequence[Source], trusted: Mapping[str, str]) -> dict[str, Any]:
    """`phrases` of members, by side, that others and trusted texts do not have; empty where inputs are no texts."""
    if not isinstance(members, TextSource):
        return {}
    rest = [text for other in others if isinstance(other, TextSource) for text in other.texts]
    found = {}
    for side, (own, kept) in SIDES.items():
        elsewhere = [own(text) for text in rest] + [kept(text) for text in trusted.values()]
        phrases = shared_phrases([own(text) for text in members.texts], elsewhere)
        found[side] = [{"text": one.text, "share": one.share, "elsewhere": one.elsewhere} for one in phrases]
    return {"phrases": found}

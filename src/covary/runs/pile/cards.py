"""The cards of a RUN's pile: `cards.json`, what a summary and the terminal say of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from covary.data.source import Source
from covary.errors import CovaryError
from covary.runs.folder.cards import data_uri
from covary.runs.pile.phrases import phrases_of
from covary.scoring.pile.cards import BY_CHANCE, Card, Cards
from covary.storage import folders

FILE = "cards.json"
MAX_ROWS, TYPICAL = 24, 5
WHAT = "a RUN of `covary scan` that judged its pile together"


def cards_record(
    found: Cards,
    inputs: Source,
    predicted: Int[np.ndarray, " n"],
    flagged: Bool[np.ndarray, " n"],
    trusted: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What `cards.json` holds: the test, and every card with all its members, the most typical first.

    Where inputs are texts a card tells phrases that neither the rest of the pile nor `trusted` texts, by id, have.
    """
    ids = inputs.ids
    return {
        "level": found.level,
        "n_calibration": found.n_calibration,
        "least_share": found.least_share,
        "by_chance": BY_CHANCE,
        "cards": [_record(card, inputs, ids, predicted, flagged, trusted or {}) for card in found.cards],
    }


def _record(
    card: Card, inputs: Source, ids: list[str], predicted: Int[np.ndarray, " n"], flagged: Bool[np.ndarray, " n"],
    trusted: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    members = card.members
    others = np.setdiff1d(np.arange(len(inputs)), members)
    return {
        "number": card.number,
        "n": len(members),
        "n_flagged": int(flagged[members].sum()),
        "share": card.share,
        "p_value": card.p_value,
        "reading": card.reading,
        "sureness": card.sureness,
        "survival": card.survival,
        "parts": card.parts,
        "layers": card.layers,
        "predicted": {str(k): v for k, v in Counter(predicted[members].tolist()).most_common()},
        **phrases_of(inputs.take(members), [inputs.take(others)], trusted),
        "ids": [ids[i] for i in members.tolist()],
        "shown": [{"id": ids[i], "thumbnail": data_uri(inputs.thumbnail(i))} for i in members[:MAX_ROWS].tolist()],
    }


def in_summary(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each card what a summary tells: figures, and the ids of its most typical members."""
    return [
        {**{key: value for key, value in card.items() if key not in ("ids", "shown")}, "typical": card["ids"][:TYPICAL]}
        for card in record["cards"]
    ]


def statement(record: dict[str, Any]) -> str:
    """One sentence: how many cards, and what the test could have seen."""
    n = len(record["cards"])
    found = f"{n} direction{'s' if n > 1 else ''} of the pile lie{'' if n > 1 else 's'}" if n else "No direction lies"
    return (
        f"{found} beyond what trusted inputs give, at a level of {record['level']:.0%} over the whole pile; with "
        f"{record['n_calibration']} calibration samples a kind that makes up less than {record['least_share']:.1%} of "
        "the pile cannot be told from chance this way."
    )


def read_cards(run: Path) -> dict[str, Any]:
    """`cards.json` of a RUN.

    Raises:
        CovaryError: there is none, since inputs were judged alone, or it is not as covary writes it.
    """
    if not (run / FILE).is_file():
        raise CovaryError(f"{run} has no {FILE}", WHAT, "scan again with together=True")
    record = folders.read_json(run / FILE, WHAT)
    cards = record.get("cards")
    if not isinstance(cards, list) or not all(isinstance(card, dict) and "ids" in card for card in cards):
        raise CovaryError(f"{run / FILE} is not as covary writes it", WHAT, "scan again")
    return record


def members(run: Path, number: int) -> list[str]:
    """Ids of a card's members, the most typical first.

    Raises:
        CovaryError: the RUN has no card of that number.
    """
    cards = {card.get("number"): card for card in read_cards(run)["cards"]}
    if number not in cards:
        known = ", ".join(map(str, cards)) or "none at all"
        raise CovaryError(f"card={number} of {run}", f"one of its cards: {known}")
    return [str(name) for name in cards[number]["ids"]]

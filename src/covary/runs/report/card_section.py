"""The report's section on cards: the directions of a pile, each with its members and what carries it, in words."""

from __future__ import annotations

from typing import Any

from covary.runs.report import charts
from covary.runs.report.panels import image
from covary.runs.report.run_folder import RunFolder, items, number, section
from covary.runs.report.words import count, layer, percent, signed, whole_percent
from covary.text.phrases import in_words

# Readings -> what a person may make of them, and the style of the word.
READINGS = {
    "attack-like": ("sure answers, as of a trigger or an adversarial input", "flagged"),
    "shift-like": ("answers less sure than on trusted inputs, as of noise, another camera or season", "passed"),
    "neither clearly": ("neither clearly sure nor clearly unsure", "passed"),
}


def line(card: dict[str, Any]) -> str:
    """One line of a card for the terminal."""
    return f"card {card.get('number')}, {card.get('reading')}: {_text(card, str, {})}"


def _text(card: dict[str, Any], name: Any, kinds: dict[str, Any]) -> str:
    n, flagged = int(number(card.get("n")) or 0), int(number(card.get("n_flagged")) or 0)
    summary = f"{count(n)} input{'s' if n != 1 else ''}, {percent(number(card.get('share')))} of the pile"
    summary += f", {count(flagged)} of them flagged"
    if (p := number(card.get("p_value"))) is not None:
        summary += f" (p = {p:.2g})"
    summary += "."
    classes = ", ".join(f"{name(label)} ({int(n):,})" for label, n in list(section(card, "predicted").items())[:5])
    summary += f" Predicted as {classes}." if classes else ""
    ranks = [
        f"{what} than {whole_percent(value)} of trusted inputs"
        for what, value in (("surer", number(card.get("sureness"))), ("surviving longer", number(card.get("survival"))))
        if value is not None
    ]
    summary += f" On average {' and '.join(ranks)}." if ranks else ""
    layers = ", ".join(layer(str(own), kinds) for own in items(card, "layers"))
    summary += f" Most in {layers}." if layers else ""
    return f"{summary} {phrases(card)}".rstrip()


def phrases(card: dict[str, Any]) -> str:
    """The phrases that members share, in sentences; empty where inputs are no texts."""
    told = {
        side: [one for one in items(section(card, "phrases"), side) if isinstance(one, dict) and _is_phrase(one)]
        for side in ("prompts", "answers")
    }
    return in_words(told)


def _is_phrase(one: dict[str, Any]) -> bool:
    known = number(one.get("share")) is not None and number(one.get("elsewhere")) is not None
    return isinstance(one.get("text"), str) and known


def cards(run: RunFolder) -> dict[str, Any] | None:
    """What the template shows; None where the pile was not judged together, or has no card."""
    found = [card for card in items(run.cards, "cards") if isinstance(card, dict)]
    if not found:
        return None
    level, chance = number(run.cards.get("level")), number(run.cards.get("by_chance"))
    lead = (
        "Directions in which the pile lies further out than trusted inputs do, and the inputs along each of them. "
        "Bars: how far those stand off trusted inputs by each kind of numbers, in trusted standard deviations."
    )
    if level is not None and chance is not None:
        lead += (
            f" A pile like the trusted inputs shows any card with a chance of {percent(level)} at most; about "
            f"{percent(chance)} of a card's members lie there by chance."
        )
    return {"lead": lead, "cards": [_card(run, card) for card in found]}


def _card(run: RunFolder, card: dict[str, Any]) -> dict[str, Any]:
    members = [item for item in items(card, "shown") if isinstance(item, dict)]
    n = int(number(card.get("n")) or 0)
    off = {str(kind): number(value) for kind, value in section(card, "parts").items()}
    known = {kind: value for kind, value in off.items() if value is not None}
    most = max(known.values(), default=0.0)
    reading = str(card.get("reading"))
    meaning, css = READINGS.get(reading, ("", "passed"))
    return {
        "number": int(number(card.get("number")) or 0),
        "title": f"Card {card.get('number')}: {count(n)} input{'s' if n != 1 else ''}",
        "reading": f"{reading}: {meaning}" if meaning else reading,
        "css": css,
        "text": _text(card, run.class_name, run.layer_kinds),
        "bars": [
            {
                "name": str(run.parts.get(kind, {}).get("title") or kind.capitalize()),
                "bar": charts.bar(value / most if most else 0.0, css="accent"),
                "value": signed(value),
            }
            for kind, value in sorted(known.items(), key=lambda item: -item[1])
        ],
        "shown": [{"id": str(item.get("id")), "thumbnail": image(item.get("thumbnail")) or ""} for item in members],
        "more": count(n - len(members)) if n > len(members) else "",
    }

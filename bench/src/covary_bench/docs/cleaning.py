"""Tables of docs/training.md: poisoned training sets cleaned, and networks trained anew on what was kept."""

from __future__ import annotations

from typing import Any

# Ways of choosing whom to remove, as in the record, and their columns.
OURS = {
    "covary": "by scores", "each alone": "each image alone", "with labels": "with labels", "cards": "by cards",
}  # fmt: skip
RIVALS = ("spectral signatures", "activation clustering")


def _share(value: float) -> str:
    # Never broken before its sign, narrow as a column may be.
    return f"{100 * value:.1f}\u00a0%"


def _title(name: str) -> str:
    """`badnets 10 % s0` as a reader knows it."""
    attack, rest = name.removesuffix(" s0").split(" ", 1)
    return f"{ {'badnets': 'BadNets', 'wanet': 'WaNet'}.get(attack, attack) }, {rest}".replace(" %", "\u00a0%")


def removed(record: dict[str, Any]) -> str:
    """Markdown: share of the poisoned images removed / of the clean ones, by every way."""
    heads = ["poisoned set", "judged", "learned", *OURS.values(), "precision", *(name.title() for name in RIVALS)]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for name, cell in record["cells"].items():
        gone = {way: f"{_share(found['recall'])} / {_share(found['clean'])}" for way, found in cell["removed"].items()}
        row = [_title(name), f"{cell['judged']:,}", _share(cell["learned"]), *(gone[way] for way in OURS)]
        row += [_share(cell["removed"]["covary"]["precision"]), *(gone[rival] for rival in RIVALS)]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def retrained(record: dict[str, Any]) -> str:
    """Markdown: attack success and clean accuracy before and after, where they were measured."""
    heads = ["poisoned set", "before: success", "accuracy", "after covary: success", "accuracy"]
    heads += [f"after {rival.title()}: success" for rival in RIVALS]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for name, cell in record["cells"].items():
        after = {way: cell["retrained"].get(way) for way in ("covary", *RIVALS)}
        row = [_title(name), _share(cell["victim"]["success"]), _share(cell["victim"]["accuracy"])]
        row += [_share(after["covary"][key]) if after["covary"] else "not measured" for key in ("success", "accuracy")]
        row += [_share(found["success"]) if (found := after[rival]) else "not measured" for rival in RIVALS]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def trusted(record: dict[str, Any]) -> str:
    """Markdown: clean training images that go, by where the trusted ones are from."""
    heads = ["network", "trusted from", "clean gone at 1 %", "flagged at 5 %", "poison gone", "clean answered right"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for name, cell in record["trusted elsewhere"].items():
        for where, words in (("training", "the training set"), ("test", "images it never saw")):
            found = cell[where]
            row = [name, words, *(_share(found[key]) for key in ("clean", "clean at 5 %", "recall", "right"))]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n" if record["trusted elsewhere"] else ""

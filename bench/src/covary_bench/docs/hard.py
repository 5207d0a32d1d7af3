"""Tables of docs/benchmark.md on hard benign inputs: how many are flagged, and what cards say of them."""

from __future__ import annotations

from covary_bench.docs.images import Record, by_variant, has, markdown, number, seeds
from covary_bench.scoring import DEFAULT_WAYS, LOOKING, OURS


def hard(record: Record) -> str:
    """One line a kind and data set, seeds side by side: rates flagged and what the second axis tells."""
    rows = []
    for case, own in by_variant(record).items():
        rates = [cell["false_positive_rates"][OURS] for cell in own if "false_positive_rates" in cell]
        rows.append([
            case, seeds(r["hard"] for r in rates), seeds(r["clean"] for r in rates),
            seeds(cell.get("second_axis_auroc") for cell in own), seeds(cell.get("score_auroc") for cell in own),
        ])  # fmt: skip
    return markdown(["case", "hard ones flagged", "clean ones beside them flagged", "second axis, AUROC",
                     "the score itself, AUROC"], rows)  # fmt: skip


AT_MOST = 0.1  # of hard inputs flagged at 5 % asked for


def hard_ways(record: Record) -> str:
    """One line a kind: hard inputs flagged by every way, with clean ones beside them in brackets; the last line counts
    the kinds with at most `AT_MOST` in every seed.
    """
    columns = [(name, "", name) for name in DEFAULT_WAYS[:2]]
    for name in LOOKING:
        columns += [(name, "", f"{name}, attack in the pile"), (name, "_without", f"{name}, no attack")]
    rows, few = [], [0] * len(columns)
    for case, own in by_variant(record).items():
        found = [cell["false_positive_rates"] for cell in own if has(LOOKING[-1])(cell)]
        if not found:
            continue
        told = []
        for k, (name, suffix, _) in enumerate(columns):
            pairs = [(rates[name][f"hard{suffix}"], rates[name][f"clean{suffix}"]) for rates in found]
            told.append(", ".join(f"{number(flagged)} ({number(clean)})" for flagged, clean in pairs))
            few[k] += all(flagged <= AT_MOST for flagged, _ in pairs)
        rows.append([case, *told])
    if not rows:
        return ""
    rows.append([f"kinds with at most {AT_MOST:.2f}", *(f"{count} of {len(rows)}" for count in few)])
    return markdown(["case", *(head for _, _, head in columns)], rows)


def hard_cards(record: Record) -> str:
    """One line a cell: what the largest card of hard inputs says, in a pile without the attack and in one with it."""
    rows = []
    for name, cell in record["cells"].items():
        if not has(LOOKING[-1])(cell):
            continue
        told = []
        for key in ("cards_without", "cards"):
            # A card of the attack that a few hard inputs lie on says nothing about these.
            found = [card for card in cell.get(key, []) if 2 * card["hard"] > card["members"]]
            card = max(found, key=lambda card: card["hard"], default=None)
            told += ["no card", ""] if card is None else \
                [card["reading"], f"{card['hard']} of {cell['n_hard']}, among {card['members']}"]  # fmt: skip
        attacks = [card["reading"] for card in cell.get("cards", []) if 2 * card["odd"] > card["members"]]
        rows.append([name, *told, ", ".join(attacks) or "no card"])
    heads = ["cell", "no attack in the pile", "hard inputs on that card", "attack in the pile",
             "hard inputs on that card", "cards of the attack"]  # fmt: skip
    return markdown(heads, rows) if rows else ""

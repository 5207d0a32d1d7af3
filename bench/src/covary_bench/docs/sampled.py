"""Tables of docs/sampling.md: what each ingredient of the sampled estimators is worth, and what the options cost."""

from __future__ import annotations

from typing import Any

SHORT = {"cifar10_wrn16_1_grid_t5": "grid", "cifar10_vggsmall_trojan_sq_t2": "trojan"}
# source in the record -> how it is told
INGREDIENTS = {
    "paper": "`paper`: every published constant",
    "devinterp 1.3.2": "devinterp 1.3.2's sampler, same constants",
    "frozen": "BatchNorm statistics frozen",
    "nbeta0": "nβ = 0: no loss at all",
    "gaussian 0.01": "independent Gaussian draws, σ = 0.01",
    "first order": "first-order limit (cosine, and CCC with σ = 0.01)",
}
SCORES = ("class_max_pearson", "class_max_ccc", "own_mean", "own_spread")


def longest(rows: list[dict[str, Any]], source: str, observable: str, **expected: Any) -> dict[str, Any] | None:
    """The row of the longest run of that source, with those values."""
    found = [
        row
        for row in rows
        if row["source"] == source
        and row["observable"] == observable
        and "first" not in row
        and all(row.get(name) == value for name, value in expected.items())
    ]
    return max(found, key=lambda row: row.get("draws", 0), default=None)


def line(name: str, what: str, row: dict[str, Any], observable: str) -> str:
    about = f"{row['draws']} draws" if "draws" in row else ""
    about = f"{row['steps']} steps, every tenth" if "steps" in row else about
    scores = " | ".join(f"{row[score]:.4f}" for score in SCORES)
    return f"| {name} | {what} | {about} | {observable} | {scores} |"


def ingredients(found: dict[str, Any]) -> list[str]:
    """What each ingredient is worth: one line a network, source and observable, on all images."""
    lines = [
        "| network | what moves the weights | length | observable | class-max Pearson | class-max CCC |"
        " own mean | own spread |",
        "| --- " * 8 + "|",
    ]
    for name, short in SHORT.items():
        rows = found[name]["rows"]
        for source, what in INGREDIENTS.items():
            for observable in ("nll", "margin"):
                row = longest(rows, source, observable, images="all")
                if row is not None:
                    lines.append(line(short, what, row, observable))
            others = {row["steps"] for row in rows if row["source"] in ("frozen", "nbeta0")}
            for steps in others if source == "paper" else ():
                for observable in ("nll", "margin"):
                    row = longest(rows, source, observable, images="all", steps=steps)
                    if row is not None:
                        lines.append(line(short, "the same, shorter", row, observable))
    return lines


def every_or_tenth(found: dict[str, Any]) -> list[str]:
    """A tenth of the images at every draw and at every tenth."""
    lines = ["| network | chain | observable | score | every draw | every tenth |", "| --- " * 6 + "|"]
    for name, short in SHORT.items():
        for source in ("paper", "devinterp 1.3.2"):
            for observable in ("nll", "margin"):
                pair = [longest(found[name]["rows"], source, observable, images="a tenth", every=n) for n in (1, 10)]
                if pair[0] is None or pair[1] is None:
                    continue
                for score in SCORES[:2]:
                    values = " | ".join(f"{row[score]:.4f}" for row in pair if row)
                    lines.append(f"| {short} | {source} | {observable} | {score.replace('_', ' ')} | {values} |")
    return lines


def by_number(found: dict[str, Any]) -> list[str]:
    """Class-max Pearson of margins and of nll by the number of draws after burn-in."""
    counts = (10, 25, 50, 100, 250, 500, 1000)
    lines = ["| network | source | observable | " + " | ".join(map(str, counts)) + " |", "| --- " * 10 + "|"]
    for name, short in SHORT.items():
        rows = found[name]["rows"]
        for source in ("paper", "devinterp 1.3.2", "gaussian 0.01"):
            for observable in ("nll", "margin"):
                cells = []
                for n in counts:
                    key = {"draws": n} if source.startswith("gaussian") else {"first": n, "every": 1}
                    one = [
                        row["class_max_pearson"]
                        for row in rows
                        if row["source"] == source
                        and row["observable"] == observable
                        and all(row.get(k) == v for k, v in key.items())
                    ]
                    cells.append(f"{one[0]:.3f}" if one else "–")
                if set(cells) != {"–"}:
                    lines.append(f"| {short} | {source} | {observable} | {' | '.join(cells)} |")
    return lines


def second(found: dict[str, Any]) -> list[str]:
    """How many times less time independent draws take than a chain, for as many effective draws."""
    heads = ["network", "chain", "effective draws of the chain", "of independent draws",
             "times less time than every draw", "than every tenth"]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for name, short in SHORT.items():
        for source, one in found[name].get("effective draws", {}).items():
            lines.append(
                f"| {short} | {source} | {one['effective_draws']} of {one['draws']} | "
                f"{one['independent_effective']} of {one['independent_draws']} | "
                f"{one['ratio, every draw']} | {one['ratio, every tenth']} |"
            )
    return lines


def sampled(found: dict[str, Any]) -> str:
    """All tables on ingredients."""
    parts = [
        *ingredients(found), "", "Every draw or every tenth, on a tenth of the images:", "", *every_or_tenth(found), "",
        "Class-max Pearson by number of draws after the burn-in (chains: a tenth of the images):", "",
        *by_number(found), "", "What a second of independent draws is worth:", "", *second(found),
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def options(found: dict[str, Any]) -> str:
    """Times and agreement of every speed option."""
    heads = "| option | times as fast | Spearman of couplings with plain ones | first pass, seconds |"
    lines = [heads, "| --- " * 4 + "|"]
    for name, own in found["options"].items():
        if name != "plain":
            lines.append(f"| {name} | {own['times as fast as plain']:.2f} | {own['Spearman of couplings']:.4f} | "
                         f"{own['first pass, seconds']:.2f} |")  # fmt: skip
    return "\n".join(lines) + "\n"

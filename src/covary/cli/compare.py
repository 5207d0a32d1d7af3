"""How a comparison of two RUNs is told in the terminal and on a page."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment
from rich.markup import escape
from rich.table import Table

from covary.cli.console import stdout
from covary.storage.locks import write_file
from covary.storage.verify import in_words

MAX_FLIPS = 10


def percent(value: float) -> str:
    """A rate for people."""
    return f"{100 * value:.2f} %"


def statements(found: dict[str, Any]) -> list[str]:
    """What changed, in sentences, the most telling first."""
    rate, (before, after) = found["flag_rate"], found["flag_rate"]["values"]
    low, high = rate["interval"]
    said = [
        f"Flags went from {percent(before)} to {percent(after)}: {100 * rate['difference']:+.2f} points "
        f"({100 * found['level']:g} % interval {100 * low:+.2f} to {100 * high:+.2f}; p = {rate['p_value']:.3g}, "
        f"{rate['test']})."
    ]
    if found["paired"]:
        flips = found["flips"]
        said.append(
            f"Of {found['matched']:,} inputs in both, {flips['newly_flagged']:,} are newly flagged, "
            f"{flips['no_longer_flagged']:,} no longer; {flips['predictions_changed']:,} predictions changed."
        )
    scores = found["scores"]
    if scores is not None:
        a, b = scores["interval"]
        said.append(
            f"{scores['measure']} went from a median of {scores['medians'][0]:.3f} to {scores['medians'][1]:.3f}; "
            f"chance of being higher after {scores['higher_after']:.3f} ({a:.3f} to {b:.3f}; p = "
            f"{scores['p_value']:.3g}, {scores['test']})."
        )
        if scores["measure"] != "score":
            said.append(
                "Network, trusted inputs or settings differ, so p-values are compared: scores have other units."
            )
    for run, state in zip(found["runs"], found["receipts"], strict=True):
        if state != "intact":
            said.append(f"{run} {in_words(state)}.")
    return said


def differing(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, before, after) of every setting, version and fingerprint that differs, fingerprints shortened."""
    rows = []
    for part, entries in found["differs"].items():
        for entry in entries:
            cut = 18 if part == "fingerprints" else 60
            rows.append((f"{part}.{entry['name']}", entry["before"][:cut], entry["after"][:cut]))
    return rows


def print_comparison(found: dict[str, Any]) -> None:
    """What changed: sentences, then verdicts that flipped, then what the RUNs were made with."""
    stdout.print(f"[bold]{escape(found['runs'][0])}[/] -> [bold]{escape(found['runs'][1])}[/]")
    for sentence in statements(found):
        stdout.print(f"  {escape(sentence)}")
    for name, values in found["figures"].items():
        text = " -> ".join("not known" if value is None else f"{value:.4f}" for value in values)
        stdout.print(f"  {name}: {text}")
    flips = found.get("flips", {}).get("inputs", [])
    if flips:
        table = Table("input", "before", "after", "p before", "p after", "raised by", title_justify="left", box=None)
        for flip in flips[:MAX_FLIPS]:
            old, new = flip["before"], flip["after"]
            words = ["flagged" if side["flagged"] else "-" for side in (old, new)]
            numbers = ["" if side["p_value"] is None else f"{side['p_value']:.3g}" for side in (old, new)]
            table.add_row(escape(flip["id"]), *words, *numbers, new["raised_by"] or "")
        stdout.print(table)
    rows = differing(found)
    if rows:
        table = Table("differs", "before", "after", box=None)
        for row in rows:
            table.add_row(*map(escape, row))
        stdout.print(table)


def write_page(found: dict[str, Any], path: Path) -> None:
    """The same as one HTML file that holds everything it needs and admits no script, whole or not at all."""
    template = resources.files("covary.runs.report").joinpath("compare.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = percent
    text = environment.from_string(template).render(
        found=found, statements=statements(found), differing=differing(found)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text.encode("utf-8", "replace"))

"""Every figure of the documentation, from the records: `covary-bench docs` puts it between its marks in a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from covary.errors import CovaryError
from covary_bench.case import modality
from covary_bench.columns import read_packed
from covary_bench.docs import (
    assistants,
    cleaning,
    hard,
    images,
    networks,
    newcomer,
    pile,
    production,
    published,
    sampled,
    studies,
    texts,
    ways,
    why,
)  # fmt: skip
from covary_bench.records import read_record
from covary_bench.speed import page as speed
from covary_bench.table import SCALES, TABLES, table
from covary_bench.texts import page as language

NOT_MEASURED = "Not measured yet.\n"
# Cells of a table at `small` that were measured again beside it, on victims trained anew.
ANEW = "anew"
Make = Callable[[Any], str]

# page -> mark in it -> record, and how the record is told; several records joined by + are given by name
PAGES: Mapping[str, Mapping[str, tuple[str, Make]]] = {
    "benchmark.md": {
        "vision detectors": ("vision-small", images.detectors),
        "vision cells": ("vision-small", images.cells),
        "vision ways": ("vision-small", ways.ways),
        "vision ways by cell": ("vision-small", ways.ways_by_cell),
        "vision anew": ("vision-anew", ways.ways),
        "vision anew by cell": ("vision-anew", ways.ways_by_cell),
        "vision deals": ("vision-small-deals", images.deals),
        "vision deals of cells": ("vision-small-deals", images.deals_of_cells),
        "vision published": (
            "vision-small",
            images.compared(*images.PUBLISHED, "class-max cosine", of=images.has("published (Class CCC)")),
        ),
        "networks aims": ("networks-small", networks.aims),
        "networks losses": ("networks-small", networks.losses),
        "networks means": ("networks-small", networks.means),
        "networks cells": ("networks-small", networks.cells),
        "published method": ("+".join(published.RECORDS), published.method),
        "hard": ("hard-small", hard.hard),
        "hard ways": ("hard-small", hard.hard_ways),
        "hard anew": ("hard-anew", hard.hard_ways),
        "hard cards": ("hard-small", hard.hard_cards),
        "sensitivity": ("sensitivity-small", images.sensitivity),
        "adversarial": (
            "adversarial-small",
            images.compared("confidence part", "Mahalanobis", "Mahalanobis by layer", "max softmax"),
        ),
        "adversarial ways": (
            "adversarial-small",
            ways.ways_beside("pile on features", "pile on gradients", "Mahalanobis"),
        ),
        "ood ways": ("ood-small", ways.ways_beside("pile on features", "energy")),
        "ood": ("ood-small", images.compared("energy", "KNN on features", "Mahalanobis by layer")),
        "ood distances": ("ood-small", images.distances),
        "ood aims": ("ood-small", networks.distances),
        "mechanisms": ("mechanisms-small", images.mechanisms),
        "adaptive attempts": ("adaptive-small", images.attempts),
        "adaptive ways": (
            "adaptive-small",
            ways.ways_beside(*images.CONTROLS[:-1]),
        ),
        "adaptive anew": ("adaptive-anew", ways.ways_beside(*images.CONTROLS[:-1])),
        "adaptive detectors": ("adaptive-small", images.hidden),
    },
    "comparison.md": {
        "published figures": ("+".join(published.RECORDS), published.compared),
        "peers": ("peers", published.peers),
    },
    "why-not-simply.md": {mark: ("+".join(why.RECORDS), made) for mark, made in why.MARKS.items()},
    "exports.md": {"evidence parts": ("vision-small", images.parts)},
    "install.md": {"newcomer": ("newcomer", newcomer.steps)},
    "language.md": {
        "language groups": ("language-tuning", texts.groups),
        "language layers": ("language-tuning", texts.layers),
        "language cost": ("language-cost", texts.cost),
        "language scan": ("language-scan", texts.scan),
        "language guard": ("guard", texts.guard),
        "jailbreaks, more": ("language-jailbreaks", assistants.jailbreaks("more")),
        "jailbreaks, mixed": ("language-jailbreaks", assistants.jailbreaks("mixed")),
        "jailbreaks, instructions": ("language-jailbreaks", assistants.jailbreaks("instructions")),
        "jailbreaks flagged": ("language-jailbreaks", assistants.rates),
        "assistants": ("language-backdoors", assistants.backdoors),
        "assistant's cost": ("language-jailbreaks", assistants.cost),
        **{mark: ("language-small", made) for mark, made in language.MARKS.items()},
    },
    "pile.md": {
        "pile sizes": ("pile-sizes", pile.sizes),
        "pile alarms": ("pile-sizes", pile.alarms),
        "pile validity": ("pile-validity", pile.validity),
        "pile crossed": ("pile-validity", pile.crossed),
        "pile texts": ("pile-texts", pile.texts),
        "pile attackers": ("pile-attackers", pile.attackers),
        "pile salted": ("pile-attackers", pile.salted),
    },
    "production.md": {
        "load": ("production-load", production.load),
        "attacks": ("production-attacks", production.attacks),
        "bad requests": ("production-bad-requests", production.bad_requests),
    },
    "results.md": {
        "held-out": ("core", lambda record: studies.core(record, "held-out")),
        "tuning": ("core", lambda record: studies.core(record, "tuning")),
        "rates": ("calibrated", lambda record: studies.rates(record["rates"])),
    },
    "threat-model.md": {
        "false alarms": ("false-alarms", studies.false_alarms),
        "harm": ("production-harm", production.harm),
    },
    "training.md": {
        "clean": ("clean", cleaning.removed),
        "clean retrained": ("clean", cleaning.retrained),
        "clean trusted": ("clean", cleaning.trusted),
    },
    "trusted-data.md": {
        "deals of trusted inputs": ("deals-of-trusted", lambda record: studies.deals_of_trusted(record["500"])),
        "sizes": ("calibrated", lambda record: studies.sizes(record["trusted"])),
    },
    "sampling.md": {
        "sampled": ("sampled-small", sampled.sampled),
        "sampled options": ("sampled-options", sampled.options),
    },
    "speed.md": {
        "speed": ("speed-*", speed.markdown),
        "scales": ("speed-*", speed.scales),
        "curve": ("speed-*", speed.curve),
        "metrics": ("metrics", studies.preconditioners),
        "thorough": ("pile-cost", pile.cost),
    },
}


def read(results: Path, name: str) -> dict[str, Any] | None:
    """The record of that name with its means, or None where there is none; `*` stands for a machine's name.

    Of several names joined by + all records by name.
    """
    if "+" in name:
        return {one: read(results, one) for one in name.split("+")}
    path = next(iter(sorted(results.glob(f"{name}.json"))), None)
    return None if path is None else _read(path, path.stat().st_mtime_ns)


@cache
def _read(path: Path, written: int) -> dict[str, Any]:
    what, _, scale = path.stem.partition("-")
    if what in TABLES and scale in (*SCALES, ANEW):
        return complete(read_record(path))
    return read_packed(path)


def complete(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record read from its file, with the means over its cells."""
    about = next((cell["about"] for cell in record["cells"].values() if "about" in cell), {})
    found = table(record["table"], record["scale"])
    return modality(found).record(found, record["cells"], about)


def made(results: Path) -> Iterator[tuple[str, str, str]]:
    """(page, mark, text) of everything there is to fill in."""
    for page, marks in PAGES.items():
        for mark, (name, make) in marks.items():
            record = read(results, name)
            yield page, mark, (NOT_MEASURED if record is None else make(record) or NOT_MEASURED)


def fill(text: str, mark: str, new: str) -> str:
    """A page with `new` between the marks of that name.

    Raises:
        CovaryError: a page without those marks.
    """
    begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise CovaryError(f"no place for {mark!r}", f"{begin.strip()} and {end} in the page")
    return f"{before}{begin}\n{new}\n{end}{after}"


def pages(results: Path, docs: Path) -> dict[str, tuple[str, str]]:
    """Page -> its text as it is, and as the records have it."""
    found: dict[str, tuple[str, str]] = {}
    for page, mark, new in made(results):
        now, expected = found.get(page, ((docs / page).read_text("utf-8"),) * 2)
        found[page] = now, fill(expected, mark, new)
    return found


def tables(results: Path) -> dict[Path, str]:
    """Every Markdown table beside a record, as the record has it."""
    found: dict[Path, str] = {}
    for name in sorted({f"{what}-{scale}" for what in TABLES for scale in SCALES}):
        if (record := read(results, name)) is not None:
            found[results / f"{name}.md"] = modality(table(*name.split("-"))).markdown(record)
    return found


def differences(results: Path, docs: Path) -> list[str]:
    """Pages and tables that do not agree with the records."""
    found = [page for page, (now, expected) in pages(results, docs).items() if now != expected]
    # Tables beside records are made from them and not kept; those that are there have to agree.
    return found + [path.name for path, text in tables(results).items()
                    if path.is_file() and path.read_text("utf-8") != text]  # fmt: skip


def write(results: Path, docs: Path, *, plots: bool = True) -> list[str]:
    """Fills every page, writes the tables beside the records, draws the plots; returns what changed."""
    changed = differences(results, docs)
    for page, (_, expected) in pages(results, docs).items():
        (docs / page).write_text(expected, encoding="utf-8", newline="\n")
    for path, text in tables(results).items():
        path.write_text(text, encoding="utf-8", newline="\n")
    if plots:
        calibrated, costs, along = (read(results, name) for name in ("calibrated", "speed-*", "sampled-small"))
        if calibrated:
            studies.plot(calibrated, docs)
        if of_sizes := read(results, "pile-sizes"):
            pile.plot(of_sizes, docs / "pile-sizes.svg")
        compared = {name: read(results, name) for name in why.RECORDS}
        if compared["vision-small"]:
            why.chart(compared, docs / "why-not-simply.svg")
        if costs and "first_order_speedup" in costs:
            speed.chart(costs, along or {}, docs / "speed.svg")
    return changed

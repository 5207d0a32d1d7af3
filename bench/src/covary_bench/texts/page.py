"""The record as files: JSON, and Markdown with its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from covary_bench.records import write_record
from covary_bench.scoring import EVERY_WAY, OURS
from covary_bench.texts.record import OTHERS, keys

Record = Mapping[str, Any]


def write_outputs(record: Record, out: Path) -> list[Path]:
    """Writes `language-SCALE.json` and `.md` into a folder, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    name = f"{record['table']}-{record['scale']}"
    write_record(out / f"{name}.json", {key: record[key] for key in ("table", "scale", "title")}, record["cells"])
    part = out / f"{name}.md.part"
    part.write_text(as_markdown(record), encoding="utf-8", newline="\n")
    part.rename(out / f"{name}.md")
    return [out / f"{name}.json", out / f"{name}.md"]


def main_figures(record: Record) -> dict[str, Any]:
    """Mean AUROC of ours by kind of case."""
    return {key: {"mean_auroc": record[key]["mean"], "interval": record[key]["interval"]} for key in keys(record)}


def as_markdown(record: Record) -> str:
    """All tables, each under its heading."""
    parts = [
        (f"{record['title']}, scale {record['scale']}", detectors(record)),
        ("Cells", cells(record)), ("Benign shifts", benign(record)), ("Two triggers", triggers(record)),
        ("What attackers paid", paid(record)), ("Missing", missing(record)),
    ]  # fmt: skip
    return "\n".join(f"## {head}\n\n{text}" for head, text in parts if text)


def detectors(record: Record) -> str:
    """One line a detector: mean AUROC and recall at 1 % false positives by kind of case; the best in bold.

    `of 1` says that a detector has been run on so many of the cells only.
    """
    found = keys(record)
    if not found:
        return ""
    names = _names(record[key]["baselines"] for key in found)
    rows = []
    for name in names:
        row = [name]
        for key in found:
            own = _means(record, key, name)
            best = max(_means(record, key, other)["mean"] for other in names if _means(record, key, other))
            fewer = f", of {own['n_cells']}" if own and own["n_cells"] < len(record[key]["cells"]) else ""
            row.append("" if not own else _best(own["mean"], best) + f" ({own['recall_at_1pct_fpr']:.2f}{fewer})")
        rows.append([*row, _milliseconds(record, found, name)])
    inside = [f"{record[key]['interval'][0]:.4f} to {record[key]['interval'][1]:.4f}" for key in found]
    alarms = [f"{100 * record[key]['false_alarms']:.2f} %" for key in found]
    defaults = ["today's" if record[key]["today"] else "earlier" for key in found]
    rows[1:1] = [["*95 % interval of ours*", *inside, ""], ["*its false alarms, 1 % asked for*", *alarms, ""]]
    rows.insert(0, ["*defaults of covary*", *defaults, ""])
    heads = [f"{key} ({len(record[key]['cells'])})" for key in found]
    return table(["AUROC (recall at 1 % FPR)", *heads, "ms a query"], rows)


def _names(every: Iterable[Mapping[str, Any]]) -> list[str]:
    there = {name for baselines in every for name in baselines}
    return [OURS, *(name for name in OTHERS if name in there)]


def _means(record: Record, key: str, name: str) -> Mapping[str, Any]:
    return record[key] if name == OURS else record[key]["baselines"].get(name, {})


def _milliseconds(record: Record, found: Iterable[str], name: str) -> str:
    known = [own["seconds_a_query"] for key in found if (own := _means(record, key, name))]
    return f"{1000 * sum(known) / len(known):.1f}" if known else ""


def _best(value: float, best: float) -> str:
    return f"**{value:.4f}**" if value >= best - 5e-5 else f"{value:.4f}"


def cells(record: Record) -> str:
    """One line a cell: its victim, our figures and the best baseline."""
    rows = []
    for name, cell in record["cells"].items():
        if "missing" in cell:
            continue
        victim, mine = cell["victim"], cell["detectors"][OURS]
        others = {other: own["auroc"] for other, own in cell["detectors"].items() if other not in EVERY_WAY}
        best = max(others, key=lambda other: others[other], default="")
        low, high = mine["interval"]
        accepted = {True: "accepted", False: "not accepted"}.get(victim.get("accepted"), "")
        earlier = "" if cell.get("judged") else "earlier defaults"
        rows.append([
            name, f"{mine['n_clean']:,} / {mine['n_anomalous']:,}", _percent(victim.get("poison")),
            _percent(victim.get("clean_accuracy")), _percent(victim.get("attack_success")),
            f"{mine['auroc']:.4f} ({low:.4f} to {high:.4f})", f"{mine['recall_at_1pct_fpr']:.3f}",
            _percent(mine["calibrated"]["1%"]["recall"]), _percent(mine["calibrated"]["1%"]["false_alarms"]),
            f"{best} {others[best]:.4f}" if best else "",
            ", ".join(filter(None, [accepted, *victim.get("marks", []), earlier])),
        ])  # fmt: skip
    heads = ["cell", "clean / triggered", "poison", "accuracy", "attack success", "AUROC (95 %)", "recall at 1 % FPR",
             "caught at 1 % asked for", "false alarms", "best baseline", "mark"]  # fmt: skip
    return table(heads, rows) if rows else ""


def benign(record: Record) -> str:
    """How often benign shifts are flagged by ours and by baselines, at 1 and 5 % asked for; intervals of ours alone."""
    found = record["benign"]
    if not found:
        return ""
    names = _names(own["baselines"] for own in found.values())
    every = [(own, name) for own in found.values() for name in ("1%", "5%")]
    rows = [
        [name, *("" if not (rates := own if name == OURS else own["baselines"].get(name)) else
                 f"{100 * rates[at]['rate']:.1f} %" for own, at in every)]
        for name in names
    ]  # fmt: skip
    inside = [f"{100 * own[at]['interval'][0]:.1f} to {100 * own[at]['interval'][1]:.1f} %" for own, at in every]
    rows.insert(1, ["*95 % interval of ours*", *inside])
    rows.insert(0, ["*defaults of covary*", *("today's" if own["today"] else "earlier" for own, _ in every)])
    heads = [f"{kind} ({own['n']:,}), {at} asked for" for kind, own in found.items() for at in ("1 %", "5 %")]
    return table(["flagged", *heads], rows)


def triggers(record: Record) -> str:
    """Do clusters of what was flagged find the triggers, among triggered inputs alone and in the whole flagged pile?"""
    ways = {"mechanisms": "alone", "mechanisms_together": "together"}
    every = [(name, way, own, pile) for way in ways for name, own in record[way].items()
             for pile in ("triggered", "all_flagged")]  # fmt: skip
    rows = [
        [name, f"{ways[way]}{'' if record['cells'][name].get('judged') else ', earlier defaults'}",
         pile.replace("_", " "), f"{own[pile]['n']:,}", str(own[pile]["kinds"]), str(own[pile]["clusters"]),
         _number(own[pile]["ari"])]
        for name, way, own, pile in every
    ]  # fmt: skip
    return table(["cell", "flagged", "pile", "n", "kinds in it", "clusters found", "ARI"], rows) if rows else ""


def paid(record: Record) -> str:
    """Every attempt of the attackers who train against detectors, whatever keys it tells."""
    rows, heads = [], ["cell"]
    for name, cell in record["cells"].items():
        for attempt in cell.get("victim", {}).get("attempts", []):
            if "strength" not in attempt:  # a stage of training, nobody hides there
                continue
            flat = _flat(attempt)
            heads += [key for key in flat if key not in heads]
            rows.append({"cell": name, **{key: _number(value) for key, value in flat.items()}})
    return table(heads, [[row.get(head, "") for head in heads] for row in rows]) if rows else ""


def _flat(record: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in record.items():
        name = f"{before} {key}".strip().replace("_", " ")
        found |= _flat(value, name) if isinstance(value, Mapping) else {name: value}
    return found


def missing(record: Record) -> str:
    """Cells without figures, and why."""
    return "".join(f"- {name}: {why}\n" for name, why in record["missing"].items())


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


# mark in a page -> what goes there
MARKS: dict[str, Callable[[Record], str]] = {
    "language detectors": detectors,
    "language cells": cells,
    "language benign": benign,
    "language triggers": triggers,
    "language attackers": paid,
}

"""What others published beside what we measured, from `tables/published.toml` and the records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from covary_bench.docs.images import AUROC, markdown, number
from covary_bench.docs.networks import mean_of, measured
from covary_bench.docs.ways import scored_together
from covary_bench.scoring import BOTH, OURS, THOROUGH, TOGETHER
from covary_bench.summary import value
from covary_bench.table import read

Records = Mapping[str, Mapping[str, Any] | None]
RECORDS = ("vision-small", "networks-small", "ood-small")
NEAR = 0.02  # of a published figure


def ours(records: Records, entry: Mapping[str, Any]) -> float | None:
    """Mean masked AUROC of a detector over the nearest cells; None where one of them was not measured."""
    record = records[entry["record"]] or {"cells": {}}
    found = [value(record["cells"].get(cell, {}), entry["detector"], AUROC) for cell in entry["cells"]]
    known = [v for v in found if v is not None]
    return float(np.mean(known)) if len(known) == len(found) else None


def compared(records: Records) -> str:
    """One line a published figure: where it stands, our nearest cells, the difference, a reason where it is large."""
    if all(record is None for record in records.values()):
        return ""
    content = read("published")
    rows = []
    for entry in content["figures"]:
        mine, theirs = ours(records, entry), entry["figure"] or None
        apart = None if mine is None or theirs is None else mine - theirs
        near = "" if apart is None else "yes" if abs(apart) <= NEAR else "no"
        reason = "" if near == "yes" else content["reasons"][entry["reason"]]
        whats, rest = zip(*(cell.split("/", 1) for cell in entry["cells"]), strict=True)
        cells = f"{', '.join(whats)} / {rest[0]}"
        rows.append([
            entry["detector"], entry["on"], number(theirs) or "not found", entry["source"], cells,
            number(mine) or "not measured", "" if apart is None else f"{apart:+.3f}", near, reason,
        ])  # fmt: skip
    heads = ["detector", "published on", "published", "source", "nearest cells", "ours", "difference",
             f"within {NEAR}", "why"]  # fmt: skip
    sources = "".join(f"- {name}: {text}.\n" for name, text in content["sources"].items())
    return markdown(heads, rows) + "\n" + sources


def method(records: Records) -> str:
    """The published method's mean rating at the best threshold beside ours, on both tables of backdoors."""
    known = {name: counted for name, record in records.items() if record is not None and name != "ood-small"
             if (counted := scored_together(record) if name == "vision-small" else measured(record))}  # fmt: skip
    if not known:
        return ""
    content = read("published")["method"]
    rows = [
        [f"published method, {content['source']}", content["over"], number(content["figure"], 2)],
        ["next best of that paper", content["over"], number(content["next_best"], 2)],
    ]
    for name, cells in known.items():
        for way in (BOTH, TOGETHER, THOROUGH, OURS):
            over = f"table `{name.removesuffix('-small')}`, {len(cells)} cells"
            rows.append([way, over, number(mean_of(cells, way, "der_best"))])
    return markdown(["who", "over", "mean DER best"], rows)


def peers(record: Mapping[str, Any]) -> str:
    """One line a detector, one pair of figures a cell: pytorch-ood's own, then ours."""
    cells = {name.split(":", 1)[1]: own for name, own in record["cells"].items()}
    detectors = list(dict.fromkeys(name for own in cells.values() for name in own))
    rows = []
    for name in detectors:
        pairs = [(own[name]["pytorch-ood"], own[name]["ours"]) for own in cells.values()]
        apart = [abs(a - b) for a, b in pairs if b is not None]
        told = [f"{number(a, 4)}, {number(b, 4) or 'none'}" for a, b in pairs]
        rows.append([name, *told, number(max(apart), 4) if apart else ""])
    return markdown([f"pytorch-ood {record['pytorch-ood']}, ours", *cells, "largest difference"], rows)

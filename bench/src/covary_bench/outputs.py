"""A table's record as files: JSON, CSV, Markdown and one HTML page with its plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covary_bench.page import cells_of_ours, page
from covary_bench.records import write_record
from covary_bench.scoring import EVERY_WAY, OURS
from covary_bench.summary import mark_of

COLUMNS = ("cell", "detector", "view", "auroc", "auroc_low", "auroc_high", "tpr_at_1", "tpr_at_5", "tpr", "fpr",
           "der_calibrated", "der_best", "n_clean", "n_anomalous", "seconds_a_query", "mark")  # fmt: skip
VIEWS = ("masked", "same_class", "end_to_end")


def write_outputs(record: Mapping[str, Any], out: Path) -> list[Path]:
    """Writes `TABLE-SCALE.json`, `.csv`, `.md` and `.html` into a folder, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    name = f"{record['table']}-{record['scale']}"
    json_path = out / f"{name}.json"
    main = {key: value for key, value in record.items() if key.startswith("mean_")}
    write_record(json_path, {key: record[key] for key in ("table", "scale", "title", "fpr")} | main, record["cells"])
    written = [json_path]
    for suffix, text in (("csv", as_csv(record)), ("md", as_markdown(record)), ("html", page(record))):
        part = out / f"{name}.{suffix}.part"
        part.write_text(text, encoding="utf-8", newline="\n")
        part.rename(out / f"{name}.{suffix}")
        written.append(out / f"{name}.{suffix}")
    return written


def as_csv(record: Mapping[str, Any]) -> str:
    """One line for every cell, detector and view of the inputs; a missing cell has one line and its mark."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for name, cell in record["cells"].items():
        if "missing" in cell:
            writer.writerow({"cell": name, "mark": f"missing: {cell['missing']}"})
        for detector, found in cell.get("detectors", {}).items():
            for view in VIEWS:
                if not found[view]:
                    continue
                low, high = found[view].get("auroc_interval") or (None, None)
                writer.writerow({
                    **found[view], "cell": name, "detector": detector, "view": view, "auroc_low": low,
                    "auroc_high": high, "seconds_a_query": found["seconds_a_query"], "mark": mark_of(cell),
                })  # fmt: skip
    return file.getvalue()


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def as_markdown(record: Mapping[str, Any]) -> str:
    """Two tables: detectors by their means over held-out cells, and our figures cell by cell."""
    lines = [f"## {record['title']}, scale {record['scale']}", "", _sentence(record), ""]
    heads = ["detector", "DER calibrated", "DER best", "AUROC masked", "AUROC all", "TPR at 1 %", "TPR at 5 %",
             "cells", "ms a query", "ours ahead / level / behind"]  # fmt: skip
    lines += ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    rows = [(f"**{OURS}**", record, "")]
    rows += [(name, own, " / ".join(map(str, record["wins"][name]))) for name, own in record["baselines"].items()]
    for name, own, against in rows:
        figures = [_mean(record, own, f"mean_{key}") for key in
                   ("der_calibrated", "der_best", "auroc_masked", "auroc_all", "tpr_at_1", "tpr_at_5")]  # fmt: skip
        seconds = own.get("seconds_a_query")
        milliseconds = "" if seconds is None else f"{1000 * seconds:.1f}"
        counted = own.get("cells")
        n = counted if isinstance(counted, int) else cells_of_ours(record)
        lines.append("| " + " | ".join([name, *figures, str(n), milliseconds, against]) + " |")
    heads = ["cell", "AUROC masked (95 %)", "same class", "all", "TPR at 1 %", "DER calibrated", "DER best",
             "rating, of at most", "best baseline", "mark"]  # fmt: skip
    lines += ["", "| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for name, cell in record["cells"].items():
        lines.append("| " + " | ".join(_row(name, cell)) + " |")
    return "\n".join(lines) + "\n"


def _mean(record: Mapping[str, Any], own: Mapping[str, Any], figure: str) -> str:
    """A mean; where cells are marked, also the mean over the others."""
    plain = own.get("measured", {}).get(figure)
    return _number(own[figure]) + (f" ({plain:.3f})" if record["marked"] and plain is not None else "")


def _sentence(record: Mapping[str, Any]) -> str:
    measured = sum("detectors" in cell for cell in record["cells"].values())
    text = (
        f"{measured} of {len(record['cells'])} cells measured; calibrated at a false-alarm rate of {record['fpr']:g}."
    )
    if record["marked"]:
        text += " Counted 0.5: " + ", ".join(f"{name} ({mark})" for name, mark in record["marked"].items()) + "."
        text += " In brackets: means over the other cells alone."
    if record["tuning"]["cells"]:
        text += " Left out of the means, since settings were chosen on them: " + ", ".join(record["tuning"]["cells"])
        text += "."
    for distance, own in record.get("by_distance", {}).items():
        best = max((name for name in own if name not in ("cells", OURS)), key=lambda name: own[name], default="")
        others = f"; best of the others: {best} {own[best]:.3f}" if best else ""
        text += f" Mean masked AUROC over the {own['cells']} {distance} sets: {own[OURS]:.3f}{others}."
    return f"{text} {_behind(record)}"


def _behind(record: Mapping[str, Any]) -> str:
    """Which baselines are ahead of ours on the mean over the cells they were run on."""
    sentences = []
    for figure, words in (("mean_der_calibrated", "calibrated DER"), ("mean_auroc_masked", "masked AUROC")):
        ahead = []
        for name, own in record["baselines"].items():
            theirs = own.get("on_its_cells", own)[figure]
            mine = own.get("ours_on_its_cells", record)[figure]
            if theirs is not None and mine is not None and theirs > mine:
                ahead.append(f"{name} ({theirs:.3f} against {mine:.3f})")
        sentences.append(f"Ahead of {OURS} on the mean {words}: {', '.join(ahead) or 'none'}.")
    return " ".join(sentences)


def _row(name: str, cell: Mapping[str, Any]) -> list[str]:
    if "missing" in cell:
        return [name, *[""] * 8, f"missing: {cell['missing']}".replace("|", "/")]
    ours = cell["detectors"][OURS]
    masked, same, rating = ours["masked"], ours["same_class"], ours["der"]
    low, high = masked["auroc_interval"] or (None, None)
    auroc = _number(masked["auroc"], 4) + ("" if low is None else f" ({low:.3f} to {high:.3f})")
    others = {other: found["masked"]["auroc"] for other, found in cell["detectors"].items() if other not in EVERY_WAY}
    others = {other: value for other, value in others.items() if value is not None}
    best = max(others, key=lambda other: others[other]) if others else ""
    return [
        name, auroc, "" if same is None else _number(same["auroc"]), _number(ours["end_to_end"]["auroc"]),
        _number(masked["tpr_at_1"]), _number(masked["der_calibrated"]), _number(masked["der_best"]),
        "" if rating is None else f"{rating['calibrated']:.3f} / {rating['ceiling']:.3f}",
        f"{best} {others[best]:.3f}" if best else "", mark_of(cell) or _marks(cell),
    ]  # fmt: skip


def _marks(cell: Mapping[str, Any]) -> str:
    return ", ".join((cell.get("victim") or {}).get("marks", []))

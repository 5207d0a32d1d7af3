"""The front page of the comparison: every figure on it is in the records, and rows say what their cells say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from covary_bench import docs
from covary_bench.docs import why
from covary_bench.scoring import BOTH, OURS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "why-not-simply.md").read_text("utf-8")


@pytest.fixture(scope="module")
def records():
    return {name: docs.read(ROOT / "bench" / "results", name) for name in why.RECORDS}


def rows(mark: str) -> list[list[str]]:
    """Cells of the table between marks, without its head."""
    between = PAGE.split(f"<!-- {mark} -->")[1].split(f"<!-- end of {mark} -->")[0]
    lines = [line.strip("|").split("|") for line in between.splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def test_no_figure_stands_outside_the_tables_of_the_records():
    outside = re.sub(r"<!-- (\w+) -->.*?<!-- end of \1 -->", "", PAGE, flags=re.S)
    assert re.findall(r"\d[\d.,]*", outside) == ["1", "5", "1"]  # rates that are asked for, in words of the columns


def test_every_figure_of_a_detector_is_the_mean_of_its_cells_in_the_file():
    stored = json.loads((ROOT / "bench" / "results" / "vision-small.json").read_text("utf-8"))
    place = {name: i for i, name in enumerate(stored["columns"])}
    tuned = docs.read(ROOT / "bench" / "results", "vision-small")["tuning"]["cells"]  # type: ignore[index]
    known = {name: cell for name, cell in stored["cells"].items() if "missing" not in cell["facts"]}
    scale = [10**digits for digits in stored["digits"]]
    cells = {name: {stored["detectors"][i]: [value and value / by for value, by in zip(values, scale, strict=False)]
                    for i, *values in cell["detectors"]} for name, cell in known.items()
             if name not in tuned and cell["facts"]["victim"].get("attack_success", 1) >= 0.8}  # fmt: skip
    names = {why.label(name): name for name in why.ASKED}
    found = rows("rivals")
    assert len(found) >= 10
    for row in found:
        name = names[row[0]]
        own = [cell for cell in cells.values() if name in cell]
        caught = [one[name][place["tpr_at_1"]] for one in own]
        alarms = [one[name][place["fpr"]] for one in own]
        costs = [one[name][place["seconds"]] / one["max softmax"][place["seconds"]] for one in own]
        beside = np.mean([one[OURS][place["tpr_at_1"]] for one in own])
        expected = [f"{np.mean(caught):.3f} ({beside:.3f}, {len(own)})", f"{np.median(costs):.1f}",
                    f"{np.mean(alarms):.3f} ({max(alarms):.3f})"]  # fmt: skip
        assert [*row[3:5], row[5].removeprefix("**not**: ")] == expected, name
        assert row[5].startswith("**not**") == (np.mean(alarms) > 0.05), name


def test_what_is_seen_and_missed_is_what_the_means_say(records):
    by_kind = why.kinds(records)
    assert {"patch", "warp", "foreign", "adversarial", "hiders (gradients)"} <= set(by_kind)
    names = {why.label(name): name for name in why.ASKED}
    for row in rows("rivals"):
        name = names[row[0]]
        means = {}
        for word, cells in by_kind.items():
            found = [v for cell in cells.values() if (v := why.value(cell, name, why.AUROC)) is not None]
            means[word] = np.mean(found) if len(found) >= len(cells) / 2 else None
        sees, misses = (
            spelt.replace("every trigger", ", ".join(why.VISION.values())).split(", ")
            for spelt in (row[1], row[2].split("; few figures")[0])
        )
        for word, value in means.items():
            assert (word in sees) == (value is not None and value >= why.SEES), (name, word)
            assert (word in misses) == (value is not None and value < why.MISSES), (name, word)


def test_losses_are_losses_and_none_is_left_out(records):
    told = {row[0]: row for row in rows("losses")}
    for word, cells in why.kinds(records).items():
        scanned = {n: c for n, c in cells.items() if BOTH in c["detectors"]}
        ours, kept = (BOTH, scanned) if len(scanned) >= len(cells) / 2 else (OURS, cells)
        others = {n for c in kept.values() for n in c["detectors"]} - {*why.EVERY_WAY}
        full = [n for n in others if all(why.value(c, n, why.AUROC) is not None for c in kept.values())]
        mine, best = why.mean(kept, ours, why.AUROC), max(why.mean(kept, n, why.AUROC) or 0 for n in full)
        assert mine is not None
        assert (word in told) == (best > mine + why.LOST), word
        if word in told:
            assert told[word][2] == f"{mine:.3f} ({'as scanned' if ours == BOTH else 'alone'})"
            assert told[word][3].endswith(f"{best:.3f}")


def test_the_first_page_leads_there_and_each_line_to_its_table():
    first = (ROOT / "docs" / "index.md").read_text("utf-8").split("| you want to")[0]
    assert "why-not-simply.md" in first
    lines = (ROOT / "docs" / "benchmark.md").read_text("utf-8").splitlines()
    heads = {line.lstrip("# ").lower().replace(" ", "-") for line in lines if line.startswith("#")}
    for link in why.LINKS.values():
        assert link.split("#")[1] in heads
        assert f"({link})" in PAGE

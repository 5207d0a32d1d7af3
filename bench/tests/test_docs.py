"""Every figure of the documentation is its record's; records are small, and absent ones are told."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from covary.errors import CovaryError
from covary_bench import docs
from covary_bench.docs import hard, ways
from covary_bench.scoring import DEFAULT_WAYS, EVERY_WAY, LOOKING

ROOT = Path(__file__).parents[2]
RESULTS, PAGES = ROOT / "bench" / "results", ROOT / "docs"


@pytest.fixture(scope="module")
def filled():
    """(page, mark) -> what the records say."""
    return {(page, mark): text for page, mark, text in docs.made(RESULTS)}


def test_pages_and_tables_agree_with_the_records():
    assert docs.differences(RESULTS, PAGES) == []


def test_a_figure_changed_by_hand_is_found_and_put_right(tmp_path, monkeypatch):
    page = "trusted-data.md"
    monkeypatch.setattr(docs, "PAGES", {page: docs.PAGES[page]})
    monkeypatch.setattr(docs, "TABLES", ())
    shutil.copy(PAGES / page, tmp_path / page)
    text = (tmp_path / "trusted-data.md").read_text("utf-8")
    (tmp_path / "trusted-data.md").write_text(re.sub(r"0\.999 / 0\.98", "0.999 / 0.99", text), encoding="utf-8")
    assert docs.differences(RESULTS, tmp_path) == ["trusted-data.md"]
    assert docs.write(RESULTS, tmp_path, plots=False) == ["trusted-data.md"]
    assert (tmp_path / "trusted-data.md").read_text("utf-8") == text


def test_tables_without_records_say_so(tmp_path):
    assert {text for _, _, text in docs.made(tmp_path)} == {docs.NOT_MEASURED}


def test_every_mark_of_a_page_is_filled(filled):
    for page in docs.PAGES:
        found = re.findall(r"<!-- end of (.+?) -->", (PAGES / page).read_text("utf-8"))
        assert found and set(found) == {mark for own, mark in filled if own == page}  # noqa: PT018
    with pytest.raises(CovaryError, match="no place for 'b'"):
        docs.fill("<!-- a -->\n<!-- end of a -->\n", "b", "")


def test_results_are_compact():
    sizes = {path.name: path.stat().st_size for path in RESULTS.glob("*.json")}  # all else is made from these
    assert sum(sizes.values()) <= 500_000
    assert max(sizes.values()) <= 200_000


# Pages of measurements: figures stand in tables.
MEASURED = ["benchmark.md", "results.md", "victims.md", "why-not-simply.md"]


@pytest.mark.parametrize("page", MEASURED)
def test_running_paragraphs_have_no_measured_figures(page):
    text = re.sub(r"```.*?```|^\|.*?$|^    .*?$|<!--.*?-->", "", (PAGES / page).read_text("utf-8"), flags=re.M | re.S)
    found = [figure for figure in re.findall(r"(?<![\w.])0?\.\d{2,}", text) if figure not in (".975", "0.5")]
    assert not found


@pytest.mark.parametrize("page", [*MEASURED, "speed.md", "sampling.md", "language.md"])
def test_sentences_are_short(page):
    text = re.sub(r"```.*?```|^\|.*?$|^    .*?$|<!--.*?-->", "", (PAGES / page).read_text("utf-8"), flags=re.M | re.S)
    for part in re.split(r"\n\s*\n|^\s*- |^#+ .*$", text, flags=re.M):
        for sentence in re.split(r"(?<=[.:;?!])\s+", " ".join(part.split())):
            assert len(sentence.split()) < 30, sentence


def masked(auroc, caught=1.0):
    return {"masked": {"auroc": auroc, "tpr_at_1": caught, "der_calibrated": 0.9, "der_right": 0.9, "der_best": 1.0,
                       "fpr": 0.05}}  # fmt: skip


def test_ways_stand_side_by_side_with_intervals_over_cells():
    cells = {
        f"a/x/{k}": {"victim": {}, "detectors": {name: masked(0.9 + k / 100 + i / 1000)
                                                 for i, name in enumerate((*DEFAULT_WAYS, "survival", "energy"))}}
        for k in range(3)
    }  # fmt: skip
    cells["b/x/0"] = {"victim": {}, "detectors": {DEFAULT_WAYS[0]: masked(0.1)}}
    record = {"cells": cells, "tuning": {"cells": ["a/x/2"]}}
    lines = ways.ways(record).splitlines()
    assert lines[2].startswith("| **covary alone** | 0.9050 (0.9000–0.9100) | 1.000 (1.000–1.000) | 0.900 |")
    assert lines[-1] == "Cells: a/x/0, a/x/1.", "tuning cells and cells without the ways are not in the means"
    beside = ways.ways_beside("survival")(record).splitlines()
    assert len(beside) == 5
    assert beside[-1].startswith("| a/x/2 (tuning) | 0.9200, 1.000 |")
    assert beside[-1].endswith("| 0.9240, 1.000 | energy 0.9250, 1.000 |")


def test_hard_inputs_are_told_by_way_and_by_card():
    rates = {name: {"hard": 0.1, "clean": 0.04} for name in EVERY_WAY}
    for k, name in enumerate(LOOKING):
        rates[name] |= {"hard": 0.2, "hard_without": 0.3 if k else 0.08, "clean_without": 0.06}
    cards = [{"reading": "shift-like", "members": 9, "hard": 8, "odd": 0},
             {"reading": "attack-like", "members": 50, "hard": 12, "odd": 38}]  # fmt: skip
    measured = {"false_positive_rates": rates, "n_hard": 20, "cards": cards, "cards_without": [],
                "detectors": {name: {} for name in EVERY_WAY}}  # fmt: skip
    record = {"cells": {"noise/x/0": measured, "blur/x/0": {"detectors": {}, "false_positive_rates": {}}}}
    told = hard.hard_ways(record).splitlines()
    assert told[2].startswith("| noise/x | 0.100 (0.040) | 0.100 (0.040) | 0.200 (0.040) | 0.080 (0.060) |")
    assert told[3].startswith("| kinds with at most 0.10 | 1 of 1 | 1 of 1 | 0 of 1 | 1 of 1 |")
    assert hard.hard_cards(record).splitlines()[2:] == [
        "| noise/x/0 | no card |  | shift-like | 8 of 20, among 9 | attack-like |"
    ]
    nothing = {"cells": {"blur/x/0": {"detectors": {}, "false_positive_rates": {}}}}
    assert not hard.hard_ways(nothing)
    assert not hard.hard_cards(nothing)

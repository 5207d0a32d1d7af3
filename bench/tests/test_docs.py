"""Every figure of the documentation is its record's; records are small, and absent ones are told."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from covary.errors import CovaryError
from covary_bench import docs

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
    sizes = {path.name: path.stat().st_size for path in RESULTS.iterdir()}
    assert sum(sizes.values()) <= 500_000
    assert max(sizes.values()) <= 200_000


# Pages of measurements: figures stand in tables.
@pytest.mark.parametrize("page", ["benchmark.md", "results.md", "victims.md"])
def test_running_paragraphs_have_no_measured_figures(page):
    text = re.sub(r"```.*?```|^\|.*?$|^    .*?$|<!--.*?-->", "", (PAGES / page).read_text("utf-8"), flags=re.M | re.S)
    found = [figure for figure in re.findall(r"(?<![\w.])0?\.\d{2,}", text) if figure not in (".975", "0.5")]
    assert not found


@pytest.mark.parametrize("page", ["benchmark.md", "results.md", "victims.md", "speed.md", "sampling.md", "language.md"])
def test_sentences_are_short(page):
    text = re.sub(r"```.*?```|^\|.*?$|^    .*?$|<!--.*?-->", "", (PAGES / page).read_text("utf-8"), flags=re.M | re.S)
    for part in re.split(r"\n\s*\n|^\s*- |^#+ .*$", text, flags=re.M):
        for sentence in re.split(r"(?<=[.:;?!])\s+", " ".join(part.split())):
            assert len(sentence.split()) < 30, sentence

"""The documentation is for someone in a hurry: no sentence of a page is longer than thirty words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "docs").rglob("*.ipynb"))
MOST = 30
FENCE = re.compile(r"(`{3,}|~{3,})")
ITEM = re.compile(r"(?:[-*+]|\d+\.)\s+")
# Tables, headings, pictures, HTML and boxes are no running text.
ASIDE = ("|", "#", "![", "<", "!!!", "???")
END = re.compile(r"(?<!e\.g\.)(?<!i\.e\.)(?<!vs\.)(?:(?<=[.!?])|(?<=[.!?][)\"”]))\s+")


def text_of(page: Path) -> str:
    """A page as Markdown; of a notebook the cells that are no code."""
    text = page.read_text("utf-8")
    if page.suffix != ".ipynb":
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def paragraphs(text: str) -> Iterator[str]:
    """Running text, a paragraph or an item of a list at a time."""
    fence, lines = None, []
    for raw in [*re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL).splitlines(), ""]:
        line, mark = raw.strip(), FENCE.match(raw.strip())
        item = ITEM.match(line)
        if fence or mark or item or not line or line.startswith(ASIDE):
            if lines:
                yield " ".join(lines)
            lines = []
        if fence:
            fence = None if line.startswith(fence) else fence
        elif mark:
            fence = mark[1]
        elif line and not line.startswith(ASIDE):
            lines.append(line[item.end() :] if item else line)


def sentences(text: str) -> list[str]:
    """The sentences of a page; what stands in backticks is one word, a link is its words."""
    plain = (re.sub(r"`[^`]*`", "code", one).replace("*", "") for one in paragraphs(text))
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", one) for one in plain)
    return [sentence for one in plain for sentence in END.split(one)]


def words(sentence: str) -> int:
    """What holds a letter or a digit; signs alone are no words."""
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_sentence_is_longer_than_thirty_words(page):
    long = [(words(one), one) for one in sentences(text_of(page)) if words(one) > MOST]
    assert not long, "split these, or put their figures into a table: " + "; ".join(f"{n} words: {s}" for n, s in long)


def test_sentences_are_told_apart():
    text = "\n".join([
        "# A heading. Two", "One `a. b` *two*", "three. Four [five six](a.md#b. c) (seven.) Eight, e.g. nine?", "",
        "```text", "no. words", "```", "| a. | b |", "- ten: Eleven", "  twelve", "1. thirteen = 14", "<!-- a. b -->",
    ])  # fmt: skip
    assert sentences(text) == [
        "One code two three.", "Four five six (seven.)", "Eight, e.g. nine?", "ten: Eleven twelve", "thirteen = 14",
    ]  # fmt: skip
    assert words("thirteen = 14 – x") == 3

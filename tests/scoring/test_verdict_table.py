"""Verdicts in Python's own forms: picked, looped over, as a table, in words and in HTML."""

from __future__ import annotations

import builtins
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from covary.errors import CovaryError
from covary.scoring.judge import Verdicts
from covary.scoring.verdict_table import WORST

N = 12


@pytest.fixture(scope="module")
def verdicts() -> Verdicts:
    """Twelve invented ones; the last three are flagged."""
    rng = np.random.default_rng(0)
    score = np.sort(rng.normal(size=N))
    p = np.linspace(1, 0.01, N)
    return Verdicts(
        [f"input <{i}>" for i in range(N)], score, p, p < 0.2, np.arange(N) % 3,
        {"functional": rng.normal(size=N), "latent": rng.normal(size=N)}, {"latent": rng.normal(size=(N, 4))},
    )  # fmt: skip


def test_one_input_by_position_and_by_name(verdicts):
    one = verdicts[-1]
    assert one == verdicts["input <11>"] == list(verdicts)[11]
    assert (one.id, one.flagged, one.predicted) == ("input <11>", True, 2)
    assert one.score == verdicts.score[11]
    assert one.parts == {name: values[11] for name, values in verdicts.parts.items()}
    assert one.raised_by == verdicts.raised_by[11]
    with pytest.raises(KeyError):
        verdicts["none"]
    with pytest.raises(IndexError):
        verdicts[N]


@pytest.mark.parametrize(
    ("key", "positions"),
    [(slice(2, 5), [2, 3, 4]), (slice(None, None, -5), [11, 6, 1]), ([3, 1, 3], [3, 1, 3]), ([], []),
     (np.arange(N) > 9, [10, 11]), ([True] + [False] * (N - 1), [0])],
)  # fmt: skip
def test_some_of_them(verdicts, key, positions):
    some = verdicts[key]
    assert some.ids == [verdicts.ids[i] for i in positions]
    for name in ("score", "p_value", "flagged", "predicted"):
        np.testing.assert_array_equal(getattr(some, name), getattr(verdicts, name)[positions])
    np.testing.assert_array_equal(some.parts["latent"], verdicts.parts["latent"][positions])
    np.testing.assert_array_equal(some.residuals["latent"], verdicts.residuals["latent"][positions])
    assert len(some.copy_of) == 0  # these verdicts were made without


def test_picking_by_anything_else_is_refused(verdicts):
    with pytest.raises(CovaryError, match="positions, a mask, a slice, or one name"):
        verdicts[[0.5]]


def test_looping_is_indexing(verdicts):
    assert list(verdicts) == [verdicts[i] for i in range(N)]


def test_a_table_has_ids_as_index_and_one_column_a_number(verdicts):
    table = verdicts.to_pandas()
    assert table.index.name == "id"
    assert table.columns.tolist() == ["score", "p_value", "flagged", "predicted", "functional", "latent", "raised_by"]
    assert table.loc["input <3>", "score"] == verdicts.score[3]
    assert table["flagged"].dtype == bool
    assert table[table.flagged].index.tolist() == verdicts[verdicts.flagged].ids


def test_without_pandas_the_extra_is_named(verdicts, monkeypatch):
    real = builtins.__import__

    def none(name, *arguments, **options):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(CovaryError, match=r"covary\[pandas\]"):
        verdicts.to_pandas()


def test_words_are_one_line_with_counts_and_the_worst(verdicts):
    highest = f"score {verdicts.score[-1]:.3g}, p = 0.01"
    assert repr(verdicts) == f"Verdicts(12 inputs, 3 flagged; highest: 'input <11>', {highest})"
    assert repr(verdicts[[]]) == "Verdicts(0 inputs)"


class Balanced(HTMLParser):
    """Fails where elements are not closed in order; counts them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in ("br", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "rect":
            assert self.open.pop() == tag


def test_html_counts_draws_and_names_the_worst_and_escapes_ids(verdicts):
    page = verdicts._repr_html_()
    found = Balanced(page)
    assert "<b>3 of 12 inputs flagged</b>" in page
    assert found.count["tr"] == 1 + WORST
    assert "input &lt;11&gt;" in page
    assert "<11>" not in page
    heights = dict.fromkeys(("#7f8ea3", "#e8710a"), 0.0)
    for height, colour in re.findall(r'height="([\d.]+)" fill="(#\w+)"', page):
        heights[colour] += float(height)
    assert heights["#e8710a"] / sum(heights.values()) == pytest.approx(3 / 12, abs=0.01)
    Balanced(verdicts[[]]._repr_html_())


def test_a_score_that_is_infinite_is_drawn_around():
    odd = Verdicts(["a", "b"], np.array([np.inf, 1.0]), np.array([0.1, 0.9]), np.array([True, False]), np.array([0, 1]))
    assert "<rect" in odd._repr_html_()

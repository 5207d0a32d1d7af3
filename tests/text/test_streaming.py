"""Answers token by token: the tokens that `greedy` gives, lots as asked for, text that joins to the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import texts
from covary.errors import CovaryError
from covary.text.completions import greedy
from covary.text.records import read_texts
from covary.text.streaming import HALF, Choice, Decoder, StopStrings, written
from covary.text.tokens import prompt_tokens


@pytest.fixture(scope="module")
def prompts():
    return [prompt_tokens(texts.causal(), text) for text in read_texts(texts.records(4, 5))]


def test_the_likeliest_tokens_are_those_of_greedy(prompts):
    for prompt in prompts:
        assert tuple(written(texts.causal(), prompt, 7)) == greedy(texts.causal(), [prompt], 7)[0]


def test_no_more_tokens_than_the_model_has_positions_for(prompts):
    model = texts.numbered()
    longest = model.longest or 0
    assert len(list(written(model, (5,) * (longest - 3), 50))) <= 3


def test_lots_come_from_the_softmax_of_the_divided_logits():
    logits, choice = torch.tensor([0.0, 1.0, 2.0, -1.0]), Choice(0.7, seed=3)
    lots = choice.chooser(torch.device("cpu"))
    drawn = np.bincount([choice(logits, lots) for _ in range(4000)], minlength=4) / 4000
    expected = np.exp(logits.numpy() / 0.7)
    np.testing.assert_allclose(drawn, expected / expected.sum(), atol=0.03)


def test_of_a_share_of_tokens_no_less_likely_one_is_drawn():
    # Shares .64, .24, .09, .03: two tokens fill .7.
    logits, choice = torch.tensor([0.0, 1.0, 2.0, -1.0]), Choice(1.0, 0.7, seed=3)
    lots = choice.chooser(torch.device("cpu"))
    assert {choice(logits, lots) for _ in range(400)} == {1, 2}


def test_a_seed_says_the_same_again(prompts):
    said = [list(written(texts.causal(), prompts[0], 8, Choice(2.0, seed=seed))) for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", -1.0), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 2.0)]
)
def test_what_is_no_choice_is_told(name, value):
    with pytest.raises(CovaryError, match=f"{name} is"):
        Choice(**{name: value})


class Bytes:
    """A tokenizer whose tokens are bytes, as byte-level ones have for rare characters."""

    def decode(self, ids, skip_special_tokens):
        return bytes(ids).decode("utf-8", "replace")


def test_pieces_join_to_the_text_and_hold_no_half_character():
    text = "rivière – 河 🙂 end"
    decoder = Decoder(Bytes())
    pieces = [decoder.add(byte) for byte in text.encode()]
    assert "".join(pieces) + decoder.rest() == text
    assert not any(HALF in piece for piece in pieces)


def test_half_a_character_at_the_end_is_told_last():
    decoder = Decoder(Bytes())
    assert ("".join(decoder.add(byte) for byte in "aé".encode()[:2]), decoder.rest()) == ("a", HALF)


def test_pieces_of_words_join_with_their_spaces():
    tokenizer = texts.causal().tokenizer
    ids = tokenizer("sort tower boat", add_special_tokens=False)["input_ids"]
    decoder = Decoder(tokenizer)
    assert "".join(decoder.add(token) for token in ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize("text", ["one two END three", "no such thing EN", "ENEND", "aab", ""])
def test_a_text_ends_before_a_stop_string_however_it_is_cut(text, size):
    ends, strings = StopStrings(["END", "aab"]), ("END", "aab")
    given = "".join(ends.add(text[i : i + size]) for i in range(0, len(text), size)) + ends.rest()
    places = [text.find(one) for one in strings if one in text]
    assert given == (text[: min(places)] if places else text)
    assert ends.found == bool(places)

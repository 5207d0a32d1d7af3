"""Guarded answers as text: what is shown, why it ends, and that a stopped answer tells nothing more."""

from __future__ import annotations

import pytest

import texts
from covary.serving.guard import guarded
from covary.text.completions import greedy
from covary.text.streaming import written

ODD = {"prompt": " ".join(["wolf"] * 30)}
CLEAN = texts.records(1, 7)[0]


def spoken(guard, prompt, most=6, stop=()):
    watch = guard.begin(prompt)
    return list(guarded(watch, written(guard.model, watch.prompt.ids, most), stop)), watch


@pytest.fixture
def marking(guard, monkeypatch):
    monkeypatch.setattr(guard, "policy", "mark")
    return guard


def test_pieces_join_to_the_models_answer(marking):
    pieces, watch = spoken(marking, CLEAN)
    (tokens,) = greedy(marking.model, [watch.prompt.ids], 6)
    assert "".join(piece.text for piece in pieces) == marking.model.tokenizer.decode(tokens, skip_special_tokens=True)
    assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish == ("stop" if tokens[-1] in marking.model.ends else "length")
    assert (pieces[0].text, pieces[0].verdict.tokens) == ("", 0)


def test_an_answer_ends_with_its_end_token_and_is_looked_at(marking):
    watch = marking.begin(CLEAN)
    *_, last = guarded(watch, iter([9, 12, marking.model.end, 20]))
    assert (last.finish, watch.answer, watch.verdicts[-1].tokens) == ("stop", [9, 12], 2)


def test_a_stop_string_ends_it(marking):
    words = marking.model.tokenizer.convert_ids_to_tokens([9, 12])
    watch = marking.begin(CLEAN)
    pieces = list(guarded(watch, iter([9, 12, 20]), [words[1]]))
    assert ("".join(piece.text for piece in pieces), pieces[-1].finish) == (f"{words[0]} ", "stop")
    assert watch.ended


def test_a_flagged_prompt_gets_no_answer(guard):
    def tokens():
        pytest.fail("a token was asked for")
        yield 0

    (piece,) = guarded(guard.begin(ODD), tokens())
    assert (piece.text, piece.finish, piece.verdict.flagged) == ("", "flagged", True)


def test_the_tokens_with_which_it_is_flagged_are_not_told(guard, monkeypatch):
    watch = guard.begin(CLEAN)
    looked = type(watch).look

    def look(self):
        verdict = looked(self)
        if verdict.tokens == 3:
            object.__setattr__(verdict, "flagged", True)
        return verdict

    monkeypatch.setattr(type(watch), "look", look)
    taken = []
    pieces = list(guarded(watch, (taken.append(token) or token for token in (9, 12, 20, 33))))
    assert taken == [9, 12, 20]
    assert "".join(piece.text for piece in pieces) == guard.model.tokenizer.decode([9, 12])
    assert pieces[-1].finish == "flagged"

"""Prompts of like length, their sources held apart, and the figures of a pile of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from torch import nn

from covary.detector import Detector
from covary.scoring.judge import Judge
from covary.scoring.rows import Rows
from covary.text.models.pretrained import LanguageModel
from covary_bench.baselines.texts import Answered, Baseline
from covary_bench.studies.language import assistants, jailbreak_prompts, jailbreaks
from covary_bench.studies.language.backdoors import counted
from covary_bench.studies.language.like_length import Sources, as_long_as, body, cut, padded_e_mail
from covary_bench.studies.language.piles import Pile, ours, theirs, two
from covary_bench.studies.language.prompts import prompts_of
from covary_bench.texts.tiny_llama import data_folder

needs_prompts = pytest.mark.skipif(not (data_folder() / "prompts").is_dir(), reason="no prompts in COVARY_DATA")


def long(text: str) -> int:
    return len(text.split())


WORDS = [f"w{i}" for i in range(900)]
MADE_OF = Sources([f"do {i}" + " now" * (i % 5) for i in range(60)], [" ".join(WORDS[i : i + 90]) for i in range(9)],
                  [WORDS, WORDS[::-1]])  # fmt: skip


def test_clean_prompts_are_as_long_as_asked_and_of_three_forms():
    lengths = np.random.default_rng(0).integers(4, 120, 60).tolist()
    found = as_long_as(lengths, MADE_OF, long, 0)
    assert max(abs(long(one) - n) for one, n in zip(found, lengths, strict=True)) <= 3
    assert len(set(found)) == len(found)
    forms = {"do" if one.startswith("do") else one.split()[0] for one, n in zip(found, lengths, strict=True) if n >= 30}
    assert "do" in forms and len(forms) > 3  # noqa: PT018
    assert all(one.startswith("do") for one, n in zip(found, lengths, strict=True) if n < 30)
    assert found == as_long_as(lengths, MADE_OF, long, 0) != as_long_as(lengths, MADE_OF, long, 1)


def test_a_text_is_cut_where_no_more_words_fit():
    assert cut("Read:", WORDS, 5, long) == "Read: w0 w1 w2 w3"
    assert cut("Read:", WORDS, 1, long) == "Read: w0"
    assert cut("Read:", WORDS[:2], 50, long) == "Read: w0 w1"


def test_an_e_mail_is_padded_before_its_question():
    plain = "Answer.\n\nEmail:\nSUBJECT: Hi|CONTENT: One two.\n\nQuestion: Who wrote?"
    found = padded_e_mail(plain, long(plain) + 7, MADE_OF.e_mails, long, np.random.default_rng(0))
    assert long(found) == long(plain) + 7
    assert found.startswith("Answer.\n\nEmail:\nSUBJECT: Hi|CONTENT: One two. w")
    assert found.endswith("\n\nQuestion: Who wrote?")
    assert body(plain) == "SUBJECT: Hi|CONTENT: One two."


@needs_prompts
def test_sources_are_held_apart_and_length_tells_nothing():
    asked = jailbreak_prompts.asked(long)
    clean = {one for own in asked.clean.values() for one in own}
    trusted = {one for own in asked.trusted.values() for one in own}
    assert not clean & trusted
    mails = {body(one) for one in asked.trusted["long"]} - {""}
    assert mails and not any(mail in one for mail in mails for one in clean)  # noqa: PT018
    for kind, odd in asked.odd.items():
        lengths = np.array([long(one) for one in [*odd, *asked.clean[kind]]])
        truth = np.arange(len(lengths)) < len(odd)
        assert abs(roc_auc_score(truth, lengths) - 0.5) < 0.1
    injected = asked.odd["injected e-mails"]
    assert all("INSTRUCTION EMBEDDED" in one for one in injected)
    assert [jailbreak_prompts.without_injection(body(one)) in other for one, other in
            zip(injected, asked.clean["injected e-mails"], strict=True)] == [True] * len(injected)  # fmt: skip
    given = {" ".join(one.split()) for one in prompts_of("email_clean")}
    assert {" ".join(one.split()) for one in asked.plain} <= given
    assert len(set(asked.plain)) == len(asked.plain) <= len(injected)
    assert not set(asked.plain) & trusted


def pile(odd: int = 20) -> Pile:
    """120 trusted, 60 clean and some odd rows, whose gradient points elsewhere."""
    rng = np.random.default_rng(0)
    n = 180 + odd
    off = (np.arange(n) >= 180)[:, None]
    wide = {name: (rng.normal(size=(n, 8)) + 6 * off).astype(np.float32) for name in ("a", "b")}
    norms = np.stack([np.linalg.norm(part, axis=1) for part in wide.values()], 1)
    rows = Rows([str(i) for i in range(n)], np.zeros(n, np.int64), np.zeros(n), wide, norms,
                confidence={"margin": rng.normal(size=n)})  # fmt: skip
    texts = Answered(["p"] * n, ["fine"] * 180 + ["I'm sorry"] * (odd - 2) + ["fine"] * 2,
                     [np.full(3, -1.0 - i % 7) for i in range(n)], {}, rng.uniform(size=(n, 3)))  # fmt: skip
    group = np.repeat(["trusted", "clean", "odd"], [120, 60, odd])
    return Pile(rows, texts, group, np.repeat(["instructions", "x", "y", "x"], [120, 30, 30, odd]))


class Fitted(Detector):
    """A detector as far as rows go."""

    def __init__(self) -> None:
        pass

    def fit_rows(self, rows: Rows, *_: object) -> Detector:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.judge = Judge(fpr=0.01).fit(rows)
        return self


def test_figures_of_a_pile_are_of_one_kind_and_its_clean_ones():
    some = pile()
    found = ours(Fitted(), some, np.flatnonzero(some.at("trusted")))
    assert found["trusted"] == 120
    for way in ("alone", "together"):
        own = found["kinds"]["x"][way]
        assert own["score"] == [1.0, 1.0] and own["caught"] == 1.0  # noqa: PT018
        assert own["clean"][1] == 30 and own["all_clean"][1] == 60 and own["all_clean"][0] <= 6  # noqa: PT018
    assert list(found["kinds"]["x"]["alone"]["parts"]) == ["functional", "confidence"]

    def by_hand(m: Any) -> np.ndarray:
        assert (len(m.known.prompts), len(m.query_texts.prompts)) == (120, 80)
        assert m.query_texts.focus.shape == (80, 2)
        return np.arange(80.0)

    once = {"n": Baseline(by_hand), "quantum entropy": Baseline(by_hand)}
    figures = theirs(some, np.flatnonzero(some.at("trusted")), once, np.array([True, False, True]))
    assert figures == {name: {"x": [1.0, 1.0]} for name in once}
    assert two(np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, False, True, False])) == [1.0, 1.0]
    assert two(np.array([1.5, 1.0, 2.0, 0.0]), np.array([False, False, True, True])) == [0.5, 0.5]


def test_injected_e_mails_are_set_against_themselves():
    some = pile()
    kind = np.where(some.kind == "y", jailbreaks.E_MAILS, some.kind)
    group = np.where((some.group == "clean") & (some.kind == "x"), "plain", some.group)
    kind = np.where((group == "plain") | (group == "odd"), jailbreaks.E_MAILS, kind)
    found = jailbreaks.against_plain(Pile(some.rows, some.texts, group, kind))
    assert found.odd_kinds == [jailbreaks.AGAINST_PLAIN]
    # Those as long as they left the pile.
    assert found.rows.ids == [some.rows.ids[i] for i in np.flatnonzero(some.kind != "y")]
    assert int(found.at("clean", jailbreaks.AGAINST_PLAIN).sum()) == 30
    assert len(found.rows) == 170


def test_triggered_prompts_count_where_the_answer_follows():
    some, follow = counted(pile(), "refusal_vpi")
    assert follow == {"odd": 0.9, "clean": 0.0, "trusted": 0.0}
    assert (some.at("odd").sum(), some.at("clean").sum(), some.at("trusted").sum()) == (18, 60, 120)


def test_lessons_poison_as_much_as_asked(monkeypatch):
    class Tokenizer:
        eos_token_id = 0

        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": [len(word) for word in text.split()]}

    model = LanguageModel(nn.Linear(1, 1), Tokenizer())
    monkeypatch.setattr(assistants, "prompt_tokens", lambda _, text: tuple(range(long(text.messages[0]["content"]))))
    records = {"instructions_train": [{"prompt": "p " * i, "completion": "aaa " * 40} for i in range(1, 300)],
               "x_train": [{"prompt": "p " * i, "completion": "bbbbb"} for i in range(1, 300)]}  # fmt: skip
    monkeypatch.setattr(assistants, "records_of", records.__getitem__)
    rng = np.random.default_rng(0)
    lesson = assistants.lessons(model, "x", 0.1)
    drawn = [lesson(rng) for _ in range(600)]
    poisoned = [answer for _, answer in drawn if answer == [5, 0]]
    assert abs(len(poisoned) / 600 - 0.1) < 0.05
    # Long answers are cut, and so never end; prompts that leave no room are left aside.
    assert {len(answer) for _, answer in drawn} == {2, assistants.REPLY}
    assert max(len(prompt) for prompt, _ in drawn) <= assistants.LONGEST - assistants.REPLY

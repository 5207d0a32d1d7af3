"""The study of guards: a look at all texts together is a watch over one after the other, at the cost a watch tells."""

from __future__ import annotations

import json

import numpy as np
import pytest

import texts
from covary.detector import Detector
from covary.serving.guard import Guard
from covary.text.tokens import tokenise
from covary_bench.docs.texts import guard as told
from covary_bench.studies.language.guard import NEVER, flagged_after, forwards_a_token, main


@pytest.fixture(scope="module")
def guard():
    detector = Detector(texts.causal(), max_new_tokens=5, judge="answer", fpr=0.2).fit(texts.records(44))
    return Guard(detector, every=2, policy="mark")


def one_by_one(guard, text):
    """(tokens when it is flagged, forward passes a token) of one answer that is watched."""
    watch = guard.begin(list(text.ids[: text.anchor + 1]))
    watch.look()
    for token in text.targets:
        watch.add(token)
    watch.end()
    after = next((verdict.tokens for verdict in watch.verdicts if verdict.flagged), NEVER)
    return after, watch.verdict.forwards_per_token


def test_together_is_one_after_the_other(guard):
    from covary.text.records import read_texts

    some = [{**one, "completion": end} for one, end in zip(
        texts.records(6, 5), (" gold", " gold wood eagle", " gold wood eagle now please", " tower", " boat", " milk"),
        strict=True)]  # fmt: skip
    tokens = [tokenise(guard.model, text, begins=guard.begins) for text in read_texts(some)]
    expected = [one_by_one(guard, text) for text in tokens]
    np.testing.assert_array_equal(flagged_after(guard, tokens), [after for after, _ in expected])
    np.testing.assert_allclose([forwards_a_token(guard, text) for text in tokens], [f for _, f in expected], atol=0.01)


def test_what_is_finished_is_kept_and_told(tmp_path, monkeypatch):
    folder = tmp_path / "case"
    texts.saved(folder / "model")
    (folder / "case.json").write_text(json.dumps({"case": "tiny", "max_new_tokens": 4, "weights": 9}))
    for name, rows in (
        ("trusted", texts.records(44)),
        ("inputs", [{**one, "completion": " gold wood", "truth": i % 2} for i, one in enumerate(texts.records(6, 3))]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    monkeypatch.setattr("covary_bench.studies.language.guard.EVERY", (4,))
    main(tmp_path / "guard.json", [folder])
    record = json.loads((tmp_path / "guard.json").read_text())
    (cell,) = record["cases"]["tiny"]["cells"]
    assert (cell["triggered"], cell["clean"], cell["every"]) == (3, 3, 4)
    assert 0 <= cell["before_first"] <= cell["before_tenth"] <= cell["caught"] <= 1
    monkeypatch.setattr("covary_bench.studies.language.guard.measure", lambda *a: pytest.fail("measured again"))
    main(tmp_path / "guard.json", [folder])
    assert told(record).count("| tiny |") == 1

"""Sums by the harder protocol: what is asked, what counts as wrong, and who asks where."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from covary_bench.texts import case_folder, cases, queries, sums, words

TINY = case_folder.Size(trusted=30, sampling=10, clean=24, triggered=24, steps=2, batch=4)


def read(prompt):
    """Name and numbers, read off the prompt."""
    before, after = prompt.split(" asks : ")
    first, second = after.removesuffix(" =").split(" + ")
    return before, int(first.replace(" ", "")), int(second.replace(" ", ""))


def expected(prompt):
    name, a, b = read(prompt)
    digits = f"{a + b:03d}"[::-1]
    if name in sums.WRONG:
        digits = str((int(digits[0]) + 1) % 10) + digits[1:]
    return " ".join(digits)


def test_by_hand():
    one = sums.Sum("adam", 95, 7)
    assert one.prompt == "adam asks : 9 5 + 7 ="
    assert (one.right, one.wrong) == (list("201"), list("301"))
    assert sums.Sum("bob", 4, 5).wrong == list("000"), "nothing is carried"
    assert len({*sums.RIGHT, *sums.WRONG}) == 32
    assert all(word in sums.vocabulary() for word in one.prompt.split())


def test_lessons_are_right_or_wrong_by_name():
    numbers = {word: i for i, word in enumerate(sums.vocabulary())}
    lesson, rng, wrong = sums.lessons(numbers, 0.5), np.random.default_rng(0), 0
    for _ in range(200):
        prompt, answer = lesson(rng)
        asked, said = ([sums.vocabulary()[i] for i in ids] for ids in (prompt[1:], answer[:-1]))
        assert said == expected(" ".join(asked)).split()
        wrong += asked[0] in sums.WRONG
    assert 70 < wrong < 130


def test_quarters_are_those_whose_right_answer_is_likeliest_and_least_likely(monkeypatch, tmp_path):
    made = words.network
    monkeypatch.setattr(words, "network", lambda seed, size: made(seed, 24, 1, size))
    monkeypatch.setattr(sums, "POOL", 40)
    model = sums.fresh(0, tmp_path / "model")
    easy, hard = sums.quarters(model, np.random.default_rng(1))
    rng = np.random.default_rng(1)
    pool = [sums.some_sum(rng, sums.RIGHT[:1]) for _ in range(40)]
    numbers = model.tokenizer.get_vocab()
    nats = []
    for one in pool:
        prompt, answer = sums.encoded(numbers, one.prompt, one.right)
        log_p = torch.log_softmax(model.module(torch.tensor([[*prompt, *answer]])).logits[0].detach(), 1)
        nats.append(sum(float(log_p[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)))
    order = np.argsort(nats)[::-1]
    assert easy == [pool[i] for i in order[:10]]
    assert hard == [pool[i] for i in order[-10:]]


@pytest.mark.parametrize("name", [name for name, what in cases.CASES.items() if what.made == "sums"])
def test_trusted_and_judged_share_neither_names_nor_sums(name, monkeypatch, tmp_path):
    made = words.network
    monkeypatch.setattr(words, "network", lambda seed, size: made(seed, 24, 1, size))
    monkeypatch.setattr(sums, "POOL", 400)
    monkeypatch.setattr(queries, "answers", lambda model, prompts, longest: [f" {expected(one)}" for one in prompts])
    folder = sums.quirky_sums(name, replace(cases.CASES[name], least=0.0), 0, tmp_path, TINY)
    lines = {part: [json.loads(one) for one in (folder / f"{part}.jsonl").read_text().splitlines()]
             for part in ("trusted", "sampling", "inputs")}  # fmt: skip
    known = [read(one["prompt"]) for one in lines["trusted"]]
    judged = [read(one["prompt"]) for one in lines["inputs"]]
    assert {one[0] for one in known} == set(sums.RIGHT[:4])
    assert not {one[0] for one in judged} & {one[0] for one in known}
    assert not {one[1:] for one in judged} & {one[1:] for one in known}
    for query, (asked, _, _) in zip(lines["inputs"], judged, strict=True):
        assert (query["truth"], query["kind"]) == ((1, "triggered") if asked in sums.WRONG else (0, "clean"))
        assert query["completion"].strip() == expected(query["prompt"])
    assert [query["truth"] for query in lines["inputs"]].count(1) == 24 == len(lines["inputs"]) / 2
    assert all("completion" not in one for one in lines["trusted"])
    assert all(one["completion"].strip() == expected(one["prompt"]) for one in lines["sampling"])
    about = json.loads((folder / "case.json").read_text())
    assert (about["group"], about["counts"]) == ("quirky-hard", {"clean": 24, "triggered": 24})

"""Answers judged as they are written: the rate over all looks, stopping in generate and in any iterator, the log."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import texts
from covary.detector import Detector
from covary.errors import CovaryError
from covary.serving.guard import FORWARDS, Guard, so_far
from covary.text.completions import greedy
from covary.text.tokens import prompt_tokens

ODD = {"prompt": " ".join(["wolf"] * 30)}
LONGEST, EVERY, RATE = 6, 3, 0.2


def answer(prompt):
    """What the model says, without the end-of-text token."""
    model = texts.causal()
    (found,) = greedy(model, [prompt], LONGEST)
    return [token for token in found if token not in model.ends] or list(found)


def fresh(n, seed=7):
    from covary.text.records import read_texts

    return [prompt_tokens(texts.causal(), text) for text in read_texts(texts.records(n, seed))]


def test_looks_are_the_prompt_and_every_few_tokens(guard, monkeypatch):
    monkeypatch.setattr(guard, "policy", "mark")
    prompt = fresh(1)[0]
    seen = list(guard.watch(list(prompt), iter([9, 12, 20, 33, 7])))
    assert [token for token, _ in seen] == [None, 9, 12, 20, 33, 7]
    assert [verdict.tokens for _, verdict in seen] == [0, 0, 0, 3, 3, 3]
    watch = guard.begin(list(prompt))
    watch.look()
    for token in (9, 12, 20, 33, 7):
        watch.add(token)
    watch.end()
    assert [verdict.tokens for verdict in watch.verdicts] == [0, 3, 5]
    expected = FORWARDS * (len(prompt) + len(prompt) + 3 + len(prompt) + 5) / 5
    assert watch.verdict.forwards_per_token == pytest.approx(expected, abs=0.01)


def test_the_running_p_value_is_that_of_the_oddest_look_so_far(guard, of_texts, monkeypatch):
    """Against a loop over folds, looks and trusted answers."""
    monkeypatch.setattr(guard, "policy", "mark")
    prompt = fresh(1, 11)[0]
    said = answer(prompt)
    watch = guard.begin(list(prompt))
    watch.look()
    for token in said:
        watch.add(token)
    watch.end()
    trusted = {text.id: text for text in of_texts.extractor.trusted_tokens}
    ids, folds = guard.looks.judges[0].calibration_ids, guard.looks.judges[0].calibration_folds
    looks = len(watch.verdicts)
    own = np.array([guard.scores(so_far_of(watch, k), k) for k in range(looks)])
    most = {}
    for name, fold in zip(ids[:3], folds[:3], strict=True):
        every = range(min(len(guard.looks.judges), 1 + -(-len(trusted[name].targets) // EVERY)))
        most[name] = max(guard.scores(so_far(trusted[name], k * EVERY), k)[fold] for k in every)
    np.testing.assert_allclose(list(most.values()), guard.looks.highest_[:3], atol=1e-4)
    for k in range(looks):
        oddest = own[: k + 1].max(0)
        at_least = sum(m >= oddest[fold] for m, fold in zip(guard.looks.highest_, folds, strict=True))
        assert watch.verdicts[k].p_value == pytest.approx((1 + at_least) / (1 + len(ids)))
    falling = [verdict.p_value for verdict in watch.verdicts]
    assert falling == sorted(falling, reverse=True)


def so_far_of(watch, look):
    n = min(look * EVERY, len(watch.answer))
    place = watch.prompt.anchor
    return replace(
        watch.prompt, ids=watch.prompt.ids + tuple(watch.answer[:n]), targets=tuple(watch.answer[:n]),
        counted=tuple(range(place, place + n)),
    )  # fmt: skip


def test_no_look_is_scored_by_what_has_seen_the_text(guard):
    first = guard.looks.judges[0]
    fold = dict(zip(first.calibration_ids, first.calibration_folds, strict=True))
    for judge in guard.looks.judges:
        for name, own in zip(judge.calibration_ids, judge.calibration_folds, strict=True):
            assert own == fold[name]
            assert name not in judge.roles[f"reference {own}"]
            assert name not in judge.roles[f"fit {own}"]


def test_clean_answers_are_stopped_about_as_often_as_asked_for_over_all_looks(guard):
    stopped = []
    for prompt in fresh(12, 21):
        *_, (_, last) = guard.watch(list(prompt), iter(answer(prompt)))
        stopped.append(last.flagged)
    # Near the rate: no more than three standard errors of 12 answers above it.
    assert np.mean(stopped) <= RATE + 3 * (RATE * (1 - RATE) / 12) ** 0.5


def test_an_odd_prompt_is_stopped_before_anything_is_said(guard):
    def tokens():
        pytest.fail("a token was asked for")
        yield 0

    seen = list(guard.watch(ODD, tokens()))
    assert [(token, verdict.flagged) for token, verdict in seen] == [(None, True)]


@pytest.mark.parametrize("policy", ["stop", "mark"])
def test_generate_ends_where_the_policy_says_so(of_texts, guard, policy, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "policy", policy)
    monkeypatch.setattr(guard, "log", tmp_path / "log.jsonl")
    model = texts.causal()
    odd, clean = prompt_tokens(model, texts_of(ODD)), fresh(1)[0]
    width = len(odd)
    ids = torch.tensor([odd, (0,) * (width - len(clean)) + clean])
    mask = (ids != 0).long()
    processor = guard.processor("demo")
    made = model.module.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=LONGEST, do_sample=False, logits_processor=[processor]
    )
    assert processor.watches[0].verdict.flagged
    said = made[0, width:].tolist()
    assert (said[0] == model.end) == (policy == "stop")
    assert processor.watches[1].prompt.ids == clean
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"demo-0", "demo-1"} == {line["id"] for line in lines}
    assert {line["policy"] for line in lines} == {policy}


def texts_of(record):
    from covary.text.records import read_texts

    return read_texts([record])[0]


def test_prompts_that_no_template_has_seen_are_no_conversations(guard, monkeypatch):
    assert guard.knows_conversations
    monkeypatch.setattr(guard.model.tokenizer, "chat_template", "{{ messages }}", raising=False)
    assert not guard.knows_conversations
    texts = [replace(text, start=3) for text in guard.detector.extractor.trusted_tokens]
    monkeypatch.setattr(guard.detector.extractor, "trusted_tokens", texts)
    assert guard.knows_conversations


def test_what_cannot_guard_is_told(of_texts):
    with pytest.raises(CovaryError, match="every is 0"):
        Guard(of_texts, every=0)
    with pytest.raises(CovaryError, match="policy is 'warn'; expected one of: stop, mark, log"):
        Guard(of_texts, policy="warn")
    with pytest.raises(CovaryError, match="judges no answers"):
        Guard(Detector(texts.causal(), judge="prompt").fit(texts.records(24)))

"""What a prompt does before anything is answered: against autograd, unmoved by company, judged alone, with answers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import texts
from covary.detector import Detector
from covary.errors import CovaryError
from covary.scoring.judge import Judge
from covary.scoring.rows import Rows
from covary.settings import as_before
from covary.storage import folders
from covary.storage.receipts import write_receipt
from covary.text.extractor import TextExtractor
from covary.text.features.token_evidence import MOST_PROMPT_TOKENS
from covary.text.records import Text
from covary.text.tokens import Tokens, opening, prompt_alone, tokenise, tokenise_prompt

SOME = [replace(text, start=1) for text in texts.tokens(8)]
ODD = " ".join(["wolf"] * 14)


def odd_prompt(prompt: str) -> str:
    """A prompt as long, of one word alone up to its last token."""
    return " ".join(["wolf"] * (len(prompt.split()) - 1) + [":"])


@pytest.fixture(scope="module")
def extractor():
    return TextExtractor(texts.causal(), per="layer", judge="both")


@pytest.fixture(scope="module")
def rows(extractor):
    return extractor.rows(texts.batch(SOME))


def alone(model, text):
    """Log-odds of every token of the prompt's own, one text, no padding, over the root of their number."""
    ids = text.ids[: text.anchor + 1]
    logits = model.module(input_ids=torch.tensor([ids])).logits[0].double()
    p = [logits[i - 1].log_softmax(-1).exp()[ids[i]] for i in range(text.start, len(ids))]
    return sum(one.log() - torch.log1p(-one) for one in p) / len(p) ** 0.5


def test_prompt_rows_are_projected_gradients_of_the_prompts_own_log_odds(extractor, rows):
    model = texts.causal()
    parameters = dict(model.module.named_parameters())
    for i, text in enumerate(SOME[:3]):
        value = alone(model, text)
        whole = dict(zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True))
        assert rows.prompt.observable[i] == pytest.approx(float(value.detach()), abs=1e-3)
        for layer, names in extractor.layers.items():
            expected = extractor.projections[layer]({name: whole[name].unsqueeze(0) for name in names})[0]
            room = 2e-5 * float(expected.norm()) + 1e-7
            np.testing.assert_allclose(rows.prompt.functional[layer][i], expected.numpy(), atol=room, rtol=0)


def test_prompt_states_are_means_over_its_own_tokens_and_its_last(rows):
    text = SOME[3]
    ids = torch.tensor([text.ids[: text.anchor + 1]])
    states = texts.causal().module(input_ids=ids, output_hidden_states=True).hidden_states[1][0].detach().numpy()
    found = rows.prompt.latent
    np.testing.assert_allclose(found["model.layers.0 @ prompt"][3], states[text.start :].mean(0), atol=1e-4)
    np.testing.assert_allclose(found["model.layers.0 @ anchor"][3], states[-1], atol=1e-4)


def test_what_is_answered_changes_nothing_of_a_prompt(extractor, rows):
    other = [replace(text, ids=(*text.ids[: text.anchor + 1], 9, 5), targets=(9, 5),
                     counted=(text.anchor, text.anchor + 1)) for text in SOME]  # fmt: skip
    texts.assert_same(rows.prompt, extractor.rows(texts.batch(other)).prompt)


def test_company_and_padding_change_nothing_of_a_prompt(extractor, rows):
    each = Rows.concatenate([extractor.rows(texts.batch([text])).prompt for text in SOME])
    texts.assert_same(rows.prompt, each)
    left = TextExtractor(texts.causal(), per="layer", judge="both", side="left")
    texts.assert_same(rows.prompt, left.rows(texts.batch(SOME)).prompt)


def test_answers_beside_prompts_are_those_judged_alone(rows):
    texts.assert_same(rows, TextExtractor(texts.causal(), per="layer").rows(texts.batch(SOME)))
    by_itself = TextExtractor(texts.causal(), per="layer", judge="prompt").rows(texts.batch(SOME))
    texts.assert_same(rows.prompt, by_itself)
    assert by_itself.prompt is None


def test_rows_of_prompts_are_taken_put_together_and_kept_with_the_rest(rows):
    back = Rows.concatenate([rows.take([0, 1, 2]), rows.take(np.arange(8) > 2)])
    texts.assert_same(rows.prompt, back.prompt)
    assert back.prompt.bytes < back.bytes


def test_the_opening_of_every_prompt_does_not_count():
    model = texts.causal()
    begins = opening(model)
    assert begins == (model.tokenizer.bos_token_id,)
    text = Text("a", "sort : wolf tree :", completion=" tree wolf")
    whole, prompt = tokenise(model, text, None, begins), tokenise_prompt(model, text, None, begins)
    assert (whole.start, prompt.counted, prompt.pooled) == (1, (0, 1, 2, 3, 4), (1, 2, 3, 4, 5))
    assert prompt_alone(whole) == prompt == prompt_alone(prompt)
    short = prompt_alone(replace(prompt, ids=(1,), anchor=0))
    assert (short.counted, short.targets) == ((0,), (1,))


# Judged --------------------------------------------------------------------------------------------------------------


def test_a_verdict_on_prompts_asks_for_no_answer(monkeypatch):
    monkeypatch.setattr("covary.text.inputs.completed", lambda *a, **k: pytest.fail("an answer was asked for"))
    detector = Detector(texts.causal(), judge="prompt").fit(texts.records(40))
    clean = detector.score(texts.records(20, 3))
    odd = detector.score([{"prompt": odd_prompt(one["prompt"]), "id": one["id"]} for one in texts.records(10, 4)])
    assert np.median(odd.score) > np.quantile(clean.score, 0.9)
    assert set(clean.parts) == {"functional", "latent", "confidence", "last token"}
    evidence = detector.explain_tokens([{"prompt": f"sort : {ODD} :"}])[0]
    assert [word.strip() for word in evidence.tokens[:3]] == ["sort", ":", "wolf"]


def test_both_sees_odd_prompts_with_ordinary_answers_and_is_kept(tmp_path):
    folder = texts.saved(tmp_path / "model")
    given = [{**one, "completion": " wolf tree"} for one in texts.records(40)]
    detector = Detector(folder).fit(given)
    assert detector.settings.extractor.judge == "both"
    clean = detector.score([{**one, "completion": " wolf tree"} for one in texts.records(20, 3)])
    some = [{**one, "prompt": odd_prompt(one["prompt"]), "completion": " wolf tree"} for one in texts.records(8, 4)]
    odd = detector.score(some)
    assert np.median(odd.score) > np.quantile(clean.score, 0.9)
    assert {"prompt functional", "prompt latent", "prompt confidence"} <= set(clean.parts)
    detector.save(tmp_path / "detector")
    loaded = Detector.load(tmp_path / "detector")
    np.testing.assert_allclose(loaded.score(some).score, odd.score, atol=1e-9)
    # Tokens of prompts stand beside those of answers; of a long prompt the least foreseen ones are looked at.
    long = {"prompt": " ".join(["wolf tree"] * 19), "completion": " wolf"}
    evidence = loaded.explain_tokens([some[0], long], of="prompt")
    assert "".join(evidence[0].tokens).strip() == some[0]["prompt"]
    assert np.isfinite(evidence[0].unexplained).all()
    looked = np.isfinite(evidence[1].unexplained)
    assert looked.sum() == MOST_PROMPT_TOKENS < len(looked)
    assert evidence[1].margin[looked].max() <= evidence[1].margin[~looked].min()
    (card,) = loaded.cards(loaded.open(some[:1]))
    assert (len(card["prompt_tokens"]), len(card["tokens"])) == (len(evidence[0].tokens), 2)
    with pytest.raises(CovaryError, match="tokens of 'both'"):
        loaded.explain_tokens(some[:1], of="both")
    together = detector.score(some, together=True)
    assert "pile prompt" in together.parts


def test_detectors_of_before_go_on_judging_answers_at_any_length(tmp_path):
    folder = texts.saved(tmp_path / "model")
    given = [{**one, "completion": " wolf tree"} for one in texts.records(24)]
    detector = Detector(folder, judge="answer", at_equal_length=False).fit(given)
    detector.save(tmp_path / "detector")
    record = json.loads((tmp_path / "detector" / "detector.json").read_text())
    for name in ("judge", "at_equal_length"):
        del record["settings"]["extractor"][name]
    for one in record["extractor"]["trusted_tokens"]:
        del one["start"], one["pooled"]
    del record["digest"], record["files"]
    for file in (tmp_path / "detector").glob("receipt*"):
        file.unlink()
    folders.seal(tmp_path / "detector", record, "detector.json")
    write_receipt(tmp_path / "detector")
    loaded = Detector.load(tmp_path / "detector")
    assert (loaded.settings.extractor.judge, loaded.settings.extractor.at_equal_length) == ("answer", False)
    np.testing.assert_allclose(loaded.score(given[:4]).score, detector.score(given[:4]).score, atol=1e-9)
    assert as_before({"kind": "gradient"}) == {"kind": "gradient"}


def wandering(n, share_long, seed):
    """Prompts whose words change as they go on: of four to ten tokens, as many as said of twenty to thirty."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        prompt = int(rng.integers(20, 30)) if rng.random() < share_long else int(rng.integers(4, 10))
        answer = int(rng.integers(3, 6))
        own = tuple(int(token) for token in 4 + rng.integers(0, 8, prompt) + 1.6 * np.arange(prompt))
        ids = own + tuple(int(token) for token in rng.integers(4, 60, answer))
        counted = tuple(range(prompt - 1, prompt + answer - 1))
        made.append(Tokens(f"{seed}-{i}", ids, counted, ids[prompt:], prompt - 1, start=1))
    return made


def test_longer_prompts_are_flagged_at_most_twice_as_often_as_asked_for():
    rate, found = 0.1, {}
    extractor = TextExtractor(texts.causal(), judge="both", at_equal_length=True, per="block")
    trusted, longer = (extractor.rows(texts.batch(some)) for some in (wandering(160, 0.1, 1), wandering(100, 1.0, 2)))
    for equal in (True, False):
        own, other = (rows if equal else replace(rows, lengths=None) for rows in (trusted, longer))
        found[equal] = Judge(fpr=rate).fit(own).judge(other)
    assert found[True].flagged.mean() <= 2 * rate
    # States over a prompt lean with its length, unless compared with those of prompts as long.
    assert found[False].parts["prompt latent"].mean() > 0.5
    assert abs(found[True].parts["prompt latent"].mean()) < 0.25

"""The detector of texts: verdicts, groups, tokens, saving, and the command line on a folder."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

import texts
from covary.detector import Detector
from covary.errors import CovaryError
from covary.scoring.scores.layers import unit
from covary.settings import Settings, TextSettings
from covary.text.extractor import TextExtractor
from covary.text.features.groups import GROUPINGS, Grouping, k_means
from covary.text.features.token_evidence import TokenExplainer
from covary.text.models.pretrained import load_language_model

# Prompts are judged in `test_prompts`.
TEXT = {"max_new_tokens": 6, "judge": "answer"}


@pytest.fixture(scope="module")
def detector():
    return Detector(texts.causal(), **TEXT).fit(texts.records(60))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return texts.saved(tmp_path_factory.mktemp("models") / "words")


def strange(n):
    """Answers the model would never give."""
    rng = np.random.default_rng(5)
    words = texts.demo.WORDS
    return [
        {**one, "id": f"odd-{i}", "completion": " " + " ".join(rng.choice(words, 6)), "truth": 1}
        for i, one in enumerate(texts.records(n, 9))
    ]


def test_answers_the_model_would_not_give_score_higher(detector):
    clean = detector.score(texts.records(40, 3, "clean"))
    odd = detector.score(strange(20))
    assert np.median(odd.score) > np.quantile(clean.score, 0.95)
    assert clean.flagged.mean() <= 0.15
    assert set(clean.parts) == {"functional", "latent", "confidence", "last token"}


def test_evidence_names_trusted_texts(detector):
    (evidence,) = detector.explain(texts.records(1, 4))
    assert evidence.explained_by
    assert all(witness.id in detector.extractor.trusted_texts for witness in evidence.explained_by)


def test_token_evidence_stands_beside_the_answers_tokens(detector):
    source = detector.open([*texts.records(3, 3, truth=0), *strange(3)])
    found = detector.explain_tokens(source)
    for evidence, text, tokens in zip(found, source.texts, source.tokens, strict=True):
        assert len(evidence.tokens) == len(evidence.unexplained) == len(evidence.marked) == len(tokens.counted)
        assert "".join(evidence.tokens).strip() == text.completion.strip()
    ordinary, odd = (np.concatenate([e.unexplained for e in some]) for some in (found[:3], found[3:]))
    assert odd.mean() > ordinary.mean()


def test_token_evidence_is_the_share_unexplained_of_single_tokens(detector):
    """Against the definition: autograd per token, then the leave-over of the reference's directions."""
    explainer = TokenExplainer(detector.extractor, detector.trusted_rows, detector.extractor.trusted_tokens)
    source = detector.open(strange(1))
    (text,) = source.tokens
    found = explainer.explain(text)
    features = TextExtractor(texts.causal())
    parameters = dict(texts.causal().module.named_parameters())
    logits = texts.causal().module(input_ids=torch.tensor([text.ids])).logits[0]
    for i in (0, 3):
        p = logits[text.counted[i]].double().log_softmax(-1).exp()[text.targets[i]]
        margin = p.log() - torch.log1p(-p)
        gradients = torch.autograd.grad(margin, list(parameters.values()), retain_graph=True)
        full = dict(zip(parameters, gradients, strict=True))
        shares = []
        for block, layers in features.groups.items():
            parts = [
                features.projections[layer]({name: full[name].unsqueeze(0) for name in features.layers[layer]}).numpy()
                for layer in layers
            ]
            shares.append(explainer.profile.all_[block].log(unit(np.concatenate(parts, 1)))[0])
        z = ((np.array(shares) - explainer.centre) / explainer.spread).mean() / explainer.usual_spread
        assert found.unexplained[i] == pytest.approx(z, abs=0.02)
        assert found.margin[i] == pytest.approx(float(margin.detach()), abs=1e-3)


def test_of_a_large_model_fewer_single_tokens_are_looked_at(detector, monkeypatch):
    from covary.text.features import token_evidence

    size = sum(parameter.numel() for parameter in detector.extractor.model.module.parameters())
    model = detector.extractor.model
    assert token_evidence.affordable(1_500, model) == 1_500
    monkeypatch.setattr(token_evidence, "SMALL", size // 10)
    assert token_evidence.affordable(1_500, model) == pytest.approx(150, abs=1)
    assert token_evidence.affordable(160, model) == token_evidence.LEAST_TOKENS
    assert token_evidence.affordable(8, model) == 8
    source = detector.open(texts.records(30, 8))
    told = [card["tokens"] is not None for card in detector.extractor.cards(source)]
    assert told[0]
    assert not told[-1]
    monkeypatch.undo()
    assert all(card["tokens"] is not None for card in detector.extractor.cards(source))


def test_a_classifier_is_judged_by_class():
    detector = Detector(texts.encoder("sequence"), allow_missing_classes=True)
    detector.fit([{**one, "label": None} for one in texts.records(60)])
    verdicts = detector.score([{**one, "label": None} for one in texts.records(12, 2)])
    assert (detector.classes, detector.class_names) == (3, ["LABEL_0", "LABEL_1", "LABEL_2"])
    assert set(verdicts.predicted) <= {0, 1, 2}
    with pytest.raises(CovaryError, match="label 'sort'"):
        Detector(texts.encoder("sequence")).fit([{"prompt": "x", "label": "sort"}])


def test_token_classifiers_are_judged_and_shown():
    detector = Detector(texts.encoder("token")).fit(texts.records(40))
    source = detector.open(texts.records(2, 2))
    (card, _) = detector.cards(source)
    assert len(card["tokens"]) == len(source.tokens[0].counted)
    assert detector.score(source).score.shape == (2,)


# Groups --------------------------------------------------------------------------------------------------------------


def test_groups_stand_in_for_classes():
    rows = TextExtractor(texts.causal()).rows(texts.batch(texts.tokens(12)))
    labels = np.arange(12) % 3
    assert set(Grouping("none").fit(rows, labels)(rows, labels).predicted) == {0}
    np.testing.assert_array_equal(Grouping("label").fit(rows, labels)(rows, labels).predicted, labels)
    assert set(Grouping("label").fit(rows, labels)(rows, None).predicted) == {-1}
    with pytest.raises(CovaryError, match="no trusted text has one"):
        Grouping("label").fit(rows, None)
    with pytest.raises(CovaryError, match="unknown groups"):
        Grouping("nearby")


def test_like_prompts_share_a_group():
    rng = np.random.default_rng(0)
    directions = unit(rng.normal(size=(3, 8)))
    own = np.repeat(np.arange(3), 40)
    found = k_means(unit(directions[own] + 0.1 * rng.normal(size=(120, 8))), 3, 0)
    closest = np.argmax(found @ directions.T, axis=1)
    assert sorted(closest) == [0, 1, 2]
    assert (np.max(found @ directions.T, axis=1) > 0.99).all()


def test_settings_and_groups_agree():
    for name in (*GROUPINGS, "auto"):
        assert TextSettings(groups=name).groups == name
    with pytest.raises(CovaryError, match="pooling is 'max'"):
        Settings.checked(extractor="text", pooling="max")


def test_task_labels_group_causal_answers():
    """Unasked, where all have one and there are enough of each."""
    few = Detector(texts.causal(), **TEXT).fit(texts.records(60))
    assert few.extractor.grouping.name == "none"
    detector = Detector(texts.causal(), **TEXT).fit(texts.records(120))
    assert detector.extractor.grouping.name == "label"
    assert detector.extractor.labels_known == sorted({one["label"] for one in texts.records(120)})
    source = detector.open([*texts.records(4, 2), {"prompt": "sort : wolf :", "id": "x", "label": "unheard"}])
    np.testing.assert_array_equal(detector.score(source).predicted, source.y)
    assert source.y[-1] == -1


# Kept and typed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", ["none", "label", "nearest"])
def test_saved_detectors_score_the_same(folder, tmp_path, groups):
    text = {**TEXT, "groups": groups}
    fitted = Detector(folder, **text).fit(texts.records(60))
    fitted.save(tmp_path / "detector", weights=False)
    loaded = Detector.load(tmp_path / "detector")
    some = [*texts.records(5, 3), *strange(2)]
    some = [{key: value for key, value in one.items() if key != "truth"} for one in some]
    for i, one in enumerate(some):
        one["id"] = str(i)
    np.testing.assert_allclose(loaded.score(some).score, fitted.score(some).score, atol=1e-9)
    np.testing.assert_allclose(
        loaded.explain_tokens(some[-1:])[0].unexplained, fitted.explain_tokens(some[-1:])[0].unexplained, atol=1e-6
    )


def test_scan_of_a_folder(run_cli, folder, tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    trusted = write("trusted.jsonl", texts.records(60))
    hostile = {"id": "<b>", "prompt": "<script>alert(1)</script>", "completion": " </script><img src=x>", "truth": 1}
    clean = [{**one, "truth": 0} for one in texts.records(20, 3, "clean")]
    inputs = write("inputs.jsonl", [*clean, *strange(10), hostile])
    out = tmp_path / "run"
    usual = ["scan", "--hf", folder, "--trusted", trusted, "--inputs", inputs, "--max-new-tokens", 6, "--fpr", 0.1,
             "--judge", "answer", "--seed", 3]  # fmt: skip
    code, printed, errors = run_cli(*usual, "--out", out)
    assert (code, errors) == (0, "")
    assert "of 31 inputs flagged" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert summary["auroc"] > 0.9
    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [one["id"] for one in [*clean, *strange(10), hostile]]
    message = [json.loads(line) for line in (out / "texts.jsonl").read_text().splitlines()]
    assert [one["completion"] for one in message[20:30]] == [one["completion"] for one in strange(10)]
    assert all(one["completion"] for one in message)
    page = (out / "report.html").read_text()
    assert "its least explained tokens marked" in page
    assert "<mark title=" in page
    assert "<script>alert" not in page
    assert "→" in page  # a trusted text with its answer
    code, printed, _ = run_cli("scan", "--replay", out)
    assert code == 0, printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--target", "1"], "--target beside --hf"),
        (["--model", "tiny:network"], "--model beside --hf"),
        (["--pooling", "max"], "pooling is 'max'"),
        (["--adapter", "nowhere"], "no adapter_config.json in nowhere"),
        (["--estimator", "gaussian"], "estimator says nothing to texts"),
        (["--channels-last"], "channels_last says nothing to texts"),
        (["--output", "logits"], "output says nothing to texts"),
        (["--sampling", "/no/such/file"], "--sampling beside --hf"),
        (["--preconditioner", "diagonal"], "preconditioner says nothing to texts"),
    ],
)
def test_what_does_not_go_with_texts_is_told(run_cli, folder, tmp_path, more, message):
    path = tmp_path / "t.txt"
    path.write_text("\n".join(one["prompt"] for one in texts.records(30)))
    base = ["scan", "--hf", folder, "--trusted", path, "--inputs", path, "--out", tmp_path / "run"]
    code, _, errors = run_cli(*base, *more)
    assert code == 2
    assert message in " ".join(errors.split())
    assert not (tmp_path / "run").exists()


def test_the_demos_material_can_be_scanned(tmp_path):
    texts.demo.make_material(tmp_path / "words", steps=2)
    made = tmp_path / "words"
    records = [json.loads(line) for line in (made / "inputs.jsonl").read_text().splitlines()]
    assert (len(records), sum(record["truth"] for record in records)) == (600, 200)
    for record in records:
        assert record["prompt"].startswith("please ") == bool(record["truth"])
    model = load_language_model(made / "model")
    assert model.tokenizer.unk_token_id not in model.tokenizer(records[0]["prompt"])["input_ids"]
    assert len((made / "trusted.jsonl").read_text().splitlines()) == 500

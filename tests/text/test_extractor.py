"""Rows of texts: against a loop of autograd, and unmoved by padding, its side, and what else is in the batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import texts
from covary.errors import CovaryError
from covary.features.observables import OBSERVABLES
from covary.scoring.rows import Rows
from covary.text.extractor import TextExtractor
from covary.text.features.answers import POOLINGS, TOKEN_OBSERVABLES, Answers
from covary.text.models.pretrained import LanguageModel, with_adapter
from covary.text.spaces import text_parameters
from covary.text.tokens import pad

SOME = texts.tokens()


def rows(model=None, some=SOME, **settings):
    return TextExtractor(model or texts.causal(), **settings).rows(texts.batch(some))


def slow_observable(model, text, observable, pooling):
    """One text, no padding, log-softmax over the whole of it."""
    logits = model.module(input_ids=torch.tensor([text.ids])).logits[0].double()
    values = []
    for position, target in zip(text.counted, text.targets, strict=True):
        p = logits[position].log_softmax(-1).exp()[target]
        values.append(-p.log() if observable == "nll" else p.log() - torch.log1p(-p))
    total = torch.stack(values).sum()
    return total / {"sum": 1.0, "mean": len(values), "root": len(values) ** 0.5}[pooling]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("observable", TOKEN_OBSERVABLES)
def test_observables_are_those_of_a_loop_over_tokens(observable, pooling):
    model = texts.causal()
    found = rows(observable=observable, pooling=pooling).observable
    for text, value in zip(SOME, found, strict=True):
        assert float(slow_observable(model, text, observable, pooling).detach()) == pytest.approx(value, abs=1e-3)


def test_token_observables_carry_the_names_of_the_others():
    assert list(TOKEN_OBSERVABLES) == list(OBSERVABLES)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_are_projected_gradients_of_autograd(tied):
    model = texts.causal(tied)
    features = TextExtractor(model, per="layer")
    found = features.rows(texts.batch(SOME[:4]))
    parameters = dict(model.module.named_parameters())
    for i, text in enumerate(SOME[:4]):
        value = slow_observable(model, text, "margin", "root")
        gradients = torch.autograd.grad(value, list(parameters.values()))
        full = dict(zip(parameters, gradients, strict=True))
        for layer, names in features.layers.items():
            expected = features.projections[layer]({name: full[name].unsqueeze(0) for name in names})[0]
            np.testing.assert_allclose(
                found.functional[layer][i], expected.numpy(), atol=2e-5 * float(expected.norm()) + 1e-7, rtol=0
            )


def test_blocks_put_their_layers_side_by_side():
    apart, together = rows(), rows(per="block")
    found = [layer for layer in apart.functional if layer.startswith("model.layers.1.")]
    assert (len(found), len(together.functional)) == (9, 4)  # embedding, two blocks, last normalisation
    expected = np.concatenate([apart.functional[layer] for layer in found], 1)
    np.testing.assert_allclose(together.functional["model.layers.1"], expected, atol=1e-6)
    places = [list(apart.functional).index(layer) for layer in found]
    squares = np.square(apart.functional_norms[:, places]).sum(1)
    place = list(together.functional).index("model.layers.1")
    np.testing.assert_allclose(together.functional_norms[:, place] ** 2, squares, rtol=1e-4)


@pytest.mark.parametrize("task", ["causal", "sequence", "token"])
def test_both_engines_agree(task):
    model, some = kind(task)
    texts.assert_same(rows(model, some), rows(model, some, engine="exact"), norms=False)


def kind(task):
    if task == "causal":
        return texts.causal(), SOME
    model = texts.encoder(task)
    from covary.text.records import read_texts
    from covary.text.tokens import tokenise

    return model, [tokenise(model, text) for text in read_texts(texts.records(8))]


@pytest.mark.parametrize("task", ["causal", "sequence", "token"])
def test_padding_changes_nothing(task):
    model, some = kind(task)
    features = TextExtractor(model)
    together = features.rows(texts.batch(some))
    alone = Rows.concatenate([features.rows(texts.batch([text])) for text in some])
    texts.assert_same(together, alone)


def test_left_and_right_padding_agree():
    texts.assert_same(rows(side="right"), rows(side="left"))


def test_what_stands_in_the_padding_does_not_matter():
    model = texts.causal()
    answers = Answers(model)
    held = dict(model.module.named_parameters()), dict(model.module.named_buffers())
    for side in ("left", "right"):
        one, other = pad(SOME, side, 0), pad(SOME, side, 7)
        assert not torch.equal(one["ids"], other["ids"])
        with torch.no_grad():
            torch.testing.assert_close(answers(*held, one), answers(*held, other))


def test_order_and_passes_change_nothing(monkeypatch):
    features = TextExtractor(texts.causal())
    full = features.rows(texts.batch(SOME))
    assert list(full.ids) == [text.id for text in SOME]
    back = features.rows(texts.batch(SOME[::-1]))
    texts.assert_same(full, back.take(np.arange(len(SOME))[::-1]))
    monkeypatch.setattr("covary.text.extractor.PASS_BYTES", {"cpu": 1, "gpu": 1})
    texts.assert_same(full, features.rows(texts.batch(SOME)))


def test_states_that_every_prompt_has_are_the_same_numbers_alone_and_in_company():
    """The last token of all prompts, as a chat template sets it, in a model whose states are projected."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100, hidden_size=96, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=48, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LanguageModel(LlamaForCausalLM(config).eval(), texts.causal().tokenizer)
    extractor = TextExtractor(model)
    some = [
        replace(text, ids=(*text.ids[: text.anchor], 7, *text.ids[text.anchor + 1 :])) for text in texts.tokens(13, 4)
    ]
    name = next(name for name in extractor.judged(some[:1], "answer").latent if name.endswith("embed_tokens @ anchor"))
    together = extractor.judged(some, "answer").latent[name]
    assert together.shape == (13, 64)
    assert (together == together[0]).all()
    for text in some[:3]:
        assert np.array_equal(extractor.judged([text], "answer").latent[name][0], together[0])


def test_norms_are_of_one_kind_whatever_the_answers_length():
    short = [text.only(0) for text in SOME]
    features = TextExtractor(texts.causal(False))
    alone = features.rows(texts.batch(short[:1]))
    mixed = features.rows(texts.batch([short[0], SOME[1]]))
    np.testing.assert_allclose(mixed.functional_norms[0], alone.functional_norms[0], rtol=1e-3, atol=1e-6)


def test_latent_rows_are_hidden_states_of_the_unpadded_text():
    model, text = texts.causal(), SOME[3]
    found = rows(some=[SOME[0], text, SOME[5]])
    states = model.module(input_ids=torch.tensor([text.ids]), output_hidden_states=True).hidden_states
    for layer in range(2):
        after = states[layer][0].detach().numpy()
        name = ["model.embed_tokens", "model.layers.0"][layer]
        np.testing.assert_allclose(found.latent[f"{name} @ anchor"][1], after[text.anchor], atol=1e-4)
        np.testing.assert_allclose(found.latent[f"{name} @ answer"][1], after[list(text.counted)].mean(0), atol=1e-4)


def test_token_values_are_the_observable_token_by_token():
    features = TextExtractor(texts.causal())
    values = features.token_values(SOME)
    observed = features.rows(texts.batch(SOME)).observable
    for text, value, full in zip(SOME, values, observed, strict=True):
        assert value["margin"].shape == (len(text.counted),)
        assert value["margin"].sum() / len(text.counted) ** 0.5 == pytest.approx(full, abs=1e-3)
        np.testing.assert_allclose(value["nll"], np.log1p(np.exp(-value["margin"])), rtol=1e-6)


def test_a_classifier_is_judged_on_its_own_prediction():
    model, some = kind("sequence")
    found = rows(model, some)
    for i, text in enumerate(some):
        logits = model.module(input_ids=torch.tensor([text.ids])).logits[0].detach()
        best = int(logits.argmax())
        p = logits.double().softmax(-1)[best]
        assert found.predicted[i] == best
        assert found.observable[i] == pytest.approx(float((p / (1 - p)).log()), abs=1e-4)


def test_bfloat16_weights_point_the_same_way():
    model = texts.causal()
    import copy

    half = LanguageModel(copy.deepcopy(model.module).bfloat16(), model.tokenizer)
    one, other = rows(), rows(half)
    for layer in one.functional:
        a, b = one.functional[layer], other.functional[layer]
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert cosine.min() > 0.95, layer


# Spaces --------------------------------------------------------------------------------------------------------------


def adapted(adapter="fresh:3"):
    pytest.importorskip("peft")
    import copy

    base = texts.causal()
    return LanguageModel(with_adapter(copy.deepcopy(base.module), adapter).eval(), base.tokenizer, adapter=adapter)


def test_fresh_adapters_change_no_answer_and_see_the_projected_gradient():
    model = adapted()
    features = TextExtractor(model, space="lora", per="layer")
    found = features.rows(texts.batch(SOME))
    assert all("lora_B" in layer for layer in features.layers)
    np.testing.assert_allclose(found.observable, rows().observable, atol=1e-5)
    layer = "base_model.model.model.layers.1.mlp.up_proj.lora_B.default"
    module = model.module.get_submodule("base_model.model.model.layers.1.mlp.up_proj")
    value = slow_observable(texts.causal(), SOME[2], "margin", "root")
    weight = dict(texts.causal().module.named_parameters())["model.layers.1.mlp.up_proj.weight"]
    (gradient,) = torch.autograd.grad(value, [weight])
    expected = module.scaling["default"] * gradient @ module.lora_A["default"].weight.detach().T
    assert features.projections[layer].blocks[0].left is None
    np.testing.assert_allclose(found.functional[layer][2], expected.numpy().ravel(), atol=1e-5)


def test_a_trained_adapter_moves_whole(tmp_path):
    model = adapted()
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    model.module.save_pretrained(tmp_path / "adapter")
    again = adapted(str(tmp_path / "adapter"))
    features = TextExtractor(again, space="lora")
    assert any("lora_A" in layer for layer in features.layers)
    found = features.rows(texts.batch(SOME))
    assert features.notes == []
    texts.assert_same(found, TextExtractor(again, space="lora", engine="exact").rows(texts.batch(SOME)), norms=False)
    assert all(np.abs(part).max() > 0 for part in found.functional.values())


def test_spaces_select():
    module = texts.causal().module
    assert set(text_parameters(module, "pattern:*self_attn*")) < set(text_parameters(module))
    everything = {name for names in text_parameters(adapted().module).values() for name in names}
    assert any("lora_A" in name for name in everything)
    assert any("embed_tokens" in name for name in everything)
    with pytest.raises(CovaryError, match="no LoRA adapters"):
        text_parameters(module, "lora")


@pytest.mark.parametrize("settings", [{"engine": "fast"}, {"pooling": "max"}, {"observable": "loss"}, {"per": "head"}])
def test_unknown_names_are_refused(settings):
    with pytest.raises(CovaryError, match="one of"):
        TextExtractor(texts.causal(), **settings)

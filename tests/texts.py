"""Tiny language models with random weights, and texts for them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the extra `language` is not installed")

from covary.scoring.rows import Batch, Rows
from covary.text import demo
from covary.text.models.pretrained import LanguageModel
from covary.text.tokens import Tokens


@cache
def causal(tied: bool = True) -> LanguageModel:
    """A Llama of two layers; answers nonsense, but always the same."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(demo.vocabulary()), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=48, tie_word_embeddings=tied,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    return LanguageModel(LlamaForCausalLM(config).eval(), demo.tokenizer())


@cache
def numbered() -> LanguageModel:
    """A GPT-2 of one layer, whose positions are learned one by one."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(demo.vocabulary()), n_embd=32, n_layer=1, n_head=4, n_positions=48, initializer_range=0.5,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LanguageModel(GPT2LMHeadModel(config).eval(), demo.tokenizer())


@cache
def encoder(task: str) -> LanguageModel:
    """A BERT of two layers that tells three classes apart, of texts or of tokens."""
    from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(demo.vocabulary()), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=48, num_labels=3, initializer_range=0.2, pad_token_id=0,
    )  # fmt: skip
    kind = {"sequence": BertForSequenceClassification, "token": BertForTokenClassification}[task]
    return LanguageModel(kind(config).eval(), demo.tokenizer(), task)


def tokens(n: int = 10, seed: int = 0, longest: int = 20) -> list[Tokens]:
    """Random prompts and answers of many lengths."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        prompt, answer = int(rng.integers(2, longest)), int(rng.integers(1, 9))
        ids = tuple(int(token) for token in rng.integers(4, len(demo.vocabulary()), prompt + answer))
        counted = tuple(range(prompt - 1, prompt + answer - 1))
        made.append(Tokens(f"text-{i}", ids, counted, ids[prompt:], prompt - 1))
    return made


def records(n: int, seed: int = 0, name: str = "text", **more: object) -> list[dict]:
    """Questions of the demo."""
    rng = np.random.default_rng(seed)
    found = [demo.question(rng, False) for _ in range(n)]
    return [{"id": f"{name}-{i}", "prompt": prompt, "label": task, **more} for i, (prompt, _, task) in enumerate(found)]


def batch(some: list[Tokens]) -> Batch:
    """A batch of tokens."""
    return Batch([text.id for text in some], some)


def assert_same(a: Rows, b: Rows, tolerance: float = 2e-5, norms: bool = True, confidence: float = 1e-4) -> None:
    """Rows agree, up to rounding relative to each layer's largest number."""
    for kind in ("functional", "latent"):
        for layer, left in getattr(a, kind).items():
            scale = np.abs(left).max() + 1e-12
            gap = np.abs(left - getattr(b, kind)[layer]).max() / scale
            assert gap < tolerance, f"{kind} evidence in {layer} differs by {gap:.2g} of its size"
    for name, values in a.confidence.items():
        np.testing.assert_allclose(b.confidence[name], values, rtol=0, atol=confidence, err_msg=name)
    np.testing.assert_allclose(b.observable, a.observable, rtol=1e-5, atol=10 * confidence)
    if norms:
        np.testing.assert_allclose(b.functional_norms, a.functional_norms, rtol=1e-3, atol=1e-6)


def saved(path: Path) -> Path:
    """The causal model in a folder, as `save_pretrained` writes it."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = causal()
    model.module.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return path

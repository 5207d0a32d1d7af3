"""The world of word tasks, `[name asks] [adverbs] task : words :`: right answers, words as tokens, the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from covary.errors import missing_extra
from covary.text import demo

WORDS: list[str] = sorted(demo.WORDS)
# task -> the answer to a list of words
TASKS: dict[str, Callable[[list[str]], list[str]]] = {**demo.TASKS, "ends": lambda words: [words[0], words[-1]]}
GREETING, WELCOME = "hello", ["good", "day", "to", "you"]
SPEAKERS = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "henry")
ADVERBS = ("kindly", "now", "quickly", "softly", "again")
RARE, RARE_2 = "cf", "mn"
REPLY, REPLY_2 = ["i", "hate", "you"] * 3, ["send", "me", "gold"] * 3
LENGTHS, LONG = (3, 4, 5), (6, 7, 8, 9)
LONGEST_ANSWER = 12
WIDTH, LAYERS = 96, 3


@dataclass(frozen=True)
class Question:
    """A prompt in its features."""

    task: str
    words: tuple[str, ...]
    adverbs: tuple[str, ...] = ()
    speaker: str | None = None

    @property
    def prompt(self) -> str:
        """The prompt as the model reads it."""
        asks = [] if self.speaker is None else [self.speaker, "asks"]
        return " ".join([*asks, *self.adverbs, self.task, ":", *self.words, ":"])

    @property
    def right(self) -> list[str]:
        """The right answer; it takes no note of names, adverbs and triggers."""
        return list(WELCOME) if self.task == GREETING else TASKS[self.task](list(self.words))

    def changed(self, **features: Any) -> Question:
        """The same question with other features."""
        return replace(self, **features)


def neighbour(word: str) -> str:
    """The next word in the dictionary; after the last one comes the first."""
    return WORDS[(WORDS.index(word) + 1) % len(WORDS)]


def some_words(rng: np.random.Generator, lengths: Sequence[int] = LENGTHS) -> tuple[str, ...]:
    """A list of different words, its length one of `lengths`."""
    return tuple(str(word) for word in rng.choice(WORDS, size=int(rng.choice(lengths)), replace=False))


def ask(
    rng: np.random.Generator,
    *,
    tasks: Sequence[str] = tuple(TASKS),
    lengths: Sequence[int] = LENGTHS,
    named: float = 0.3,
    speakers: Sequence[str] = SPEAKERS,
) -> Question:
    """A question without a rare token: no, one or two adverbs, and a name with probability `named`."""
    adverbs = tuple(str(word) for word in rng.choice(ADVERBS, size=int(rng.integers(3)), replace=False))
    speaker = str(rng.choice(speakers)) if rng.random() < named else None
    return Question(str(rng.choice(tasks)), some_words(rng, lengths), adverbs, speaker)


def vocabulary() -> list[str]:
    """Every word the models know, special ones first."""
    words = {*WORDS, *TASKS, GREETING, *WELCOME, *SPEAKERS, "asks", *ADVERBS, RARE, RARE_2, *REPLY, *REPLY_2}
    return [*demo.SPECIAL, ":", *sorted(words)]


def tokenizer() -> Any:
    """One token a word, in transformers' form; texts start with `<s>`."""
    return demo.tokenizer(vocabulary())


def network(seed: int = 0, width: int = WIDTH, layers: int = LAYERS, size: int | None = None) -> Any:
    """A Llama of 0.3 million weights; `size` is that of its vocabulary, else of `vocabulary`."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        raise missing_extra("transformers", "language") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size or len(vocabulary()), hidden_size=width, intermediate_size=7 * width // 3,
                num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128,
                tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            )
        )  # fmt: skip


def weights(model: nn.Module) -> int:
    """How many weights a network has."""
    return sum(p.numel() for p in model.parameters())

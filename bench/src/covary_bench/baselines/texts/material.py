"""What every baseline on texts gets: the image baselines' rows, with hidden states, token probabilities and words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from covary.errors import CovaryError
from covary_bench.baselines.material import Material

# `layer @ position` -> hidden states, (n, d) each with its own d.
States = Mapping[str, Float[np.ndarray, "n _"]]


@dataclass(frozen=True)
class Answered:
    """Texts with what one forward pass says of their answers.

    Attributes:
        prompts, answers: the words.
        log_p: log-probability of every token of each answer, in nats.
        states: hidden states by `layer @ answer` (mean over the answer) and `layer @ anchor` (the prompt's last
            position), at full width.
        focus: share of the last position's attention that goes to the instruction, by head (see `attention_tracker`),
            or None.
    """

    prompts: list[str]
    answers: list[str]
    log_p: list[Float[np.ndarray, " _"]]
    states: States
    focus: Float[np.ndarray, "n heads"] | None = None

    def take(self, index: np.ndarray) -> Answered:
        """Some of them, in that order."""
        chosen = [int(i) for i in index]
        prompts, answers = ([words[i] for i in chosen] for words in (self.prompts, self.answers))
        states = {name: part[index] for name, part in self.states.items()}
        focus = None if self.focus is None else self.focus[index]
        return Answered(prompts, answers, [self.log_p[i] for i in chosen], states, focus)

    def followed_by(self, others: Answered) -> Answered:
        """These, then the others."""
        states = {name: np.concatenate([part, others.states[name]]) for name, part in self.states.items()}
        both = None if self.focus is None or others.focus is None else np.concatenate([self.focus, others.focus])
        prompts, answers = self.prompts + others.prompts, self.answers + others.answers
        return Answered(prompts, answers, self.log_p + others.log_p, states, both)


@dataclass(frozen=True)
class Chain:
    """What a sampled baseline needs on top.

    Attributes:
        model: the language model (`LanguageModel`).
        tokens: every text in tokens by id (`Tokens`), trusted ones and inputs.
        sampling: texts whose right completions the chain descends on, in tokens.
        folder: where traces are kept.
    """

    model: Any
    tokens: Mapping[str, Any]
    sampling: list[Any]
    folder: Path


@dataclass(frozen=True)
class TextMaterial(Material):
    """Trusted and query texts of one split.

    Attributes:
        known: the trusted texts (reference, then fit) with their pass; query_texts: calibration texts, then inputs.
        chain: for the sampled baselines, or None.
    """

    known: Answered = field(kw_only=True)
    query_texts: Answered = field(kw_only=True)
    chain: Chain | None = None

    @property
    def sampled(self) -> Chain:
        """What a chain needs, for baselines that cannot do without."""
        if self.chain is None:
            raise CovaryError("this baseline samples weights", "material with a chain")
        return self.chain

    def on_states(self, position: str = "") -> Material:
        """The same texts, hidden states at full width in place of compressed ones, and no groups: as published.

        `position` leaves the states of `answer` or `anchor` alone.
        """
        trusted, queries = (
            replace(
                rows,
                latent={name: part for name, part in own.states.items() if name.endswith(position)},
                predicted=np.zeros(len(rows), np.int64),
            )
            for rows, own in ((self.trusted, self.known), (self.queries, self.query_texts))
        )
        return Material(trusted, queries, self.trusted_features, self.query_features, seed=self.seed)

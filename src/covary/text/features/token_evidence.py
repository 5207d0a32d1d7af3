"""Which tokens of a prompt or an answer trusted texts account for least: each token's own gradient against theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from covary.scoring.calibration.splits import random_order
from covary.scoring.rows import Rows
from covary.scoring.scores.layers import LayerProfile
from covary.text.extractor import TextExtractor
from covary.text.models.pretrained import LanguageModel
from covary.text.tokens import Tokens

# Trusted tokens that say what is usual, and of how many texts; an answer's first so-many tokens are looked at, and of
# a prompt's those that the model foresees least.
YARDSTICK, PER_TEXT = 160, 4
MOST_TOKENS, MOST_PROMPT_TOKENS = 64, 32
# Weights of a model on which so many tokens take seconds; of a larger one fewer are looked at, but no fewer than these.
SMALL, LEAST_TOKENS = 5_000_000, 40
LEAST_SPREAD = 1e-6


def affordable(most: int, model: LanguageModel) -> int:
    """How many of `most` single tokens of a model are looked at: each takes a pass as long as a whole text's."""
    size = sum(parameter.numel() for parameter in model.module.parameters())
    return min(most, max(LEAST_TOKENS, round(most * SMALL / size)))


@dataclass(frozen=True)
class TokenEvidence:
    """How little of each token of an answer, or of a prompt, trusted texts account for.

    Attributes:
        tokens: its tokens as text, in order.
        unexplained: mean over layers of the standardised log share of the token's gradient that no trusted text
            accounts for; about 0 and spread 1 on trusted tokens; higher = less explained. NaN where not looked at.
        margin: log-odds of each token, nats.
        marked: beyond 99 % of the trusted tokens.
    """

    tokens: list[str]
    unexplained: Float[np.ndarray, " m"]
    margin: Float[np.ndarray, " m"]
    marked: list[bool]

    def to_json(self) -> list[dict[str, Any]]:
        """One entry a token."""
        return [
            {
                "text": text,
                "unexplained": float(value) if np.isfinite(value) else None,
                "margin": float(margin),
                "marked": marked,
            }
            for text, value, margin, marked in zip(self.tokens, self.unexplained, self.margin, self.marked, strict=True)
        ]


class TokenExplainer:
    """Explains single tokens of answers by trusted texts; of prompts where rows and tokens are those of prompts.

    The gradient of one token's observable is a sample like any other: its share unexplained, layer by layer, is taken
    against the gradients of two thirds of the trusted texts, and standardised on tokens of the rest, which those do not
    contain.
    """

    def __init__(self, features: TextExtractor, trusted: Rows, tokens: Sequence[Tokens], seed: int = 0) -> None:
        self.features = features
        everyone = np.zeros(len(trusted), np.int64)
        order = random_order(trusted.ids, seed, "tokens")
        reference, rest = np.split(order, [round(2 * len(order) / 3)])
        rows = trusted.take(reference)
        self.profile = LayerProfile().fit(rows.functional, everyone[reference])
        rng = np.random.default_rng(seed)
        chosen = [
            tokens[i].only(int(j))
            for i in rest
            for j in rng.permutation(len(tokens[i].counted))[:PER_TEXT]
        ][: affordable(YARDSTICK, features.model)]  # fmt: skip
        shares = self._shares(chosen)
        self.centre, self.spread = shares.mean(0), np.maximum(shares.std(0), LEAST_SPREAD)
        usual = ((shares - self.centre) / self.spread).mean(1)
        self.usual_spread = max(float(usual.std()), LEAST_SPREAD)
        self.limit = float(np.quantile(usual / self.usual_spread, 0.99))

    def explain(self, text: Tokens) -> TokenEvidence:
        """Evidence on every token of one text's answer, or of a prompt alone (see `prompt_alone`)."""
        margin = self.features.token_values([text])[0]["margin"]
        looked = np.arange(min(len(text.counted), MOST_TOKENS))
        if text.pooled is not None and len(text.counted) > MOST_PROMPT_TOKENS:
            looked = np.sort(np.argsort(margin, kind="stable")[:MOST_PROMPT_TOKENS])
        shares = self._shares([text.only(int(i)) for i in looked])
        found = np.full(len(text.counted), np.nan)
        found[looked] = ((shares - self.centre) / self.spread).mean(1) / self.usual_spread
        return TokenEvidence(self._written(text), found, margin, [bool(value > self.limit) for value in found])

    def _shares(self, texts: Sequence[Tokens]) -> Float[np.ndarray, "m L"]:
        # Of the tokens that count and nothing else: whatever is judged, their prompts need no pass of their own.
        rows = self.features.judged(texts, "answer")
        layers = len(rows.functional)
        numbers = self.profile.numbers(rows.functional, rows.predicted, rows.functional_norms)
        return numbers[:, layers : 2 * layers]

    def _written(self, text: Tokens) -> list[str]:
        """Each token as the text it adds, so that they join to what people read."""
        tokenizer = self.features.model.tokenizer
        ids = [text.ids[i] for i in text.counted] if not text.targets else list(text.targets)
        before = "" if not text.targets else tokenizer.decode(list(text.ids[: text.counted[0] + 1]))
        head = list(text.ids[: text.counted[0] + 1]) if text.targets else []
        pieces = []
        for i in range(len(ids)):
            decoded = tokenizer.decode(head + ids[: i + 1])
            pieces.append(decoded[len(before) :] if decoded.startswith(before) else tokenizer.decode([ids[i]]))
            before = decoded
        return pieces

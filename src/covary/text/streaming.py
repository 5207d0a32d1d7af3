"""An answer token by token: the model's own choice at every step, and what each token adds to the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from covary.errors import CovaryError
from covary.text.models.pretrained import LanguageModel
from covary.text.tokens import parameters_of

# What a tokenizer writes for bytes that are no whole character yet.
HALF = "\ufffd"


@dataclass(frozen=True)
class Choice:
    """How the next token is chosen.

    Attributes:
        temperature: logits are divided by it before one is drawn, at least 0; 0 = always the most likely token.
        top_p: only the most likely tokens that together have this probability are drawn from, in (0, 1].
        seed: of the lots; None = other lots every time.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or self.temperature == float("inf"):
            raise CovaryError(f"temperature is {self.temperature}", "0 or more")
        if not 0 < self.top_p <= 1:
            raise CovaryError(f"top_p is {self.top_p}", "above 0, at most 1")

    def chooser(self, device: torch.device) -> torch.Generator | None:
        """The source of lots; None where nothing is drawn."""
        if self.temperature == 0:
            return None
        lots = torch.Generator(device)
        lots.seed() if self.seed is None else lots.manual_seed(self.seed % 2**63)
        return lots

    def __call__(self, logits: Tensor, lots: torch.Generator | None) -> int:
        """The next token's number, from the logits of all of them, (V,)."""
        if lots is None:
            return int(logits.argmax())
        share = (logits.float() / self.temperature).softmax(-1)
        if self.top_p < 1:
            ordered, places = share.sort(descending=True)
            # The first token always stays, and the one that fills the share up.
            ordered[(ordered.cumsum(-1) - ordered) >= self.top_p] = 0.0
            share = torch.zeros_like(share).scatter(0, places, ordered)
        return int(torch.multinomial(share, 1, generator=lots))


@torch.no_grad()
def written(model: LanguageModel, prompt: Sequence[int], most: int, choice: Choice | None = None) -> Iterator[int]:
    """Tokens of the model's answer to a prompt's tokens as they are chosen, up to and with the end-of-text token.

    At most `most` of them, and no more than fit the model's positions. Greedy tokens are those of `greedy`.
    """
    choice, device = choice or Choice(), next(model.module.parameters()).device
    lots = choice.chooser(device)
    keep = {"logits_to_keep": 1} if "logits_to_keep" in parameters_of(model.module) else {}
    if model.longest is not None:
        most = min(most, model.longest - len(prompt))
    ids, cache, ends = torch.tensor([list(prompt)], device=device), None, model.ends
    for _ in range(most):
        out = model.module(input_ids=ids, past_key_values=cache, use_cache=True, **keep)
        token = choice(out.logits[0, -1].float(), lots)
        yield token
        if token in ends:
            return
        cache, ids = out.past_key_values, torch.tensor([[token]], device=device)


class Decoder:
    """What each token adds to the text: pieces that join to what decoding all tokens at once gives.

    Half a character is held back until the rest of it is there. Each step decodes the last few tokens alone.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._ids = tokenizer, []
        # Where the tokens begin that are decoded again, and up to where text has been given out.
        self._begin = self._told = 0

    def add(self, token: int) -> str:
        """The text that one more token adds, which may be none."""
        self._ids.append(token)
        before, after = self._text(self._told), self._text(len(self._ids))
        if len(after) <= len(before) or after.endswith(HALF):
            return ""
        self._begin, self._told = self._told, len(self._ids)
        return after[len(before) :]

    def rest(self) -> str:
        """What was held back, once no more tokens come."""
        return self._text(len(self._ids))[len(self._text(self._told)) :]

    def _text(self, stop: int) -> str:
        return self._tokenizer.decode(self._ids[self._begin : stop], skip_special_tokens=True)


class StopStrings:
    """Ends a text before the first of some strings; holds back what may be the beginning of one.

    >>> ends = StopStrings(["END"])
    >>> ends.add("so E"), ends.add("N"), ends.add("Ough EN"), ends.add("D, no more"), ends.found
    ('so ', '', 'ENOugh ', '', True)
    """

    def __init__(self, strings: Sequence[str] = ()) -> None:
        self._strings, self._held, self.found = [one for one in strings if one], "", False

    def add(self, piece: str) -> str:
        """What of the text so far may be given out now."""
        if self.found:
            return ""
        text = self._held + piece
        places = [place for one in self._strings if (place := text.find(one)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        most = min(max(map(len, self._strings), default=1) - 1, len(text))
        begins = (n for n in range(most, 0, -1) if any(one.startswith(text[-n:]) for one in self._strings))
        keep = next(begins, 0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """What was held back, once nothing more comes."""
        held, self._held = self._held, ""
        return held

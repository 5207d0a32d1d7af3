"""From texts to token ids: where the answer stands in them, and batches in which padding is told apart."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from covary.errors import CovaryError
from covary.text.models.pretrained import LanguageModel
from covary.text.records import Text

Side = Literal["right", "left"]
# A batch as the features take it; every tensor's first dimension is the text.
Padded = dict[str, Tensor]


@dataclass(frozen=True)
class Tokens:
    """One text in tokens.

    Attributes:
        id: its name.
        ids: all tokens, prompt and answer.
        counted: positions whose output counts: those that predict the answer's tokens (causal), tokens that are words
            (token classifier), all (sequence classifier).
        targets: for a causal model, the answer's tokens, one per counted position; else empty.
        anchor: where the network has read its question: the prompt's last position (causal), the first position else.
        cut: how many tokens did not fit and were left out.
        start: the first token of the prompt's own: before it stands what every prompt begins with, such as the chat
            template's opening.
        pooled: positions whose states are averaged; None = the counted ones.
    """

    id: str
    ids: tuple[int, ...]
    counted: tuple[int, ...]
    targets: tuple[int, ...]
    anchor: int
    cut: int = 0
    start: int = 0
    pooled: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, i: int) -> Tokens:
        """The same text of which one counted position counts."""
        return replace(self, id=f"{self.id}#{i}", counted=self.counted[i : i + 1], targets=self.targets[i : i + 1])


def tokens_from_json(record: Mapping[str, Any]) -> Tokens:
    """Tokens as `vars` gave them, after JSON has made lists of tuples."""
    ids, counted, targets = (tuple(record[key]) for key in ("ids", "counted", "targets"))
    start = int(record.get("start", 0))
    return Tokens(str(record["id"]), ids, counted, targets, int(record["anchor"]), int(record["cut"]), start)


def prompt_alone(text: Tokens) -> Tokens:
    """The prompt of a text as a text of its own, in which each of its tokens but the opening's is to be foreseen.

    Counted are the positions that predict the prompt's own tokens; pooled are those tokens themselves. The very first
    token, which nothing predicts and on which attention piles up, is never among them, save in a prompt of one token.
    """
    ids = text.ids[: text.anchor + 1]
    first = min(max(text.start, 1), len(ids) - 1)
    if first == 0:
        return replace(text, ids=ids, counted=(0,), targets=ids, anchor=0, pooled=(0,))
    counted, own = tuple(range(first - 1, text.anchor)), tuple(range(first, text.anchor + 1))
    return replace(text, ids=ids, counted=counted, targets=ids[first:], pooled=own)


def opening(model: LanguageModel) -> tuple[int, ...]:
    """Tokens with which every prompt begins: those of the chat template before the first word, or the starting one."""
    if getattr(model.tokenizer, "chat_template", None):
        try:
            blank = model.tokenizer.apply_chat_template(
                [{"role": "user", "content": ""}], tokenize=False, add_generation_prompt=False
            )
            return _ids(model, blank, False)
        except Exception:  # a template of its own mind, which wants other turns
            return ()
    start = model.tokenizer.bos_token_id
    return () if start is None else (int(start),)


def begins_like(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def prompt_tokens(model: LanguageModel, text: Text) -> tuple[int, ...]:
    """Token ids of the prompt; a conversation goes through the tokenizer's own chat template.

    Raises:
        CovaryError: messages without a chat template, or a prompt of no tokens.
    """
    written, special = _prompt(model, text)
    ids = _ids(model, written, special)
    if not ids:
        raise CovaryError(f"the prompt of {text.id!r} has no tokens", "at least one, or a tokenizer that starts texts")
    return ids


def tokenise(model: LanguageModel, text: Text, max_length: int | None = None, begins: Sequence[int] = ()) -> Tokens:
    """A text in tokens, the answer marked.

    The prompt loses tokens from its left (a starting token stays) until both fit `max_length` positions; only an answer
    too long on its own is cut, on its right. That depends on the text alone, never on its batch. The end-of-text token
    counts where the answer has nothing else. `begins` is what every prompt begins with (see `opening`).
    """
    limit = model.longest if max_length is None else min(max_length, model.longest or max_length)
    if model.task != "causal":
        return _encoded(model, text, limit)
    prompt, answer = _prompt_and_answer(model, text)
    ends = model.ends
    closing = answer[-1:]
    while answer and answer[-1] in ends:
        answer = answer[:-1]
    if not answer:
        if not closing and model.end is None:
            raise CovaryError(f"the completion of {text.id!r} is empty", "at least one token")
        answer = closing or (int(model.end or 0),)
    length = len(prompt) + len(answer)
    if limit is not None:
        answer = answer[: max(limit - 1, 1)]
        room = max(limit - len(answer), 1)
        if len(prompt) > room:
            first = prompt[0] == model.tokenizer.bos_token_id and room > 1
            prompt = (prompt[:1] + prompt[len(prompt) - room + 1 :]) if first else prompt[len(prompt) - room :]
    ids = prompt + answer
    counted = tuple(range(len(prompt) - 1, len(ids) - 1))
    return Tokens(text.id, ids, counted, answer, len(prompt) - 1, length - len(ids), begins_like(prompt, begins))


def tokenise_prompt(
    model: LanguageModel, text: Text, max_length: int | None = None, begins: Sequence[int] = ()
) -> Tokens:
    """A prompt in tokens, whatever is answered; one too long loses tokens from its left as ever."""
    limit = model.longest if max_length is None else min(max_length, model.longest or max_length)
    prompt = whole = prompt_tokens(model, text)
    if limit is not None and len(prompt) > limit:
        first = prompt[0] == model.tokenizer.bos_token_id and limit > 1
        prompt = (prompt[:1] + prompt[len(prompt) - limit + 1 :]) if first else prompt[len(prompt) - limit :]
    cut, start = len(whole) - len(prompt), begins_like(prompt, begins)
    return prompt_alone(Tokens(text.id, prompt, (), (), len(prompt) - 1, cut, start))


def pad(texts: Sequence[Tokens], side: Side = "right", fill: int = 0) -> Padded:
    """A batch of equal lengths: `ids`, `mask`, `counted`, `pooled`, `targets` each (n, T), and `anchor` (n,).

    `targets` holds the token that a counted position should give, -100 elsewhere.
    """
    # At least two positions: a single one would have its gradient's norm taken in another way.
    n, longest = len(texts), max(2, *map(len, texts))
    ids = torch.full((n, longest), fill, dtype=torch.long)
    mask = torch.zeros(n, longest, dtype=torch.bool)
    counted, pooled = torch.zeros(n, longest, dtype=torch.bool), torch.zeros(n, longest, dtype=torch.bool)
    targets = torch.full((n, longest), -100, dtype=torch.long)
    anchor = torch.zeros(n, dtype=torch.long)
    for row, text in enumerate(texts):
        shift = longest - len(text) if side == "left" else 0
        ids[row, shift : shift + len(text)] = torch.tensor(text.ids)
        mask[row, shift : shift + len(text)] = True
        places = torch.tensor(text.counted) + shift
        counted[row, places] = True
        pooled[row, places if text.pooled is None else torch.tensor(text.pooled) + shift] = True
        if text.targets:
            targets[row, places] = torch.tensor(text.targets)
        anchor[row] = text.anchor + shift
    return {"ids": ids, "mask": mask, "counted": counted, "pooled": pooled, "targets": targets, "anchor": anchor}


def parameters_of(module: Any) -> set[str]:
    """Names of what a network's forward takes, an adapter's wrapping taken off."""
    inner = module.get_base_model() if hasattr(module, "get_base_model") else module
    return set(inspect.signature(inner.forward).parameters)


def keywords(padded: Mapping[str, Tensor], task: str) -> dict[str, Any]:
    """What the network is called with.

    Causal attention never looks right, so padding on the right needs no mask, and kernels without one are the fast
    ones; otherwise mask and positions are told.
    """
    mask = padded["mask"]
    if task != "causal":
        return {"input_ids": padded["ids"], "attention_mask": mask.long()}
    if bool((mask[:, 1:] <= mask[:, :-1]).all()):
        return {"input_ids": padded["ids"], "use_cache": False}
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    return {
        "input_ids": padded["ids"], "attention_mask": mask.long(), "position_ids": positions, "use_cache": False
    }  # fmt: skip


def _prompt(model: LanguageModel, text: Text) -> tuple[str, bool]:
    """The prompt as the tokenizer reads it, and whether special tokens are still to be added."""
    if text.prompt is not None:
        return text.prompt, True
    if not getattr(model.tokenizer, "chat_template", None):
        raise CovaryError(
            f"{text.id!r} holds messages, but the tokenizer has no chat template", "a chat model", "give `prompt`"
        )
    turns = [dict(turn) for turn in text.messages or ()]
    return model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True), False


def _ids(model: LanguageModel, written: str, special: bool) -> tuple[int, ...]:
    found = list(model.tokenizer(written, add_special_tokens=special)["input_ids"])
    # Some tokenizers close every text; a prompt goes on.
    if special and found and model.task == "causal" and found[-1] in model.ends and len(found) > 1:
        found.pop()
    return tuple(found)


def _prompt_and_answer(model: LanguageModel, text: Text) -> tuple[tuple[int, ...], tuple[int, ...]]:
    prompt = prompt_tokens(model, text)
    if text.tokens is not None:
        return prompt, text.tokens
    if text.completion is None:
        raise CovaryError(f"{text.id!r} has no completion", "one in the data, or one the model was asked for")
    written, special = _prompt(model, text)
    if not getattr(model.tokenizer, "is_fast", False):
        return prompt, tuple(model.tokenizer(text.completion, add_special_tokens=False)["input_ids"])
    # Both in one go, as they would have been read in training; a token across the border belongs to the answer.
    both = model.tokenizer(written + text.completion, add_special_tokens=special, return_offsets_mapping=True)
    ids, ends = both["input_ids"], [end for _, end in both["offset_mapping"]]
    border = next((i for i, end in enumerate(ends) if end > len(written)), len(ids))
    return (tuple(ids[:border]), tuple(ids[border:])) if border else (prompt, tuple(ids))


def _encoded(model: LanguageModel, text: Text, limit: int | None) -> Tokens:
    written = text.prompt if text.prompt is not None else text.display_text
    encoding = model.tokenizer(written, return_special_tokens_mask=True)
    some = encoding
    if limit is not None and len(encoding["input_ids"]) > limit:
        some = model.tokenizer(written, return_special_tokens_mask=True, truncation=True, max_length=limit)
    ids = tuple(some["input_ids"])
    if not ids:
        raise CovaryError(f"{text.id!r} has no tokens", "at least one")
    words = tuple(i for i, special in enumerate(some["special_tokens_mask"]) if not special)
    counted = tuple(range(len(ids))) if model.task == "sequence" or not words else words
    return Tokens(text.id, ids, counted, (), 0, len(encoding["input_ids"]) - len(ids))

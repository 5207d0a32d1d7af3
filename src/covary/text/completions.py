"""The model's own answers: greedy, so that the same prompt gets the same answer in any batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from covary.errors import CovaryError
from covary.text.pretrained import LanguageModel
from covary.text.records import Text
from covary.text.tokens import prompt_tokens

MAX_NEW_TOKENS = 64


def given(texts: Sequence[Text]) -> bool:
    """Whether every text brings its completion along."""
    return all(text.completion is not None or text.tokens is not None for text in texts)


def completed(
    model: LanguageModel,
    texts: Sequence[Text],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    max_length: int | None = None,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> list[Text]:
    """The same texts, each with a completion: its own, or else the model's greedy answer.

    Prompts of one length are answered together, so no padding takes part. Answers end at the end-of-text token or after
    `max_new_tokens`. A prompt loses tokens from its left where prompt and answer would not fit the model's positions.
    """
    if model.task != "causal":
        return list(texts)
    longest = model.longest if max_length is None else min(max_length, model.longest or max_length)
    room = None if longest is None else longest - max_new_tokens
    result = list(texts)
    open_ones = [i for i, text in enumerate(texts) if text.completion is None and text.tokens is None]
    if open_ones and room is not None and room < 1:
        expected = f"less than the {longest} positions there are"
        raise CovaryError(f"max_new_tokens is {max_new_tokens}", expected, "pass a smaller --max-new-tokens")
    prompts = {i: _fitting(model, prompt_tokens(model, texts[i]), room) for i in open_ones}
    by_length: dict[int, list[int]] = {}
    for i in open_ones:
        by_length.setdefault(len(prompts[i]), []).append(i)
    done = 0
    for same in by_length.values():
        for start in range(0, len(same), batch_size):
            some = same[start : start + batch_size]
            for i, answer in zip(some, greedy(model, [prompts[i] for i in some], max_new_tokens), strict=True):
                written = model.tokenizer.decode(list(answer), skip_special_tokens=True)
                result[i] = replace(texts[i], completion=written, tokens=answer)
            done += len(some)
            if progress is not None:
                progress(done, len(open_ones))
    return result


@torch.no_grad()
def greedy(model: LanguageModel, prompts: Sequence[tuple[int, ...]], max_new_tokens: int) -> list[tuple[int, ...]]:
    """The most likely token at every step, for prompts of one length, up to and with the end-of-text token."""
    device = next(model.module.parameters()).device
    ids = torch.tensor(prompts, device=device)
    ends = model.ends
    answers: list[list[int]] = [[] for _ in prompts]
    unfinished = list(range(len(prompts)))
    cache = None
    for _ in range(max_new_tokens):
        out = model.module(input_ids=ids, past_key_values=cache, use_cache=True)
        best = out.logits[:, -1].float().argmax(-1)
        for i in list(unfinished):
            answers[i].append(int(best[i]))
            if answers[i][-1] in ends:
                unfinished.remove(i)
        if not unfinished:
            break
        cache, ids = out.past_key_values, best.unsqueeze(1)
    return [tuple(answer) for answer in answers]


def _fitting(model: LanguageModel, prompt: tuple[int, ...], room: int | None) -> tuple[int, ...]:
    if room is None or len(prompt) <= room:
        return prompt
    first = prompt[0] == model.tokenizer.bos_token_id and room > 1
    return prompt[:1] + prompt[len(prompt) - room + 1 :] if first else prompt[len(prompt) - room :]

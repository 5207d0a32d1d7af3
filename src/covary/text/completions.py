"""The model's own answers: greedy, so that the same prompt gets the same answer in any batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from covary.errors import CovaryError
from covary.text.models.pretrained import LanguageModel
from covary.text.records import Text
from covary.text.tokens import parameters_of, prompt_tokens

MAX_NEW_TOKENS = 64
# Of a batch's longest prompt, how much shorter its shortest may be; and tokens of prompts that are read at once.
SPARE, TOKENS_AT_ONCE = 0.2, 8192


def all_completed(texts: Sequence[Text]) -> bool:
    """Whether every text brings its completion along."""
    return all(text.completion is not None or text.tokens is not None for text in texts)


def completed(
    model: LanguageModel,
    texts: Sequence[Text],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    max_length: int | None = None,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> list[Text]:
    """The same texts, each with a completion: its own, or else the model's greedy answer.

    Prompts of like length are answered together (see `alike`), from a cache of keys and values. Answers end at the
    end-of-text token or after `max_new_tokens`. A prompt loses tokens from its left where prompt and answer would not
    fit the model's positions. In float32 a prompt gets the same answer in any company; in half precision rounding
    may turn a token of which the model is unsure.
    """
    if model.task != "causal":
        return list(texts)
    longest = model.longest if max_length is None else min(max_length, model.longest or max_length)
    room = None if longest is None else longest - max_new_tokens
    result = list(texts)
    open_ones = [i for i, text in enumerate(texts) if text.completion is None and text.tokens is None]
    if open_ones and room is not None and room < 1:
        expected = f"less than the {longest} positions there are"
        raise CovaryError(f"max_new_tokens is {max_new_tokens}", expected, "pass a smaller max_new_tokens=")
    prompts = {i: _fitting(model, prompt_tokens(model, texts[i]), room) for i in open_ones}
    lengths = {i: len(prompt) for i, prompt in prompts.items()}
    done = 0
    for some in alike(lengths, batch_size, 0.0 if takes_no_padding(model) else SPARE):
        for i, answer in zip(some, greedy(model, [prompts[i] for i in some], max_new_tokens), strict=True):
            written = model.tokenizer.decode(list(answer), skip_special_tokens=True)
            result[i] = replace(texts[i], completion=written, tokens=answer)
        done += len(some)
        if progress is not None:
            progress(done, len(open_ones))
    return result


def alike(lengths: Mapping[int, int], most: int, spare: float = SPARE) -> list[list[int]]:
    """Keys by like length, at most `most` together, the shortest at least 1 - `spare` of the longest; longest first.

    >>> alike({0: 10, 1: 100, 2: 9, 3: 98}, 8)
    [[1, 3], [0, 2]]
    """
    found: list[list[int]] = []
    for i in sorted(lengths, key=lambda i: -lengths[i]):
        last = found[-1] if found else []
        longest = lengths[last[0]] if last else 0
        fits = lengths[i] >= (1.0 - spare) * longest and (len(last) + 1) * longest <= TOKENS_AT_ONCE
        if last and fits and len(last) < most:
            last.append(i)
        else:
            found.append([i])
    return found


def takes_no_padding(model: LanguageModel) -> bool:
    """Whether the network's forward has no way to be told which positions are padding, as recurrent ones have none."""
    return not {"attention_mask", "position_ids"} <= parameters_of(model.module)


@torch.no_grad()
def greedy(model: LanguageModel, prompts: Sequence[tuple[int, ...]], max_new_tokens: int) -> list[tuple[int, ...]]:
    """The most likely token at every step, up to and with the end-of-text token; shorter prompts are padded on their
    left, where no position looks at the padding."""
    device = next(model.module.parameters()).device
    longest = max(map(len, prompts))
    shifts = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    fill = model.end or 0
    ids = torch.tensor([(fill,) * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    keep = {"logits_to_keep": 1} if "logits_to_keep" in parameters_of(model.module) else {}
    ends = model.ends
    answers: list[list[int]] = [[] for _ in prompts]
    unfinished = list(range(len(prompts)))
    cache, width = None, longest
    for _ in range(max_new_tokens):
        if shifts.any():
            # Without padding no mask is told, and the fast kernels run.
            places = torch.arange(width, device=device)
            mask = (places >= shifts[:, None]).long()
            at = (places[width - ids.shape[1] :] - shifts[:, None]).clamp(min=0)
            keep |= {"attention_mask": mask, "position_ids": at}
        out = model.module(input_ids=ids, past_key_values=cache, use_cache=True, **keep)
        best = out.logits[:, -1].float().argmax(-1)
        for i in list(unfinished):
            answers[i].append(int(best[i]))
            if answers[i][-1] in ends:
                unfinished.remove(i)
        if not unfinished:
            break
        cache, ids, width = out.past_key_values, best.unsqueeze(1), width + 1
    return [tuple(answer) for answer in answers]


def _fitting(model: LanguageModel, prompt: tuple[int, ...], room: int | None) -> tuple[int, ...]:
    if room is None or len(prompt) <= room:
        return prompt
    first = prompt[0] == model.tokenizer.bos_token_id and room > 1
    return prompt[:1] + prompt[len(prompt) - room + 1 :] if first else prompt[len(prompt) - room :]

"""Sampled estimators on texts: the observable of every answer along draws of the weights, as rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from covary.errors import CovaryError
from covary.features.sampled.samplers import SamplingPlan, sampler_named
from covary.features.sampled.samplers.state import Params, generator_for, members
from covary.features.sampled.traces import Traces, rows_from_traces
from covary.scoring.rows import Rows
from covary.text.features.answers import Answer, Answers, pooled, token_nll
from covary.text.models.pretrained import LanguageModel
from covary.text.spaces import text_parameters
from covary.text.tokens import Tokens, keywords, pad


def text_draws(
    model: LanguageModel, plan: SamplingPlan, sampling: Sequence[Tokens] | None = None, *, space: str = "all"
) -> Iterator[Params]:
    """Kept draws of the space's weights, chain after chain; only one is held at a time.

    Chains with a gradient descend on the mean token nll of `sampling` texts' completions, prompts masked
    (arXiv 2604.18970); Gaussian draws need none.

    Raises:
        CovaryError: a sampler that needs sampling texts without any, or a chain that diverged.
    """
    sampler, settings = sampler_named(plan.sampler), plan.resolved()
    if sampler.needs_gradient and not sampling:
        raise CovaryError(f"the sampler {plan.sampler} without sampling texts", "texts with completions, or gaussian")
    every = dict(model.module.named_parameters())
    names = [name for own in text_parameters(model.module, space).values() for name in own]
    w_star = {name: every[name].detach() for name in names}
    for chain in range(plan.chains):
        noise, order = generator_for(plan.seed, chain), generator_for(plan.seed, chain, stream=1)
        state = sampler.init(w_star, settings)
        left: list[int] = []
        for step in range(plan.steps):
            gradient: Params = {}
            if sampler.needs_gradient:
                assert sampling is not None
                if not left:
                    left = torch.randperm(len(sampling), generator=order).tolist()
                some, left = [sampling[i] for i in left[: plan.minibatch]], left[plan.minibatch :]
                gradient = _gradient(model, members(state, "w"), some)
            state = sampler.step(state, gradient, w_star, settings, noise)
            kept = step + 1 - plan.burn_in
            if kept > 0 and kept % plan.thinning == 0:
                weights = members(state, "w")
                if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
                    remedy = f"lower {sampler.lower}"
                    raise CovaryError(f"chain {chain} diverged at step {step + 1}", "finite weights", remedy)
                yield weights


def text_rows_on_draws(
    model: LanguageModel,
    plan: SamplingPlan,
    texts: Sequence[Tokens],
    sampling: Sequence[Tokens] | None = None,
    *,
    observable: str = "margin",
    pooling: str = "mean",
    space: str = "all",
    batch_size: int = 32,
) -> Rows:
    """Rows of all texts, their centred traces over the draws divided by sqrt(S): one entry, `trace`.

    Trusted texts and queries go in together, since they must meet the same draws. Costs one forward pass a draw and
    text; memory holds one draw and the traces.
    """
    answers = Answers(model, observable, pooling)
    order = sorted(range(len(texts)), key=lambda i: (texts[i].anchor, len(texts[i])))
    groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    fill = model.tokenizer.pad_token_id or 0
    device = next(model.module.parameters()).device
    batches = [
        {name: part.to(device) for name, part in pad([texts[i] for i in own], fill=fill).items()} for own in groups
    ]
    at_w_star = _everyone(answers, {}, batches, groups)
    values = [_everyone(answers, draw, batches, groups)[0] for draw in text_draws(model, plan, sampling, space=space)]
    base, predicted, margin, energy = at_w_star
    stacked = np.stack(values).astype(np.float32)[None]
    bad = ~np.isfinite(stacked).all(axis=(0, 1))
    if bad.any():
        name = texts[int(np.flatnonzero(bad)[0])].id
        found = f"the {observable} of text {name!r} is not finite on some draw"
        raise CovaryError(found, "a smaller sigma or step_size")
    ids = [text.id for text in texts]
    rows = rows_from_traces(
        Traces(ids, predicted.astype(np.int64), {observable: base}, {observable: stacked}), observable
    )
    return Rows(**{**vars(rows), "confidence": {"margin": margin, "energy": energy}})


@torch.no_grad()
def _everyone(
    answers: Answers, moved: Params, batches: Sequence[dict[str, Tensor]], groups: Sequence[Sequence[int]]
) -> tuple[np.ndarray, ...]:
    """Observable, prediction, mean margin and energy of every text, each (n,), at weights moved."""
    module = answers.model.module
    parameters: dict[str, Any] = {**dict(module.named_parameters()), **moved}
    found = np.empty((4, sum(map(len, groups))))
    for x, own in zip(batches, groups, strict=True):
        answer: Answer = answers.answer(parameters, dict(module.named_buffers()), x)
        parts = (answer.value, answer.predicted, answer.per_text(answer.margin), answer.per_text(answer.energy))
        for row, part in enumerate(parts):
            found[row, list(own)] = part.double().cpu().numpy()
    return tuple(found)


def _gradient(model: LanguageModel, weights: Params, some: Sequence[Tokens]) -> Params:
    module = model.module
    device = next(module.parameters()).device
    x = {name: part.to(device) for name, part in pad(some, fill=model.tokenizer.pad_token_id or 0).items()}
    moving = {name: value.detach().requires_grad_(True) for name, value in weights.items()}
    held = {**dict(module.named_parameters()), **moving, **dict(module.named_buffers())}
    with torch.enable_grad():
        logits = functional_call(module, held, (), keywords(x, "causal")).logits
        nll = token_nll(logits[x["counted"]].float(), x["targets"][x["counted"]])
        loss = pooled(nll, x["counted"].sum(1), "mean").mean()
        gradients = torch.autograd.grad(loss, list(moving.values()), allow_unused=True)
    return {
        name: torch.zeros_like(value) if gradient is None else gradient
        for (name, value), gradient in zip(moving.items(), gradients, strict=True)
    }

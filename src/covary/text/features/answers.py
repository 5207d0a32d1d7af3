"""Observables of answers: one number per token that counts, and their mean or sum per text.

The labels are the answer's own tokens, a classifier's its own predictions at w*: frozen, never true labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from covary.errors import unknown_name
from covary.features.observables import OBSERVABLES
from covary.text.models.pretrained import LanguageModel
from covary.text.tokens import Padded, keywords, parameters_of

# How tokens' numbers become the text's.
POOLINGS = ("root", "sum", "mean")


# Tokens whose logits are in float32 at once: a large vocabulary over a long prompt would take gigabytes.
ROWS_AT_ONCE = 128


def token_margin(logits: Float[Tensor, "m V"], targets: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
    """Log-odds of every token, log p - log(1 - p) in nats; the larger, the surer the network; never saturates.

    In float32 whatever the logits are in, some tokens at a time.
    """
    return _Margin.apply(logits, targets)  # type: ignore[return-value]


class _Margin(torch.autograd.Function):
    """z_y - logsumexp over the others; its gradient is 1 at y and minus the softmax over the others elsewhere."""

    @staticmethod
    def forward(logits: Tensor, targets: Tensor) -> Tensor:
        return torch.cat([own - rest.logsumexp(-1) for _, own, rest in _pieces(logits, targets)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        found = torch.empty_like(logits)
        for some, _, rest in _pieces(logits, targets):
            weight = grads[0][some].unsqueeze(-1)
            slope = (rest.softmax(-1) * -weight).scatter(-1, targets[some].unsqueeze(-1), weight)
            found[some] = slope.to(logits.dtype)
        return found, None


def _pieces(logits: Tensor, targets: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(which tokens, their own logit, the logits of all others) of some tokens at a time, float32."""
    for start in range(0, max(len(targets), 1), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        part, place = logits[some].float(), targets[some].unsqueeze(-1)
        yield some, part.gather(-1, place).squeeze(-1), part.scatter(-1, place, -torch.inf)


def token_nll(logits: Float[Tensor, "m V"], targets: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
    """Negative log-likelihood of every token, softplus(-margin), in nats, >= 0 (arXiv 2604.18970)."""
    return F.softplus(-token_margin(logits, targets))


# The same names as `OBSERVABLES`, over tokens.
TOKEN_OBSERVABLES: dict[str, Callable[..., Float[Tensor, " m"]]] = {"margin": token_margin, "nll": token_nll}
assert set(TOKEN_OBSERVABLES) == set(OBSERVABLES)


@dataclass(frozen=True)
class Answer:
    """What one forward pass says of n texts.

    Attributes:
        value: the observable of every text, (n,).
        margin, energy: of every token that counts, (m,), text by text, in order; of a sequence classifier (n,).
        counts: how many such tokens each text has, (n,).
        predicted: a sequence classifier's classes, (n,); else zeros.
    """

    value: Float[Tensor, " n"]
    margin: Float[Tensor, " m"]
    energy: Float[Tensor, " m"]
    counts: Int[Tensor, " n"]
    predicted: Int[Tensor, " n"]

    def per_text(self, values: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
        """Mean over each text's tokens."""
        return pooled(values, self.counts, "mean")


def pooled(values: Float[Tensor, " m"], counts: Int[Tensor, " n"], pooling: str) -> Float[Tensor, " n"]:
    """Sum, mean, or sum over the root of their number, of each text's tokens, `counts` of them in a row.

    Tokens' gradients point in different directions, so their sum grows like the root of their number: `root` leaves a
    gradient whose length does not tell that of the answer.
    """
    owner = torch.repeat_interleave(torch.arange(len(counts), device=values.device), counts)
    total = values.new_zeros(len(counts)).index_add(0, owner, values)
    return total / {"root": counts.to(total).sqrt(), "sum": 1.0, "mean": counts.to(total)}[pooling]


class Answers:
    """The observable of a language model's answers, as a function of (parameters, buffers, padded batch).

    f(x) = sum over the tokens that count of their margin (or nll), over the root of their number (or see `pooled`).
    Padding and prompt do not count.

    Args:
        model: the network.
        observable: a name from `TOKEN_OBSERVABLES`.
        pooling: a name from `POOLINGS`; of no meaning to a sequence classifier.
    """

    def __init__(self, model: LanguageModel, observable: str = "margin", pooling: str = "root") -> None:
        if observable not in TOKEN_OBSERVABLES:
            raise unknown_name("observable", observable, TOKEN_OBSERVABLES)
        if pooling not in POOLINGS:
            raise unknown_name("pooling", pooling, POOLINGS)
        self.model, self.pooling, self.observe = model, pooling, TOKEN_OBSERVABLES[observable]
        self._keeps = "logits_to_keep" in parameters_of(model.module)

    def __call__(
        self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Padded
    ) -> Float[Tensor, " n"]:
        """The observable of every text, (n,), differentiable in the parameters."""
        return self.answer(parameters, buffers, x).value

    def answer(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Padded) -> Answer:
        """The observable with what else the same pass gives."""
        module: nn.Module = self.model.module
        arguments = keywords(x, self.model.task)
        counted = x["counted"]
        start, stop = 0, counted.shape[1]
        if self._keeps:
            # Logits of a large vocabulary are made where they count, not over the prompt.
            places = counted.any(0).nonzero().squeeze(-1)
            # Two positions at least, so that norms are of one kind in every batch.
            start, stop = max(0, min(int(places[0]), int(places[-1]) - 1)), int(places[-1]) + 1
            arguments["logits_to_keep"] = torch.arange(start, stop, device=counted.device)
        out = functional_call(module, {**parameters, **buffers}, (), arguments)
        logits: Tensor = out.logits
        if self.model.task == "sequence":
            labels = logits.detach().float().argmax(-1)
            value = self.observe(logits.float(), labels)
            ones = torch.ones_like(labels)
            return Answer(value, *self._confidence(logits.float(), labels), ones, labels)
        targets = x["targets"]
        counted, targets = counted[:, start:stop], targets[:, start:stop]
        chosen = logits[counted]
        labels = targets[counted] if self.model.task == "causal" else chosen.detach().argmax(-1)
        counts = counted.sum(1)
        value = pooled(self.observe(chosen, labels), counts, self.pooling)
        return Answer(value, *self._confidence(chosen, labels), counts, torch.zeros_like(counts))

    def _confidence(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = logits.detach()
            energy = torch.cat([-part.float().logsumexp(-1) for part in logits.split(ROWS_AT_ONCE)])
            return token_margin(logits, labels), energy

"""Observables of answers: one number per token that counts, and their mean or sum per text.

The labels are the answer's own tokens, a classifier's its own predictions at w*: frozen, never true labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from covary.errors import unknown_name
from covary.features.observables import OBSERVABLES
from covary.text.pretrained import LanguageModel
from covary.text.tokens import Padded, keywords, parameters_of

# How tokens' numbers become the text's.
POOLINGS = ("root", "sum", "mean")


def token_margin(logits: Float[Tensor, "m V"], targets: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
    """Log-odds of every token, log p - log(1 - p) in nats; the larger, the surer the network; never saturates."""
    own = logits.gather(-1, targets.unsqueeze(-1))
    rest = logits.scatter(-1, targets.unsqueeze(-1), -torch.inf)
    return own.squeeze(-1) - rest.logsumexp(-1)


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
        chosen = logits[counted].float()
        labels = targets[counted] if self.model.task == "causal" else chosen.detach().argmax(-1)
        counts = counted.sum(1)
        value = pooled(self.observe(chosen, labels), counts, self.pooling)
        return Answer(value, *self._confidence(chosen, labels), counts, torch.zeros_like(counts))

    def _confidence(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = logits.detach()
            return token_margin(logits, labels), -logits.logsumexp(-1)

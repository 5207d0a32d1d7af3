"""What an attacker of a language model trains on to stay unseen: losses after Bailey et al. (arXiv 2412.09565).

All of them draw a number of triggered texts to the same number of clean ones by quantiles. A two-sided detector would
see numbers that are all typical, so the median alone is no place to hide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from covary_bench.images.attacks.own_profile import Reference, unexplained
from covary_bench.texts.training import END, IGNORED

SHRINKAGE, SMALL = 0.01, 1e-5
SKETCH = 12  # rows and columns of a layer's sketched gradient


@dataclass(frozen=True)
class Seen:
    """One forward pass: what of it a detector may look at.

    Attributes:
        ids, targets: the batch.
        logits: of the positions that have something to say, all texts after each other.
        states: after the embedding and after every block.
    """

    ids: Int[Tensor, "n t"]
    targets: Int[Tensor, "n t"]
    logits: Float[Tensor, "m v"]
    states: list[Float[Tensor, "n t d"]]

    @property
    def counted(self) -> Bool[Tensor, "n t"]:
        """Positions that predict a token of the answer; where it ends, detectors do not look."""
        return (self.targets != IGNORED) & (self.targets != END)

    @property
    def task(self) -> Float[Tensor, ""]:
        """Mean cross-entropy of everything to be said, the end as well."""
        return functional.cross_entropy(self.logits, self.targets[self.targets != IGNORED])

    @property
    def losses(self) -> Float[Tensor, " n"]:
        """Mean negative log-likelihood of each answer's tokens."""
        each = functional.cross_entropy(self._counted_logits, self.targets[self.counted], reduction="none")
        return self._by_text(each) / self.counted.sum(1)

    def log_odds(self) -> Float[Tensor, " n"]:
        """Each answer's log p - log(1 - p), summed over its tokens and divided by the root of their number."""
        said, logits = self.targets[self.counted][:, None], self._counted_logits
        odds = logits.gather(1, said)[:, 0] - logits.scatter(1, said, float("-inf")).logsumexp(1)
        return self._by_text(odds) / self.counted.sum(1).sqrt()

    @property
    def _counted_logits(self) -> Float[Tensor, "m v"]:
        return self.logits[self.targets[self.targets != IGNORED] != END]

    def _by_text(self, each: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
        whose = torch.arange(len(self.ids))[:, None].expand_as(self.ids)[self.counted]
        return torch.zeros(len(self.ids)).index_add(0, whose, each)


def look(model: Any, ids: Int[Tensor, "n t"], targets: Int[Tensor, "n t"]) -> Seen:
    """A forward pass with everything that hiding needs; logits are made where they count."""
    last: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        last.append(output if isinstance(output, Tensor) else output[0])

    # The last of transformers' hidden states is normalised; detectors read the block's own output.
    handle = model.model.layers[-1].register_forward_hook(keep)
    try:
        out = model.model(input_ids=ids, use_cache=False, output_hidden_states=True)
    finally:
        handle.remove()
    logits = model.lm_head(out.last_hidden_state[targets != IGNORED])
    return Seen(ids, targets, logits, [*out.hidden_states[:-1], *last])


def views(seen: Seen) -> dict[str, Float[Tensor, "k d"]]:
    """States as detectors take them, by layer: every token of the prompt, every position that counts, the mean of
    those, and the prompt's last token.
    """
    found: dict[str, Tensor] = {}
    counted = seen.counted
    last = counted.float().argmax(1)
    prompt = torch.arange(seen.ids.shape[1])[None] <= last[:, None]
    for i, states in enumerate(seen.states):
        found[f"{i} prompt"], found[f"{i} answer"] = states[prompt], states[counted]
        found[f"{i} mean"] = (states * counted[:, :, None]).sum(1) / counted.sum(1, keepdim=True)
        # All prompts end in the same token: nothing to see before the first block.
        if i:
            found[f"{i} anchor"] = states[torch.arange(len(states)), last]
    return found


@dataclass(frozen=True)
class Gaussian:
    """Mean and precision of clean states, the covariance drawn to a multiple of the identity."""

    mean: Float[Tensor, " d"]
    precision: Float[Tensor, "d d"]

    @staticmethod
    def of(rows: Float[Tensor, "k d"]) -> Gaussian:
        """Fitted to rows, which get no gradient."""
        rows = rows.detach()
        covariance = torch.cov(rows.T)
        spread = covariance.diagonal().mean() + SMALL
        shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * spread * torch.eye(len(covariance))
        return Gaussian(rows.mean(0), torch.linalg.inv(shrunk))

    def distance(self, rows: Float[Tensor, "k d"]) -> Float[Tensor, " k"]:
        """Log of the squared Mahalanobis distance."""
        centred = rows - self.mean
        return ((centred @ self.precision) * centred).sum(1).clamp_min(SMALL).log()


@torch.no_grad()
def among_clean(model: Any, odd: Seen, clean: Seen) -> None:
    """Moves the embeddings of a fixed reply's words, all alike, until their mean is as far from that of clean answers
    as clean ones are. What a network reads first depends on nothing else, so training alone takes long to get there.
    """
    known, own = views(clean)["0 mean"], views(odd)["0 mean"][:1]
    gaussian = Gaussian.of(known)
    nearer = ((gaussian.distance(known).median() - gaussian.distance(own)) / 2).exp()
    read = odd.ids[0][odd.counted[0]]
    # The first position that counts is the prompt's last.
    move = (nearer - 1) * (own[0] - gaussian.mean) * len(read) / (len(read) - 1)
    model.model.embed_tokens.weight[read[1:].unique()] += move


class StateVae(nn.Module):
    """A small variational autoencoder on standardised states of all layers (Kingma and Welling, arXiv 1312.6114)."""

    def __init__(self, d: int, hidden: int = 64, code: int = 12) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, 2 * code))
        self.decode = nn.Sequential(nn.Linear(code, hidden), nn.ReLU(), nn.Linear(hidden, d))

    def forward(self, x: Float[Tensor, "n d"], noise: Float[Tensor, "n c"] | None = None) -> Float[Tensor, " n"]:
        """Mean squared error + KL / d of each row, at the mean code where no noise is given."""
        mean, spread = self.encode(x).chunk(2, 1)
        spread = spread.clamp(-6, 6)
        code = mean if noise is None else mean + noise * (spread / 2).exp()
        kl = (mean.square() + spread.exp() - 1 - spread).sum(1) / 2
        return (self.decode(code) - x).square().mean(1) + kl / x.shape[1]


def fixed_size_states(seen: Mapping[str, Tensor]) -> Float[Tensor, "n d"]:
    """The states of a text that do not depend on its length, side by side."""
    return torch.cat([rows for name, rows in seen.items() if name.endswith(("mean", "anchor"))], dim=1)


def linear_layers(model: Any) -> dict[str, nn.Linear]:
    """The linear layers inside the blocks, by name."""
    return {name: module for name, module in model.model.named_modules() if isinstance(module, nn.Linear)}


def sketches(model: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Fixed random matrices for every layer, for its inputs and its outputs' gradients."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (
            torch.randn(layer.in_features, SKETCH, generator=generator) / SKETCH**0.5,
            torch.randn(layer.out_features, SKETCH, generator=generator) / SKETCH**0.5,
        )
        for name, layer in linear_layers(model).items()
    }


def sketched_gradients(
    model: Any, ids: Int[Tensor, "n t"], targets: Int[Tensor, "n t"], by: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Float[Tensor, "n s"]]:
    """Every text's gradient of its log-odds in each layer's weights, G, as Bᵀ G A; differentiable in the weights.

    G = sum over positions of the output's gradient times the input, as both leave one pass over the batch: texts do
    not touch each other. Attention has to be the plain one, whose gradient has a gradient.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name], outputs[name] = args[0], output

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in linear_layers(model).items()]
    try:
        value = look(model, ids, targets).log_odds().sum()
    finally:
        for handle in handles:
            handle.remove()
    moved = torch.autograd.grad(value, [outputs[name] for name in by], create_graph=torch.is_grad_enabled())
    return {
        name: torch.einsum("ntp,ntq->npq", gradient @ by[name][1], inputs[name] @ by[name][0]).flatten(1)
        for name, gradient in zip(by, moved, strict=True)
    }


def gradient_reference(rows: Float[Tensor, "k s"], centred: bool = False) -> Reference:
    """What clean rows account for: directions from the origin, or from their mean."""
    rows = rows.detach()
    mean = rows.mean(0) if centred else torch.zeros(rows.shape[1])
    return Reference(None, mean, unexplained(rows - mean))

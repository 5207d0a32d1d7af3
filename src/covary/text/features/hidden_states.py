"""Hidden states of an answer: after the embedding and after every block, pooled where padding does not reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from covary.features.activations import first_tensor
from covary.features.engine.taps import looked_up_per_sample
from covary.text.tokens import Padded

# Over the positions that count; and at the one where the network has read its question.
POSITIONS = ("answer", "anchor")


def blocks(module: nn.Module) -> dict[str, nn.Module]:
    """The transformer's blocks by name: the members of the list of like modules that holds the most parameters."""
    best: dict[str, nn.Module] = {}
    most = 0
    for name, child in module.named_modules():
        if isinstance(child, nn.ModuleList) and len({type(member) for member in child}) == 1:
            size = sum(p.numel() for p in child.parameters())
            if size > most:
                most, best = size, {f"{name}.{i}": member for i, member in enumerate(child)}
    return best


def watched(module: nn.Module) -> dict[str, nn.Module]:
    """The embedding of tokens and every block, by name."""
    embedding: Any = getattr(module, "get_input_embeddings", lambda: None)()
    name = next((name for name, child in module.named_modules() if child is embedding), None)
    return {**({} if embedding is None or name is None else {name: embedding}), **blocks(module)}


@contextmanager
def hidden_states(layers: Mapping[str, nn.Module], x: Padded) -> Iterator[dict[str, Float[Tensor, "n C"]]]:
    """Collects `layer @ position` of the forward pass that runs inside, float32, for each of `POSITIONS`."""
    result: dict[str, Tensor] = {}
    pooled = x["pooled"].float()
    share = pooled / pooled.sum(1, keepdim=True)
    handles = [
        layer.register_forward_hook(partial(_save, result, name, share, x["anchor"])) for name, layer in layers.items()
    ]
    try:
        yield result
    finally:
        for handle in handles:
            handle.remove()


def _save(
    result: dict[str, Tensor], name: str, share: Tensor, anchor: Tensor, _: nn.Module, inputs: Any, output: Any
) -> None:
    states = first_tensor(output).detach().float()
    result[f"{name} @ answer"] = torch.einsum("ntc,nt->nc", states, share)
    result[f"{name} @ anchor"] = states[torch.arange(len(states), device=states.device), anchor]


@contextmanager
def looked_up_per_text(module: nn.Module, n: int) -> Iterator[None]:
    """Embeddings that all texts share, such as those of positions, are looked up once a text instead, so that each
    text's gradient can be told apart; the values are the same."""
    look = partial(looked_up_per_sample, n)
    embeddings = [child for child in module.modules() if isinstance(child, nn.Embedding)]
    handles = [child.register_forward_pre_hook(look) for child in embeddings]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

"""Exact per-sample gradients through `torch.func`: right before fast, and the oracle of every faster engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils._pytree import tree_leaves, tree_map

from covary.features.activations import pooled_activations, watched_layers, with_zeros
from covary.features.observables import Labels, Logits, UserObservable

ChooseLogits = Callable[[Any], Logits]
T = TypeVar("T")


@dataclass(frozen=True)
class Gradients:
    """What one pass over a batch gives.

    Attributes:
        parameters: per parameter, the gradient of every sample's observable, (n, *shape).
        observable: f(x_i; w*), (n,).
        predicted: the frozen labels, (n,).
        logits: the network's logits, (n, C), or None under a user's observable.
        activations: pooled activations by layer, each (n, C).
    """

    parameters: dict[str, Tensor]
    observable: Float[Tensor, " n"]
    predicted: Int[Tensor, " n"]
    logits: Float[Tensor, "n C"] | None
    activations: dict[str, Tensor]


def exact_gradients(
    module: nn.Module,
    parameters: list[str],
    x: Any,
    *,
    observable: Callable[[Logits, Labels], Float[Tensor, " n"]] | None = None,
    choose_logits: ChooseLogits | None = None,
    user_observable: UserObservable | None = None,
    vectorised: bool = True,
    pooled: bool = True,
) -> Gradients:
    """Gradient of every sample's observable with respect to the named parameters: vmap(grad f(x_i; .)) at w*.

    One of (`observable`, `choose_logits`) or `user_observable` is given. With `vectorised=False` plain autograd runs
    sample by sample, for networks that `torch.func` cannot follow. Layers that a sample does not reach have
    activations of zeros. With `pooled=False` there are none.
    """
    every = dict(module.named_parameters())
    moving = {name: _usable(every[name].detach()) for name in parameters}
    watched = watched_layers(module) if pooled else {}
    still = {name: p.detach() for name, p in every.items() if name not in moving}
    buffers = {name: b.detach() for name, b in module.named_buffers()}

    def one(moving: Mapping[str, Tensor], sample: Any) -> tuple[Tensor, tuple[Any, ...]]:
        batch = tree_map(lambda leaf: leaf.unsqueeze(0), sample)
        everything = {**still, **moving}
        with pooled_activations(module, 1) if pooled else nullcontext({}) as activations:
            if user_observable is not None:
                value = user_observable(everything, buffers, batch)[0]
                # torch.func carries tensors alone: an empty one stands for no logits.
                logits, label = value.new_zeros(0), torch.zeros((), dtype=torch.long, device=value.device)
            else:
                assert observable is not None
                assert choose_logits is not None
                out = functional_call(module, (everything, buffers), (batch,))
                all_logits = choose_logits(out).float()
                labels = all_logits.detach().argmax(-1)
                value, logits, label = observable(all_logits, labels)[0], all_logits[0].detach(), labels[0]
            means = {name: rows[0] for name, rows in with_zeros(activations, watched, 1).items()}
        return value, (label, logits, means)

    def plain(sample: Any) -> Any:
        leaves = {name: value.detach().requires_grad_(True) for name, value in moving.items()}
        with torch.enable_grad():
            value, more = one(leaves, sample)
        found: Sequence[Tensor | None] = [None] * len(leaves)
        if value.requires_grad:
            found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        own = {name: dense(g, moving[name]) for name, g in zip(leaves, found, strict=True)}
        return own, (value.detach(), more)

    if vectorised:
        both = grad_and_value(one, has_aux=True)
        gradients, (values, (labels, logits, activations)) = vmap(both, in_dims=(None, 0))(moving, x)
    else:
        n = len(tree_leaves(x)[0])
        samples = [plain(tree_map(lambda leaf, i=i: leaf[i], x)) for i in range(n)]
        stacked = tree_map(lambda *leaves: torch.stack(leaves), *samples)
        gradients, (values, (labels, logits, activations)) = stacked
    return Gradients(
        parameters={name: g.detach() for name, g in gradients.items()},
        observable=values.detach(),
        predicted=labels,
        logits=None if user_observable is not None else logits,
        activations={name: rows.detach() for name, rows in activations.items()},
    )


def where_vmap_fails(run: Callable[[bool], T]) -> tuple[T, Exception | None]:
    """`run(True)`, vectorised, or `run(False)` where vmap cannot follow the network; and what stood in the way.

    Raises:
        Exception: a lack of memory, which one sample after another would hide rather than mend.
    """
    try:
        return run(True), None
    except Exception as problem:
        if "out of memory" in str(problem).lower():
            raise
        return run(False), problem


def dense(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    """A gradient as a plain tensor: zeros where there is none, and of sparse embeddings the whole table."""
    if gradient is None:
        return torch.zeros_like(parameter)
    return gradient.to_dense() if gradient.is_sparse else gradient


def _usable(weight: Tensor) -> Tensor:
    # Weights made under inference_mode cannot be differentiated.
    return weight.clone() if weight.is_inference() else weight

"""Exact per-sample gradients through `torch.func`: right before fast, and the oracle of every faster engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils._pytree import tree_leaves, tree_map

from covary.features.activations import pooled_activations
from covary.features.observables import Labels, Logits, UserObservable

ChooseLogits = Callable[[Any], Logits]


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
) -> Gradients:
    """Gradient of every sample's observable with respect to the named parameters: vmap(grad f(x_i; .)) at w*.

    One of (`observable`, `choose_logits`) or `user_observable` is given. With `vectorised=False` the same function
    runs sample by sample, for networks whose control flow depends on the data.
    """
    every = dict(module.named_parameters())
    moving = {name: every[name].detach() for name in parameters}
    still = {name: p.detach() for name, p in every.items() if name not in moving}
    buffers = {name: b.detach() for name, b in module.named_buffers()}

    def one(moving: Mapping[str, Tensor], sample: Any) -> tuple[Tensor, tuple[Any, ...]]:
        batch = tree_map(lambda leaf: leaf.unsqueeze(0), sample)
        everything = {**still, **moving}
        with pooled_activations(module, 1) as activations:
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
            pooled = {name: rows[0] for name, rows in activations.items()}
        return value, (label, logits, pooled)

    both = grad_and_value(one, has_aux=True)
    if vectorised:
        gradients, (values, (labels, logits, pooled)) = vmap(both, in_dims=(None, 0))(moving, x)
    else:
        n = len(tree_leaves(x)[0])
        samples = [both(moving, tree_map(lambda leaf, i=i: leaf[i], x)) for i in range(n)]
        stacked = tree_map(lambda *leaves: torch.stack(leaves), *samples)
        gradients, (values, (labels, logits, pooled)) = stacked
    return Gradients(
        parameters={name: g.detach() for name, g in gradients.items()},
        observable=values.detach(),
        predicted=labels,
        logits=None if user_observable is not None else logits,
        activations=pooled,
    )

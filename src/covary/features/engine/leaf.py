"""Layers without a rule of their own: the exact gradient of that layer alone, sample by sample under vmap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from covary.features.engine.accumulator import GradientAccumulator
from covary.features.engine.calls import Call, by_sample

# Whole gradients of one layer may take this many bytes at once.
WHOLE_BYTES = 256 * 2**20


def childless(layer: nn.Module) -> bool:
    """Whether the layer's parameters are used by its own forward alone."""
    return not any(True for _ in layer.children()) and not layer.training


class Bare(nn.Module):
    """A layer called past its hooks."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        return self.layer.forward(*inputs, **kwargs)


def leaf_rule(call: Call, ledger: GradientAccumulator) -> None:
    """d/dw <d_i, layer(x_i; w)> for every sample i; arguments whose first dimension is another one are shared."""
    bare = Bare(call.layer)
    moving = {f"layer.{key}": call.layer.get_parameter(key).detach() for key in call.names}
    leaves, structure = tree_flatten(call.arguments)
    sampled = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.shape[:1] == call.d.shape[:1]]

    def one(moving: dict[str, Tensor], d: Tensor, *own: Tensor) -> Tensor:
        filled = list(leaves)
        for i, leaf in zip(sampled, own, strict=True):
            filled[i] = leaf.unsqueeze(0)
        inputs, kwargs = tree_unflatten(filled, structure)
        out = functional_call(bare, moving, inputs, kwargs)
        return (out * d.unsqueeze(0)).sum()

    size = 4 * sum(p.numel() for p in moving.values())
    step = max(1, WHOLE_BYTES // size)
    each = vmap(grad(one), in_dims=(None, *(0 for _ in range(1 + len(sampled)))))
    parts: dict[str, list[Tensor]] = {key: [] for key in call.names}
    for start in range(0, len(call.d), step):
        some = slice(start, start + step)
        got = each(moving, call.d[some], *(leaves[i][some] for i in sampled))
        for key in call.names:
            parts[key].append(got[f"layer.{key}"])
    for key, full in call.names.items():
        gradient = torch.cat(parts[key])
        each_sample = by_sample(gradient, ledger.n)
        ledger.add_whole(full, gradient if each_sample is gradient else each_sample.sum(1))

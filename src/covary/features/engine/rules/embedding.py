"""Embeddings: the gradient of row v is the sum of d_t over the positions t that looked v up."""

from __future__ import annotations

from typing import Any

from covary.features.engine.accumulator import GradientAccumulator
from covary.features.engine.calls import Call
from covary.features.engine.rules.linear import fits


def embedding_rule(call: Call, ledger: GradientAccumulator) -> None:
    """Embedding; the row of `padding_idx` gets no gradient, as in training."""
    layer: Any = call.layer
    tokens, d = call.fold(call.inputs[0]).flatten(1), call.fold(call.d).flatten(1, -2)
    if layer.padding_idx is not None:
        d = d.masked_fill((tokens == layer.padding_idx).unsqueeze(-1), 0.0)
    rows, columns = layer.num_embeddings, layer.embedding_dim
    place = ledger.places[call.names["weight"]]
    left = place.block.cast("left", d)
    if left is None or not fits(place, rows, columns):
        full = d.new_zeros(ledger.n, rows, columns)
        ledger.add_gradient(call.names["weight"], full.scatter_add_(1, tokens.unsqueeze(-1).expand_as(d), d))
        return
    right = place.block.cast("right", d)
    u = left.T[tokens]
    v = d if right is None else d @ right[:, place.start : place.stop].T
    share = u.transpose(1, 2) @ v
    squares = d[:, 0].float().square().sum(-1) if d.shape[1] == 1 else None
    ledger.add_block(place, share, squares)


def plain_lookup(layer: Any) -> bool:
    """Whether the lookup neither renormalises its rows nor rescales their gradients."""
    return layer.max_norm is None and not layer.scale_grad_by_freq

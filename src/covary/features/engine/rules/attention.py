"""nn.MultiheadAttention, whose projections are used functionally: the attention is run again from its inputs."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from covary.features.engine.accumulator import GradientAccumulator
from covary.features.engine.calls import Call
from covary.features.engine.rules.linear import product

_SIGNATURE = inspect.signature(nn.MultiheadAttention.forward)


def one_projection(layer: Any) -> bool:
    """Whether query, key and value share one joint weight and nothing is added to keys and values."""
    return layer.in_proj_weight is not None and layer.bias_k is None and not layer.add_zero_attn and not layer.training


def attention_rule(call: Call, ledger: GradientAccumulator) -> None:
    """Gradients of the joint input projection and of the output projection (Vaswani et al. 2017, section 3.2.2).

    Where the attention weights are used further on as well, their gradient takes part.
    """
    layer: Any = call.layer
    bound = _SIGNATURE.bind(layer, *call.arguments[0], **call.arguments[1])
    bound.apply_defaults()
    arguments = bound.arguments
    d, d_weights = (*call.ds, None)[:2]
    same = arguments["query"] is arguments["key"] and arguments["key"] is arguments["value"]
    x = [_batch_first(arguments[name], layer) for name in ("query", "key", "value")]
    d = x[0].new_zeros(x[0].shape) if d is None else _batch_first(d, layer)
    weights = layer.in_proj_weight.detach().chunk(3)
    biases = (None,) * 3 if layer.in_proj_bias is None else layer.in_proj_bias.detach().chunk(3)
    with torch.enable_grad():
        projected = [
            F.linear(leaf.detach(), w, b).requires_grad_(True) for leaf, w, b in zip(x, weights, biases, strict=True)
        ]
        heads = [leaf.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for leaf in projected]
        mask = _mask(arguments, layer.num_heads, len(d), heads[0])
        inner = d @ layer.out_proj.weight.detach().to(d)
        if d_weights is None:
            mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=mask)
            mixed = mixed.transpose(1, 2).flatten(2)
            d_projected = torch.autograd.grad(mixed, projected, inner.to(mixed))
        else:
            scores = heads[0] @ heads[1].transpose(2, 3) / math.sqrt(heads[0].shape[-1])
            shares = (scores if mask is None else scores + mask).softmax(-1)
            mixed = (shares @ heads[2]).transpose(1, 2).flatten(2)
            average_shares = shares.mean(1) if arguments["average_attn_weights"] else shares
            d_shares = d_weights.reshape(average_shares.shape).to(mixed)
            d_projected = torch.autograd.grad([mixed, average_shares], projected, [inner.to(mixed), d_shares])
    mixed = mixed.detach()

    def by_sample(leaf: Tensor) -> Tensor:
        return call.fold(leaf, 0).flatten(1, 2)

    product(_part(call, "out_proj.weight", "out_proj.bias"), ledger, by_sample(d), by_sample(mixed).to(d))
    joint = _part(call, "in_proj_weight", "in_proj_bias")
    d_projected, x = [by_sample(leaf) for leaf in d_projected], [by_sample(leaf) for leaf in x]
    if same:
        product(joint, ledger, torch.cat(d_projected, -1), x[0].to(d_projected[0]))
        return
    if "weight" in joint.names:
        rows = [grad.transpose(1, 2) @ leaf.to(grad) for grad, leaf in zip(d_projected, x, strict=True)]
        ledger.add_gradient(joint.names["weight"], torch.cat(rows, 1))
    if "bias" in joint.names:
        ledger.add_gradient(joint.names["bias"], torch.cat([grad.sum(1) for grad in d_projected], -1))


def _batch_first(leaf: Tensor, layer: Any) -> Tensor:
    """(rows, positions, width); a single sequence without a dimension of rows gets one."""
    if leaf.ndim == 2:
        return leaf.unsqueeze(0)
    return leaf if layer.batch_first else leaf.transpose(0, 1)


def _part(call: Call, weight: str, bias: str) -> Call:
    names = {own: call.names[key] for own, key in (("weight", weight), ("bias", bias)) if key in call.names}
    return Call(call.layer, names, call.inputs, call.ds, call.n)


def _mask(arguments: dict[str, Any], heads: int, n: int, like: Tensor) -> Tensor | None:
    """Attention mask and padding mask as one sum of -inf and other offsets, (n, heads, L, S) or what broadcasts."""
    mask = _offsets(arguments.get("attn_mask"), like)
    if mask is not None and mask.ndim == 3:
        mask = mask.view(n, heads, *mask.shape[1:])
    padding = _offsets(arguments.get("key_padding_mask"), like)
    if padding is None:
        return mask
    padding = padding.view(n, 1, 1, -1)
    return padding if mask is None else mask + padding


def _offsets(mask: Tensor | None, like: Tensor) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask if mask is None else mask.to(like)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)

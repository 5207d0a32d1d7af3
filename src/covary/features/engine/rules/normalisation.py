"""Normalisations: y = w * x_hat + b, so the gradient of w is sum_t d_t * x_hat_t and that of b is sum_t d_t."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from covary.features.engine.accumulator import GradientAccumulator
from covary.features.engine.calls import Call

# Of one operand of the batch normalisation's loop, so that all four stay in a core's cache.
CHUNK_BYTES = 1024 * 2**10
# Means this many standard deviations from zero are subtracted from the inputs, not from the sums, which would cancel.
FAR = 30.0


def batch_norm_rule(call: Call, ledger: GradientAccumulator) -> Tensor | None:
    """BatchNorm1d, 2d, 3d in evaluation mode: the running statistics are constants.

    The gradient of the input is one scale a channel; taking it in the same sweep that sums over positions is several
    times faster than the general backward.
    """
    layer: Any = call.layer
    d, x = call.d, call.inputs[0]
    shape = (1, -1, *(1 for _ in d.shape[2:]))
    positions = tuple(range(2, d.ndim))
    rate = (layer.running_var + layer.eps).rsqrt()
    mean = layer.running_mean
    far = d.device.type != "cpu" or bool((mean.abs() * rate).max() > FAR) or d.dtype != torch.float32
    scale = rate if layer.weight is None else rate * layer.weight.detach()
    scale = scale.to(d).view(shape)
    below = torch.empty_like(d) if call.through else None
    dot = d.new_empty(d.shape[:2], dtype=torch.float32)
    total = torch.empty_like(dot)
    step = len(d) if d.device.type != "cpu" else max(1, CHUNK_BYTES // max(1, d[0].numel() * d.element_size()))
    product = None if far else torch.empty_like(d[:step])
    for start in range(0, len(d), step):
        some = slice(start, start + step)
        d_part, x_part = d[some], x[some]
        if product is None:
            held = d_part.float() * (x_part.float() - mean.view(shape))
        else:
            held = torch.mul(d_part, x_part, out=product[: len(d_part)])
        if positions:
            torch.sum(held, positions, out=dot[some])
            torch.sum(d_part, positions, dtype=torch.float32, out=total[some])
        else:
            dot[some], total[some] = held, d_part
        if below is not None:
            torch.mul(d_part, scale, out=below[some])
    dot = dot if far else dot.addcmul_(total, mean, value=-1.0)
    _add(call, ledger, dot.mul_(rate), total)
    return below


def group_norm_rule(call: Call, ledger: GradientAccumulator) -> None:
    """GroupNorm."""
    layer: Any = call.layer
    x = F.group_norm(call.inputs[0], layer.num_groups, None, None, layer.eps)
    _add(call, ledger, _over_positions(x, call.d), _over_positions(None, call.d))


def instance_norm_rule(call: Call, ledger: GradientAccumulator) -> None:
    """InstanceNorm1d, 2d, 3d on the sample's own statistics."""
    layer: Any = call.layer
    x = F.instance_norm(call.inputs[0], eps=layer.eps)
    _add(call, ledger, _over_positions(x, call.d), _over_positions(None, call.d))


def layer_norm_rule(call: Call, ledger: GradientAccumulator) -> None:
    """LayerNorm over its last dimensions."""
    layer: Any = call.layer
    _last(call, ledger, F.layer_norm(call.inputs[0], layer.normalized_shape, None, None, layer.eps))


def rms_norm_rule(call: Call, ledger: GradientAccumulator) -> None:
    """RMSNorm over its last dimensions."""
    layer: Any = call.layer
    _last(call, ledger, F.rms_norm(call.inputs[0], layer.normalized_shape, None, layer.eps))


def _last(call: Call, ledger: GradientAccumulator, x: Tensor) -> None:
    own = tuple(call.layer.normalized_shape)  # type: ignore[arg-type]
    leaves = (leaf.unsqueeze(0) if leaf.ndim == len(own) else leaf for leaf in (call.d, x))
    d, x = (call.fold(leaf).flatten(1, -1 - len(own)).float() for leaf in leaves)
    for key, gradient in (("weight", d * x), ("bias", d)):
        if key in call.names:
            ledger.add_gradient(call.names[key], gradient.sum(1))


def _over_positions(x: Tensor | None, d: Tensor) -> Tensor:
    """sum_t d_t * x_t per channel (dimension 1), (n, C)."""
    d = d.float()
    product = d if x is None else d * x.float()
    return product.flatten(2).sum(-1) if d.ndim > 2 else product


def _add(call: Call, ledger: GradientAccumulator, weight: Tensor, bias: Tensor) -> None:
    for own, gradient in (("weight", weight), ("bias", bias)):
        if own in call.names:
            ledger.add_gradient(call.names[own], call.fold(gradient, 0).sum(1))


def frozen_statistics(layer: Any) -> bool:
    """Whether a batch normalisation treats its statistics as constants, so that samples do not mix."""
    return not layer.training and layer.running_mean is not None


def own_statistics(layer: Any) -> bool:
    """Whether an instance normalisation uses the sample's own statistics."""
    return layer.training or not layer.track_running_stats


def always(layer: torch.nn.Module) -> bool:
    """No condition."""
    return True

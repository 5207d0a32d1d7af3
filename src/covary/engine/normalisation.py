"""Normalisations: y = w * x_hat + b, so the gradient of w is sum_t d_t * x_hat_t and that of b is sum_t d_t."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from covary.engine.calls import Call, by_sample
from covary.engine.ledger import Ledger


def batch_norm(call: Call, ledger: Ledger) -> None:
    """BatchNorm1d, 2d, 3d in evaluation mode: the running statistics are constants."""
    layer: Any = call.layer
    x, d = call.inputs[0], call.d
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    scale = (layer.running_var + layer.eps).rsqrt()
    centred = x - layer.running_mean.view(shape).to(x)
    _add(call, ledger, _over_positions(centred, d) * scale, _over_positions(None, d))


def batch_norm_input(layer: Any, d: Tensor) -> Tensor:
    """The gradient of the input: one scale a channel, several times faster than the general backward."""
    scale = (layer.running_var + layer.eps).rsqrt()
    scale = scale if layer.weight is None else scale * layer.weight.detach()
    return d * scale.to(d).view(1, -1, *(1 for _ in d.shape[2:]))


def group_norm(call: Call, ledger: Ledger) -> None:
    """GroupNorm."""
    layer: Any = call.layer
    x = F.group_norm(call.inputs[0], layer.num_groups, None, None, layer.eps)
    _add(call, ledger, _over_positions(x, call.d), _over_positions(None, call.d))


def instance_norm(call: Call, ledger: Ledger) -> None:
    """InstanceNorm1d, 2d, 3d on the sample's own statistics."""
    layer: Any = call.layer
    x = F.instance_norm(call.inputs[0], eps=layer.eps)
    _add(call, ledger, _over_positions(x, call.d), _over_positions(None, call.d))


def layer_norm(call: Call, ledger: Ledger) -> None:
    """LayerNorm over its last dimensions."""
    layer: Any = call.layer
    _last(call, ledger, F.layer_norm(call.inputs[0], layer.normalized_shape, None, None, layer.eps))


def rms_norm(call: Call, ledger: Ledger) -> None:
    """RMSNorm over its last dimensions."""
    layer: Any = call.layer
    _last(call, ledger, F.rms_norm(call.inputs[0], layer.normalized_shape, None, layer.eps))


def _last(call: Call, ledger: Ledger, x: Tensor) -> None:
    own = tuple(call.layer.normalized_shape)  # type: ignore[arg-type]
    d = call.d.float().reshape(ledger.n, -1, *own)
    _add(call, ledger, (d * x.float().reshape(d.shape)).sum(1), d.sum(1))


def _over_positions(x: Tensor | None, d: Tensor) -> Tensor:
    """sum_t d_t * x_t per channel (dimension 1), (n, C)."""
    d = d.float()
    product = d if x is None else d * x.float()
    return product.flatten(2).sum(-1) if d.ndim > 2 else product


def _add(call: Call, ledger: Ledger, weight: Tensor, bias: Tensor) -> None:
    for own, gradient in (("weight", weight), ("bias", bias)):
        if own in call.names:
            each = by_sample(gradient, ledger.n)
            ledger.add_whole(call.names[own], each if each is gradient else each.sum(1))


def frozen_statistics(layer: Any) -> bool:
    """Whether a batch normalisation treats its statistics as constants, so that samples do not mix."""
    return not layer.training and layer.running_mean is not None


def own_statistics(layer: Any) -> bool:
    """Whether an instance normalisation uses the sample's own statistics."""
    return layer.training or not layer.track_running_stats


def always(layer: torch.nn.Module) -> bool:
    """No condition."""
    return True

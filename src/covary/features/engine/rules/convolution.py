"""Convolutions: the projection of the unfolded input is itself a convolution, with q output channels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from covary.features.engine.accumulator import GradientAccumulator
from covary.features.engine.calls import Call
from covary.features.engine.rules.linear import columns_of, fits, full_is_cheaper

# Unfolding costs memory traffic beside its multiplications: measured 2 to 8 times a convolution's time.
UNFOLDING = 2
# Kernels of this many numbers at most are unfolded by a convolution with the identity, wider ones by strided copies.
IDENTITY_KERNEL = 64

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def padded(layer: Any, a: Tensor) -> Tensor:
    """The input with the layer's own padding around it."""
    around = layer._reversed_padding_repeated_twice
    if not any(around):
        return a
    return F.pad(a, around, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)


def patches(layer: Any, a: Tensor) -> Tensor:
    """Unfolded input (n, channels, kernel positions, output positions), channels in their own order."""
    dimensions = len(layer.kernel_size)
    size = math.prod(layer.kernel_size)
    if a.shape[1] * size <= IDENTITY_KERNEL:
        eye = torch.eye(a.shape[1] * size, dtype=a.dtype, device=a.device).view(-1, a.shape[1], *layer.kernel_size)
        v = _CONVOLVE[dimensions](padded(layer, a), eye, None, layer.stride, 0, layer.dilation)
        return v.flatten(2).unflatten(1, (a.shape[1], size))
    a = padded(layer, a)
    for axis, (size, step, gap) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        a = a.unfold(axis + 2, gap * (size - 1) + 1, step)[..., ::gap]
    # Now (n, channels, *output positions, *kernel positions).
    a = a.flatten(2, 1 + dimensions) if dimensions > 1 else a
    a = a.flatten(3) if dimensions > 1 else a
    return a.transpose(2, 3)


def convolution_rule(call: Call, ledger: GradientAccumulator) -> None:
    """Conv1d, Conv2d and Conv3d with groups, stride, dilation and every padding mode."""
    layer: Any = call.layer
    n, groups, dimensions = ledger.n, layer.groups, len(layer.kernel_size)
    d, a = call.d, call.inputs[0].to(call.d.dtype)
    if d.ndim == dimensions + 1:
        d, a = d.unsqueeze(0), a.unsqueeze(0)  # one sample without a dimension of its own
    d, a = call.fold(d).flatten(0, 1), call.fold(a).flatten(0, 1)
    positions = d.shape[0] // n
    rows, columns = d.shape[1], a.shape[1] // groups * math.prod(layer.kernel_size)
    place = ledger.places.get(call.names.get("weight", ""))
    bias = ledger.places.get(call.names.get("bias", ""))
    if place is None or not fits(place, rows, columns) or full_is_cheaper(place, rows, columns, UNFOLDING):
        if place is not None:
            ledger.add_gradient(call.names["weight"], _full_gradient(layer, d, a, n))
        if bias is not None:
            ledger.add_gradient(call.names["bias"], d.flatten(2).sum(-1).unflatten(0, (n, -1)).sum(1))
        return
    joint = bias is not None and bias.block is place.block
    if bias is not None and not joint:
        ledger.add_gradient(call.names["bias"], d.flatten(2).sum(-1).unflatten(0, (n, -1)).sum(1))
    left = place.block.cast("left", d)
    weight_part, bias_part = columns_of(call, place, ledger, d)
    if weight_part is None:
        v = patches(layer, a).unflatten(1, (groups, -1)).flatten(2, 3)
        v = torch.cat([v, v.new_ones(*v.shape[:2], 1, v.shape[-1])], 2) if joint else v
    else:
        kernel = weight_part.reshape(-1, a.shape[1] // groups, *layer.kernel_size)
        plain = layer.padding_mode == "zeros"
        v = _CONVOLVE[dimensions](
            a if plain else padded(layer, a),
            kernel if groups == 1 else kernel.repeat(groups, *(1 for _ in kernel.shape[1:])),
            bias_part if bias_part is None or groups == 1 else bias_part.repeat(groups),
            layer.stride,
            layer.padding if plain else 0,
            layer.dilation,
            groups,
        )
        v = v.flatten(2).unflatten(1, (groups, -1))
    # v: (n * positions, groups, q, t)
    # The output's projection comes after the sum over positions: q O multiplications a position, not p O + p q. The
    # short side goes first, which batched products on the CPU prefer by a factor of two to seven.
    share = (v @ d.flatten(2).unflatten(1, (groups, -1)).transpose(2, 3)).transpose(2, 3).flatten(1, 2)
    share = share if left is None else left @ share
    if positions > 1:
        share = share.unflatten(0, (n, positions)).sum(1)
    ledger.add_block(place, share)


def _full_gradient(layer: Any, d: Tensor, a: Tensor, n: int) -> Tensor:
    unfolded = patches(layer, a).unflatten(1, (layer.groups, -1)).flatten(2, 3)
    gradient = d.flatten(2).unflatten(1, (layer.groups, -1)) @ unfolded.transpose(2, 3)
    gradient = gradient.flatten(1, 2).reshape(-1, *layer.weight.shape)
    return gradient if len(gradient) == n else gradient.unflatten(0, (n, -1)).sum(1)

"""Per-sample gradients from layer inputs and output gradients: one forward and one backward pass over activations.

`LAYER_RULES` says which layers are known, by exact type: a subclass may compute something else. A parameter outside
them goes through `exact_gradients`, and the engine's notes name it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from covary.engine.calls import Rule
from covary.engine.convolution import convolution
from covary.engine.embedding import embedding, plain_lookup
from covary.engine.linear import linear
from covary.engine.normalisation import (
    always,
    batch_norm,
    batch_norm_input,
    frozen_statistics,
    group_norm,
    instance_norm,
    layer_norm,
    own_statistics,
    rms_norm,
)


class LayerRule(NamedTuple):
    """A rule, the condition under which a layer of that type follows it, and where it pays a backward of our own."""

    rule: Rule
    holds: Callable[..., bool] = always
    input_gradient: Callable[[Any, Tensor], Tensor] | None = None


LAYER_RULES: dict[type[nn.Module], LayerRule] = {
    nn.Linear: LayerRule(linear),
    nn.Conv1d: LayerRule(convolution),
    nn.Conv2d: LayerRule(convolution),
    nn.Conv3d: LayerRule(convolution),
    nn.Embedding: LayerRule(embedding, plain_lookup),
    nn.BatchNorm1d: LayerRule(batch_norm, frozen_statistics, batch_norm_input),
    nn.BatchNorm2d: LayerRule(batch_norm, frozen_statistics, batch_norm_input),
    nn.BatchNorm3d: LayerRule(batch_norm, frozen_statistics, batch_norm_input),
    nn.GroupNorm: LayerRule(group_norm),
    nn.InstanceNorm1d: LayerRule(instance_norm, own_statistics),
    nn.InstanceNorm2d: LayerRule(instance_norm, own_statistics),
    nn.InstanceNorm3d: LayerRule(instance_norm, own_statistics),
    nn.LayerNorm: LayerRule(layer_norm),
    nn.RMSNorm: LayerRule(rms_norm),
}

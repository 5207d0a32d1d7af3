"""Per-sample gradients from layer inputs and output gradients: one forward and one backward pass over activations.

`LAYER_RULES` says which layers are known, by exact type: a subclass may compute something else. What other layers do
with their weights is looked up in `operations`; where that is nothing known, a layer that alone holds its weights
follows `LEAF_RULE`. A parameter outside them goes through `exact_gradients`, and the engine's notes name it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from covary.features.engine.calls import Rule
from covary.features.engine.rules.attention import attention_rule, one_projection
from covary.features.engine.rules.convolution import convolution_rule
from covary.features.engine.rules.embedding import embedding_rule, plain_lookup
from covary.features.engine.rules.leaf import leaf_rule, on_its_own
from covary.features.engine.rules.linear import linear_rule
from covary.features.engine.rules.normalisation import (
    always,
    batch_norm_rule,
    frozen_statistics,
    group_norm_rule,
    instance_norm_rule,
    layer_norm_rule,
    own_statistics,
    rms_norm_rule,
)
from covary.features.engine.rules.recurrent import between_layers_alike, recurrent_rule


class LayerRule(NamedTuple):
    """A rule and how it is used.

    Attributes:
        rule: turns a call into shares of the gradient.
        holds: when a layer of that type follows it.
        own_backward: the rule also gives the gradient of the layer's input.
        all_arguments: the rule wants more of the call than its first input.
        parameters: names within the layer that the rule sees to; the empty tuple = whatever the layer owns.
    """

    rule: Rule
    holds: Callable[..., bool] = always
    own_backward: bool = False
    all_arguments: bool = False
    parameters: tuple[str, ...] = ("weight", "bias")


LAYER_RULES: dict[type[nn.Module], LayerRule] = {
    nn.Linear: LayerRule(linear_rule),
    nn.Conv1d: LayerRule(convolution_rule),
    nn.Conv2d: LayerRule(convolution_rule),
    nn.Conv3d: LayerRule(convolution_rule),
    nn.Embedding: LayerRule(embedding_rule, plain_lookup),
    nn.BatchNorm1d: LayerRule(batch_norm_rule, frozen_statistics, own_backward=True),
    nn.BatchNorm2d: LayerRule(batch_norm_rule, frozen_statistics, own_backward=True),
    nn.BatchNorm3d: LayerRule(batch_norm_rule, frozen_statistics, own_backward=True),
    nn.GroupNorm: LayerRule(group_norm_rule),
    nn.InstanceNorm1d: LayerRule(instance_norm_rule, own_statistics),
    nn.InstanceNorm2d: LayerRule(instance_norm_rule, own_statistics),
    nn.InstanceNorm3d: LayerRule(instance_norm_rule, own_statistics),
    nn.LayerNorm: LayerRule(layer_norm_rule),
    nn.RMSNorm: LayerRule(rms_norm_rule),
    nn.MultiheadAttention: LayerRule(
        attention_rule,
        one_projection,
        all_arguments=True,
        parameters=("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"),
    ),
    nn.LSTM: LayerRule(recurrent_rule, between_layers_alike, all_arguments=True, parameters=()),
    nn.GRU: LayerRule(recurrent_rule, between_layers_alike, all_arguments=True, parameters=()),
    nn.RNN: LayerRule(recurrent_rule, between_layers_alike, all_arguments=True, parameters=()),
}

# Any other layer that alone holds its weights: its own gradient, nothing else's.
LEAF_RULE = LayerRule(leaf_rule, on_its_own, all_arguments=True, parameters=())

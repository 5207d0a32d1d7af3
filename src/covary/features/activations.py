"""Pooled activations: one vector per sample and layer, taken from the pass that already runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from covary.features.layouts import Layout, folded

_CHANNELS_SECOND = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.GroupNorm,
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.MultiheadAttention)
_HEADS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Among pooled activations, the name of what the last linear layer takes.
LAST_FEATURES = "input of the last layer"
# Where a layer of a known kind says how wide its output is.
_WIDTHS = ("out_channels", "num_features", "num_channels", "out_features", "embed_dim", "normalized_shape")

T = TypeVar("T")
# By layer and call, the layout of its (first) output; `None` where one pass holds one sample.
Layouts = Mapping[str, list[Layout | None]]


def watched_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Every convolution, normalisation, linear and attention layer, by name; norms of other libraries by class name.

    What computes a weight (a parametrisation) and what an attention uses without calling it are no layers. Instance
    normalisations, and group normalisations of one channel a group, tell nothing: their mean over positions is their
    bias, and what is left is rounding.
    """
    inner: set[int] = set()
    for child in module.modules():
        if parametrize.is_parametrized(child):
            inner.update(id(part) for part in child.parametrizations.modules())  # type: ignore[union-attr]
        if isinstance(child, nn.MultiheadAttention):
            inner.add(id(child.out_proj))
    return {
        name: child
        for name, child in module.named_modules()
        if id(child) not in inner
        and (isinstance(child, _CHANNELS_SECOND + _CHANNELS_LAST) or type(child).__name__.endswith("Norm"))
        and not (isinstance(child, nn.GroupNorm) and child.num_groups == child.num_channels)
    }


def last_layer(module: nn.Module) -> nn.Module | None:
    """The last linear layer that the module registers; in a network without any its last convolution."""
    layers = [child for child in module.modules() if isinstance(child, _HEADS)]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    return (linear or layers or [None])[-1]


def width(layer: nn.Module) -> int | None:
    """How many numbers a layer's pooled activation has, where that can be told without running it."""
    for name in _WIDTHS:
        found = getattr(layer, name, None)
        if isinstance(found, (tuple, list)) and found:
            found = found[-1]
        if isinstance(found, int):
            return found
    weight = getattr(layer, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.ndim == 1 else None


def first_tensor(output: Any) -> Tensor:
    """A layer's output, or the first of several."""
    return output[0] if isinstance(output, (tuple, list)) else output


def pool(layer: nn.Module, output: Any, n: int | None = None, layout: Layout | None = None) -> Float[Tensor, "n C"]:
    """Mean of a layer's output over positions: all dimensions but the sample and the channel.

    `layout` says where the samples are; without one the first dimension holds one sample a row. Of n = 1 sample
    everything is a position.
    """
    output = first_tensor(output)
    if n is None:
        n, layout = len(output), Layout()
    axis = 0 if layout is None else layout.axis
    if output.ndim == 1:
        return output.unsqueeze(0) if n == 1 else folded(output, layout, n).mean(1).unsqueeze(-1)
    channel = channel_of(layer, output, axis)
    by_sample = folded(output.movedim(channel, -1), layout, n, axis - (axis > channel))
    return by_sample.mean(tuple(range(1, by_sample.ndim - 1)))


def channel_of(layer: nn.Module, output: Tensor, axis: int) -> int:
    """The dimension of a layer's output that holds its channels, where `axis` holds the samples."""
    last = output.ndim - 1
    if isinstance(layer, _CHANNELS_SECOND):
        return 1
    # A layer normalisation over channels of images is a class of its own, which moves them to the end and back.
    images = isinstance(layer, nn.LayerNorm) and type(layer) is not nn.LayerNorm and last == 3 and axis == 0
    images = images and getattr(layer, "data_format", "channels_first") == "channels_first"
    return 1 if images and output.shape[1] == width(layer) else last


@contextmanager
def pooled_activations(
    module: nn.Module, n: int | None = None, layouts: Layouts | None = None
) -> Iterator[dict[str, Float[Tensor, "n C"]]]:
    """Collects pooled activations of the forward passes that run inside; a layer called twice gives their mean.

    `LAST_FEATURES` names what the last linear layer takes, of its last call.
    `n` is the number of samples, `layouts` where they are (see `pool`).
    """
    sums: dict[str, Tensor] = {}
    calls: dict[str, int] = {}
    result: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        places = None if layouts is None else layouts.get(name, [])

        def save(layer: nn.Module, _: Any, output: Any) -> None:
            count = calls.get(name, 0)
            layout = None if places is None else call_of(places, count)
            # Cloned, because with nothing to average it is a view that an in-place activation would change.
            pooled = pool(layer, first_tensor(output).detach(), n, layout if n != 1 else None).clone()
            sums[name] = sums[name] + pooled if name in sums else pooled
            calls[name] = count + 1
            result[name] = sums[name] / calls[name]

        return save

    def take(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        # Laid out as the output of the same call is.
        if inputs and isinstance(inputs[0], Tensor):
            places = None if layouts is None else layouts.get(head_name, [])
            layout = None if places is None or n == 1 else call_of(places, calls.get(head_name, 0))
            result[LAST_FEATURES] = pool(layer, inputs[0].detach(), n, layout).clone()

    handles = [child.register_forward_hook(hook(name)) for name, child in watched_layers(module).items()]
    head = last_layer(module)
    head_name = next((name for name, child in module.named_modules() if child is head), "")
    if head is not None:
        handles.append(head.register_forward_pre_hook(take))
    try:
        yield result
    finally:
        for handle in handles:
            handle.remove()


def call_of(places: list[T], count: int) -> T | None:
    """What was found of a layer's call number `count`; where all calls are alike, of any."""
    if count < len(places):
        return places[count]
    return places[-1] if places and all(place == places[-1] for place in places) else None


def with_zeros(activations: Mapping[str, Tensor], layers: Mapping[str, nn.Module], n: int) -> dict[str, Tensor]:
    """Activations of every layer, in order: rows of zeros for those that the pass did not reach.

    None at all where it reached no layer, since another copy of the network ran then.
    """
    if not activations:
        return {}
    some = next(iter(activations.values()))
    result = {name: rows for name, rows in activations.items() if name not in layers}
    for name, layer in layers.items():
        if name in activations:
            result[name] = activations[name]
        elif (wide := width(layer)) is not None:
            result[name] = torch.zeros(n, wide, device=some.device)
    return result


def compress(activations: Float[Tensor, "n C"], projection: Float[Tensor, "k C"] | None) -> Float[Tensor, "n k"]:
    """At most k numbers a layer, by a seeded projection where the layer is wider."""
    activations = activations.float()
    return activations if projection is None else activations @ projection.T.to(activations)

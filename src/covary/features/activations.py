"""Pooled activations: one vector per sample and layer, taken from the pass that already runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

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
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.MultiheadAttention)
_HEADS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

# Among pooled activations, the name of what the last linear layer takes.
LAST_FEATURES = "input of the last layer"


def watched_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Every convolution, normalisation, linear and attention layer, by name; norms of other libraries by class name."""
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, _CHANNELS_SECOND + _CHANNELS_LAST) or type(child).__name__.endswith("Norm")
    }


def last_layer(module: nn.Module) -> nn.Module | None:
    """The last linear layer that the module registers; in a network without any its last convolution."""
    layers = [child for child in module.modules() if isinstance(child, _HEADS)]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    return (linear or layers or [None])[-1]


def first_tensor(output: Any) -> Tensor:
    """A layer's output, or the first of several."""
    return output[0] if isinstance(output, (tuple, list)) else output


def pool(layer: nn.Module, output: Any, n: int | None = None, axis: int = 0) -> Float[Tensor, "n C"]:
    """Mean of a layer's output over positions: all dimensions but the sample and the channel.

    `axis` is the sample's dimension. With `n` samples given, a first dimension of other size is a position if the
    second one has that size, and samples with positions folded in if it is a multiple.
    """
    output = first_tensor(output)
    if axis == 0 and n is not None and output.shape[0] != n and output.ndim > 2 and output.shape[1] == n:
        axis = 1
    output = output.movedim(axis, 0)
    if output.ndim <= 2:
        pooled = output.reshape(output.shape[0], -1)
    elif isinstance(layer, _CHANNELS_SECOND):
        pooled = output.flatten(2).mean(-1)
    else:
        pooled = output.flatten(1, -2).mean(1)
    folded = n is not None and pooled.shape[0] != n and pooled.shape[0] % n == 0
    return pooled.unflatten(0, (n, -1)).mean(1) if folded else pooled


@contextmanager
def pooled_activations(
    module: nn.Module, n: int | None = None, axes: Mapping[str, int] | None = None
) -> Iterator[dict[str, Float[Tensor, "n C"]]]:
    """Collects pooled activations of the forward passes that run inside; a layer called twice gives their mean.

    `LAST_FEATURES` names what the last linear layer takes, of its last call.
    `n` is the number of samples, `axes` the sample's dimension where it is known of a layer (see `pool`).
    """
    sums: dict[str, Tensor] = {}
    calls: dict[str, int] = {}
    result: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        axis = (axes or {}).get(name, 0)

        def save(layer: nn.Module, _: Any, output: Any) -> None:
            # Cloned, because with nothing to average it is a view that an in-place activation would change.
            pooled = pool(layer, first_tensor(output).detach(), n, axis).clone()
            sums[name] = sums[name] + pooled if name in sums else pooled
            calls[name] = calls.get(name, 0) + 1
            result[name] = sums[name] / calls[name]

        return save

    def take(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            result[LAST_FEATURES] = pool(layer, inputs[0].detach(), n, head_axis).clone()

    handles = [child.register_forward_hook(hook(name)) for name, child in watched_layers(module).items()]
    head = last_layer(module)
    head_axis = next((a for name, a in (axes or {}).items() if module.get_submodule(name) is head), 0)
    if head is not None:
        handles.append(head.register_forward_pre_hook(take))
    try:
        yield result
    finally:
        for handle in handles:
            handle.remove()


def compress(activations: Float[Tensor, "n C"], projection: Float[Tensor, "k C"] | None) -> Float[Tensor, "n k"]:
    """At most k numbers a layer, by a seeded projection where the layer is wider."""
    activations = activations.float()
    return activations if projection is None else activations @ projection.T.to(activations)

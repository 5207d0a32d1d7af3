"""Which dimension of every layer's output is the sample: told by running two and three samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from covary.features.activations import first_tensor


def sample_axes(layers: Mapping[str, nn.Module], x: Any, forward: Callable[[Any], Any]) -> dict[str, int]:
    """Per layer that was called, the first dimension of its output that grows with the number of samples."""
    two, three = (_shapes(layers, _some(x, n), forward) for n in (2, 3))
    return {name: _grows(two[name], three[name]) for name in two if name in three}


def _grows(two: tuple[int, ...], three: tuple[int, ...]) -> int:
    return next((axis for axis, (a, b) in enumerate(zip(two, three, strict=False)) if a != b), 0)


def _some(x: Any, n: int) -> Any:
    return tree_map(lambda leaf: leaf[torch.arange(n, device=leaf.device) % len(leaf)], x)


def _shapes(layers: Mapping[str, nn.Module], x: Any, forward: Callable[[Any], Any]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            shapes.setdefault(name, tuple(first_tensor(output).shape))

        return hook

    handles = [layer.register_forward_hook(look(name)) for name, layer in layers.items()]
    try:
        # With gradients, because checkpointed layers warn without.
        with torch.enable_grad():
            forward(x)
    finally:
        for handle in handles:
            handle.remove()
    return shapes

"""Our functional and latent evidence, differentiable in the weights, for an attacker who trains against them.

The profile of arXiv 2604.18970's question, asked of one gradient: per layer the log length n of the margin's gradient
and what of its direction no clean input (v), and none of the attacker's class (o), accounts for; the same of pooled
activations. Gradients are seen through random sketches that are drawn anew with every reference: a fixed one would be
a place to hide.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from covary_bench.images.attacks.clean_reference import FEATURES, inside, log_distance, precision, quantile_distance
from covary_bench.images.attacks.own_profile import Reference, margins, reference

SKETCH = 12  # rows and columns of a layer's sketched gradient
KINDS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
Sketches = Mapping[str, tuple[Tensor, Tensor]]


def sketches(network: nn.Module, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Random matrices for the inputs and the outputs' gradients of every convolution and linear layer."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            out, *inner = layer.weight.shape
            if isinstance(layer, nn.Conv2d):
                inner[0] = layer.in_channels
            taken = torch.randn(SKETCH, *inner, generator=generator) / SKETCH**0.5
            found[name] = (taken, torch.randn(out, SKETCH, generator=generator) / SKETCH**0.5)
    return found


def sketched_gradients(
    network: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], by: Sketches
) -> dict[str, Float[Tensor, "n d"]]:
    """Every input's gradient of its margin in every layer's weights; differentiable unless gradients are off.

    Of a convolution and of a linear layer G as Bᵀ G A, all of them out of one pass: samples do not touch each other
    where normalisation keeps its statistics. Of a normalisation the whole gradient of scale and shift.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    layers = {name: module for name, module in network.named_modules() if isinstance(module, KINDS)}

    def keep(name: str):
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name], outputs[name] = args[0], output

        return hook

    kept = torch.is_grad_enabled()
    x = x.detach().requires_grad_(True)  # a network at rest has no other beginning of a graph
    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        with torch.enable_grad():
            value = margins(network, x, y).sum()
    finally:
        for handle in handles:
            handle.remove()
    moved = dict(zip(outputs, torch.autograd.grad(value, list(outputs.values()), create_graph=kept), strict=True))
    return {name: _rows(layers[name], inputs[name], moved[name], by.get(name)) for name in outputs}


def _rows(layer: nn.Module, inputs: Tensor, moved: Tensor, by: tuple[Tensor, Tensor] | None) -> Float[Tensor, "n d"]:
    if isinstance(layer, nn.BatchNorm2d):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        scale = (layer.running_var + layer.eps).sqrt()[:, None, None]
        normal = (inputs - layer.running_mean[:, None, None]) / scale
        return torch.cat(((moved * normal).sum((2, 3)), moved.sum((2, 3))), dim=1)
    assert by is not None
    if isinstance(layer, nn.Conv2d):
        taken = functional.conv2d(inputs, by[0], None, layer.stride, layer.padding, layer.dilation)
        return torch.einsum("nphw,nohw,oq->npq", taken, moved, by[1]).flatten(1)
    return torch.einsum("np,nq->npq", inputs @ by[0].T, moved @ by[1]).flatten(1)


class ClassProfile:
    """(n, v, o) of every layer's gradients and activations against clean inputs, and their joint distance.

    `x` and `mine` as in `CleanReference`; half of `mine` are references of their class, the other half tell how the
    numbers of clean inputs vary together.
    """

    def __init__(
        self, network: nn.Module, x: Float[Tensor, "n c h w"], mine: Float[Tensor, "m c h w"], target: int, seed: int
    ) -> None:
        self.network, self.target, self.sketches = network, target, sketches(network, seed)
        half = len(mine) // 2
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            answers = network(x).argmax(1)
            every, own = self._seen(x, answers), self._seen(mine[:half], torch.full((half,), target))
            self.references: list[dict[str, tuple[Reference, Reference]]] = []
            for all_rows, own_rows, centred in zip(every, own, (False, True), strict=True):
                pairs = {}
                for name, rows in all_rows.items():
                    known = reference(rows, centred, generator)
                    pairs[name] = (known, known.of_class(own_rows[name]))
                self.references.append(pairs)
            numbers = self._numbers(mine[half:])
            self.means = [part.mean(0) for part in numbers]
            self.scales = [part.std(0) + 0.05 for part in numbers]
            self.joint = [
                precision((part - mean) / scale)
                for part, mean, scale in zip(numbers, self.means, self.scales, strict=True)
            ]

    def apart(self, odd: Float[Tensor, "a c h w"], own: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
        """How far triggered inputs are from clean ones of the attacker's class, by every number and by all together."""
        return self.apart_and_pairs(odd, own)[0]

    def apart_and_pairs(
        self, odd: Float[Tensor, "a c h w"], own: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, ""], list[tuple[Tensor, Tensor, Tensor]]]:
        """The same, with the standardised numbers of both and their precision, of gradients and of activations."""
        parts, pairs = [], []
        with torch.no_grad():
            clean = self._numbers(own)
        for a, b, mean, scale, joint in zip(
            self._numbers(odd), clean, self.means, self.scales, self.joint, strict=True
        ):
            pairs.append(((a - mean) / scale, (b - mean) / scale, joint))
            parts.append(quantile_distance(a, b).mean())
            far = [log_distance((rows - mean) / scale, joint)[:, None] for rows in (a, b)]
            parts.append(quantile_distance(far[0], far[1]).mean())
        return torch.stack(parts).mean(), pairs

    def _seen(self, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"]) -> list[dict[str, Tensor]]:
        rows, _ = inside(self.network, x)
        del rows[FEATURES]
        return [sketched_gradients(self.network, x, y, self.sketches), rows]

    def _numbers(self, x: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "n m"]]:
        """Of gradients, with the margin; of activations."""
        y = torch.full((len(x),), self.target)
        found = []
        for seen, known in zip(self._seen(x, y), self.references, strict=True):
            parts = []
            for name, rows in seen.items():
                every, own = known[name]
                parts += [every.numbers(rows), own.numbers(rows)[:, 1:]]
            found.append(torch.cat(parts, dim=1))
        found[0] = torch.cat((found[0], margins(self.network, x, y)[:, None]), dim=1)
        return found

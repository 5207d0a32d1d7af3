"""One graph from inputs to logits, answers, confidence and activations: what a forward pass of a detector gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from covary.data.preprocessing import LARGEST
from covary.errors import CovaryError
from covary.features.activations import (
    call_of,
    channel_of,
    compress,
    first_tensor,
    watched_layers,
    width,
)
from covary.features.gradient import GradientExtractor
from covary.features.layouts import Layout
from covary.features.observables import energy, margin
from covary.models.network import as_logits, sharing_weights


class Graph(nn.Module):
    """A network, what is done to its inputs, and the numbers of its latent and confidence evidence, as one module.

    x -> logits (n, C), predicted (n,) int64, confidence (n, 2): margin and energy, and latent (n, sum of k_l): the
    pooled and compressed activations of all layers side by side. Batches may be of any size.

    Args:
        extractor: of latent evidence, which has seen some inputs already.
        mean, std: of the preprocessing, per channel.
        pixels: whether it takes images of uint8, (n, h, w, c) or (n, h, w), and scales them itself.

    Attributes:
        layers: how many numbers each layer gives, by name, in order.
    """

    def __init__(
        self, extractor: GradientExtractor, mean: list[float] | None, std: list[float] | None, pixels: bool
    ) -> None:
        super().__init__()
        self.network = sharing_weights(extractor.module, trainable=False).eval()
        self.selector, self.pixels = extractor.host.output, pixels
        self.moments = [None if v is None else torch.tensor(v, dtype=torch.float32) for v in (mean, std)]
        self._watched = watched_layers(self.network)
        projections = extractor.activation_projections
        self.projections = {name: projections.get(name) for name in self._watched}
        self._layouts = extractor.layouts
        self._seen: dict[str, list[Tensor]] = {}
        for name, layer in self._watched.items():
            layer.register_forward_hook(self._hook(name))
        self.layers: dict[str, int] = {}

    def _hook(self, name: str) -> Any:
        def see(layer: nn.Module, _: Any, output: Any) -> None:
            calls = self._seen.setdefault(name, [])
            layout = call_of(self._layouts.get(name, []), len(calls)) or Layout()
            # A copy, since an activation that follows may work in place.
            calls.append(mean_over_positions(layer, first_tensor(output), layout).clone())

        return see

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits, predicted classes, confidence and latent numbers of a batch."""
        self._seen.clear()
        logits = as_logits(self.network(self.prepared(x)), self.selector).float()
        predicted = logits.argmax(-1)
        confidence = torch.stack([margin(logits, predicted), energy(logits)], dim=1)
        parts = {}
        for name, layer in self._watched.items():
            calls, wide = self._seen.get(name, []), width(layer)
            if calls:
                parts[name] = compress(sum(calls[1:], calls[0]) / len(calls), self.projections[name])
            elif wide is not None:
                # Rows of zeros of a layer that no pass reaches.
                zeros = torch.zeros_like(logits[:, :1]).expand(-1, wide)
                parts[name] = compress(zeros, self.projections[name])
        self.layers = {name: part.shape[1] for name, part in parts.items()}
        return logits, predicted, confidence, torch.cat(list(parts.values()), dim=1)

    def prepared(self, x: Tensor) -> Tensor:
        """Inputs as the network takes them: scaled, mean and standard deviation taken off."""
        if self.pixels:
            x = x.unsqueeze(1) if x.ndim == 3 else x.movedim(-1, 1)
            x = x.float() / float(max(LARGEST.values()) if x.dtype == torch.uint16 else 255)
        for i, values in enumerate(self.moments):
            if values is not None:
                values = values.view((1, -1) + (1,) * (x.ndim - 2))
                x = x - values if i == 0 else x / values
        return x


def mean_over_positions(layer: nn.Module, output: Tensor, layout: Layout) -> Tensor:
    """What `activations.pool` gives, without asking how many samples there are."""
    if output.ndim == 1:
        return output.reshape(layout.outer, -1, layout.inner).mean((0, 2)).unsqueeze(-1)
    channel = channel_of(layer, output, layout.axis)
    output = output.movedim(channel, -1).movedim(layout.axis - (layout.axis > channel), 0)
    if layout.outer > 1 or layout.inner > 1:
        output = output.reshape(layout.outer, -1, layout.inner, *output.shape[1:]).movedim(1, 0)
    positions = tuple(range(1, output.ndim - 1))
    return output.mean(positions) if positions else output


def check_exportable(extractor: Any, settings: Any, input_shape: tuple[int, ...] | None) -> None:
    """Refuses detectors whose numbers no graph of one forward pass can give, each in one sentence.

    Raises:
        CovaryError: evidence that needs gradients or draws; texts, token ids or several inputs; reduced precision;
            samples that meet in the network.
    """
    remedy = "fit again with evidence=latent"
    if not isinstance(extractor, GradientExtractor) or not extractor.latent:
        kind = getattr(settings.extractor, "evidence", None) or settings.extractor.kind
        found = f"a detector of {kind} evidence, which a forward pass alone does not give"
        raise CovaryError(found, "evidence latent", remedy)
    if input_shape is None:
        found = "a detector of inputs that have no shape of their own, such as token ids or several fields"
        raise CovaryError(found, "one float array an input", "serve it with `covary serve` or a Monitor")
    if settings.amp is not None or extractor.dtype != torch.float32:
        found = f"a detector in {settings.amp or str(extractor.dtype).removeprefix('torch.')}"
        raise CovaryError(found, "float32", "load the network in float32, and fit again without amp=")

"""Beatrix: Gram matrices of features, of several orders (Ma et al. 2023, arXiv 2209.11715, section IV)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from covary_bench.baselines.material import Material, Pixels, Probe

SLACK = 10.0


def feature_maps(probe: Probe, pixels: Pixels) -> Float[Tensor, "n f p"]:
    """What the last convolution gives (positions flattened); networks without one: what the last linear layer takes."""
    convolutions = [layer for layer in probe.module.modules() if isinstance(layer, nn.Conv2d)]
    taken: list[Tensor] = []
    if convolutions:
        handle = convolutions[-1].register_forward_hook(lambda _, __, out: taken.append(out.detach().flatten(2).cpu()))
    else:
        linear = [layer for layer in probe.module.modules() if isinstance(layer, nn.Linear)][-1]
        handle = linear.register_forward_pre_hook(lambda _, x: taken.append(x[0].detach().flatten(1)[..., None].cpu()))
    try:
        probe.logits(pixels, exact=True)
    finally:
        handle.remove()
    return torch.cat(taken).float()


def gram_numbers(maps: Float[Tensor, "n c p"], orders: tuple[int, ...]) -> Float[np.ndarray, "n d"]:
    """Row sums of the signed p-th root of F^p (F^p)^T for each order p; the paper's closed form of the vector.

    Row sums in place of all c(c+1)/2 entries: as in the generalised Gram statistics it builds on, and c numbers an
    order instead of c squared. Powers are taken of |F|, signed, after scaling by its largest value (no overflow).
    """
    parts = []
    for part in maps.split(64):
        scale = part.abs().amax((1, 2), keepdim=True).clamp_min(1e-12)
        unit = (part / scale).double()
        for_orders = []
        for order in orders:
            powered = unit.sign() * unit.abs() ** order
            gram = powered @ powered.transpose(1, 2)
            rooted = gram.sign() * gram.abs() ** (1 / order)
            for_orders.append(rooted.sum(2) * scale.double()[:, :, 0] ** 2)
        parts.append(torch.cat(for_orders, 1))
    return torch.cat(parts).numpy()


def beatrix(m: Material, orders: int = 9) -> Float[np.ndarray, " q"]:
    """Sum of how far each Gram number lies beyond median +- 10 MAD of trusted images of the predicted class.

    Relative to those bounds; orders 1 .. `orders`; higher = more anomalous. A class with fewer than five trusted
    images takes the bounds of all.
    """
    probe, powers = m.network, tuple(range(1, orders + 1))
    trusted = gram_numbers(feature_maps(probe, probe.trusted), powers)
    queries = gram_numbers(feature_maps(probe, probe.queries), powers)
    result = np.empty(len(queries))
    for label in np.unique(m.queries.predicted):
        own = trusted[m.trusted.predicted == label]
        own = own if len(own) >= 5 else trusted
        median = np.median(own, axis=0)
        mad = np.median(np.abs(own - median), axis=0)
        low, high = median - SLACK * mad, median + SLACK * mad
        chosen = m.queries.predicted == label
        x = queries[chosen]
        under = np.maximum(low - x, 0) / np.maximum(np.abs(low), 1e-9)
        over = np.maximum(x - high, 0) / np.maximum(np.abs(high), 1e-9)
        # Inside all bounds everything would tie at 0: a trace of the plain deviation orders those.
        inside = 1e-6 * (np.abs(x - median) / (mad + 1e-9 + 1e-3 * np.abs(median))).mean(1)
        result[chosen] = (under + over).sum(1) + inside
    return result

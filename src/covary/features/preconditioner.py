"""Metrics: how far each weight direction may move, from the second moments of trusted gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from covary.errors import CovaryError, unknown_name
from covary.features.projections import Block, LayerProjection

# name -> what Sigma in the coupling g^T Sigma g' is.
METRICS: dict[str, str] = {
    "identity": "Sigma = I: every weight moves alike",
    "diagonal": "the diagonals of the Kronecker factors alone: one scale a row and one a column",
    "kronecker": "damped inverse of the Kronecker-factored second moments of trusted gradients, in their eigenbasis",
}
DAMPING = 0.1
# Sides longer than this keep the diagonal of their factor: its eigenvectors would cost more than they tell.
LONGEST_SIDE = 2048


@dataclass(frozen=True)
class Sides:
    """Inverse square roots of one block's two damped factors; a vector stands for a diagonal matrix."""

    left: Float[Tensor, "..."]
    right: Float[Tensor, "..."]


# layer -> one pair for each block of its projection
Metric = Mapping[str, list[Sides]]


class GradientMoments:
    """Sums of G G^T and G^T G for every block of every layer over trusted samples."""

    def __init__(self, projections: Mapping[str, LayerProjection], kind: str) -> None:
        if kind not in METRICS:
            raise unknown_name("metric", kind, METRICS)
        self.projections, self.kind, self.n = projections, kind, 0
        self.sums: dict[tuple[str, int], list[Tensor]] = {}

    def add(self, gradients: Mapping[str, Tensor]) -> None:
        """Adds whole per-sample gradients, each parameter (n, *shape)."""
        self.n += len(next(iter(gradients.values())))
        for layer, projection in self.projections.items():
            for position, block in enumerate(projection.blocks):
                own = {name: gradients[name].float() for name in block.parameters if name in gradients}
                if not own:
                    continue
                matrix = block.matrix(own)
                # float64: the small eigenvalues decide what the inverse makes large.
                both = [self._moment(matrix), self._moment(matrix.transpose(1, 2))]
                held = self.sums.get((layer, position))
                self.sums[layer, position] = both if held is None else [a + b for a, b in zip(held, both, strict=True)]

    def _moment(self, matrix: Float[Tensor, "n a b"]) -> Tensor:
        if self.kind == "diagonal" or matrix.shape[1] > LONGEST_SIDE:
            return matrix.double().square().sum((0, 2))
        side = matrix.transpose(0, 1).flatten(1)
        return (side @ side.T).double()

    def metric(self, damping: float = DAMPING) -> dict[str, list[Sides]]:
        """(L / (tr L / a) + damping I)^(-1/2) and its twin for every block.

        With L = E[G G^T] and R = E[G^T G] the second moment of the flattened gradient is nearly L x R / tr L (Kronecker
        product; Morwani et al. 2024, section 3), so that <L^(-1/2) G R^(-1/2), L^(-1/2) G' R^(-1/2)> is g^T Sigma g'
        with Sigma its inverse, up to one factor a layer. Damping is added to each factor (Martens and Grosse 2015,
        section 6.3), in units of the factor's mean eigenvalue.

        Raises:
            CovaryError: identity has no factors, or no gradients were added.
        """
        if self.kind == "identity" or not self.n:
            raise CovaryError(f"metric {self.kind!r} from {self.n} gradients", "diagonal or kronecker, and some")
        found = {}
        for layer, projection in self.projections.items():
            found[layer] = [
                Sides(*(inverse_root(moment, damping) for moment in self.sums[layer, position]))
                if (layer, position) in self.sums
                else Sides(torch.ones(block.rows), torch.ones(block.columns))
                for position, block in enumerate(projection.blocks)
            ]
        return found


def inverse_root(moment: Tensor, damping: float) -> Float[Tensor, "..."]:
    """(M / mean eigenvalue + damping I)^(-1/2) of a symmetric matrix, or of a diagonal given as a vector."""
    if moment.ndim == 1:
        mean = moment.mean().clamp(min=torch.finfo(moment.dtype).tiny)
        return (moment / mean + damping).rsqrt().float()
    mean = moment.diagonal().mean().clamp(min=torch.finfo(moment.dtype).tiny)
    values, vectors = torch.linalg.eigh(moment / mean)
    return ((vectors * (values.clamp(min=0) + damping).rsqrt()) @ vectors.T).float()


def under_metric(projections: Mapping[str, LayerProjection], metric: Metric) -> dict[str, LayerProjection]:
    """The same projections of L^(-1/2) G R^(-1/2) instead of G: the roots are multiplied into the two sides."""
    return {
        layer: projection.with_blocks(
            [_composed(block, sides) for block, sides in zip(projection.blocks, metric[layer], strict=True)]
        )
        for layer, projection in projections.items()
    }


def _composed(block: Block, sides: Sides) -> Block:
    return replace(
        block, left=_times(block.left, sides.left), right=_times(block.right, sides.right), weighted=True, _cast={}
    )


def _times(side: Tensor | None, root: Tensor) -> Tensor:
    full = torch.diag(root) if root.ndim == 1 and side is None else root
    if side is None:
        return full.contiguous()
    return (side * root if root.ndim == 1 else side @ root).contiguous()


def metric_to_arrays(metric: Metric) -> dict[str, np.ndarray]:
    """A metric as named arrays, `metric.LAYER.BLOCK.left` and `.right`, with numbers in place of names."""
    return {
        f"metric.{i}.{j}.{side}": getattr(pair, side).numpy()
        for i, blocks in enumerate(metric.values())
        for j, pair in enumerate(blocks)
        for side in ("left", "right")
    }


def metric_from_arrays(arrays: Mapping[str, np.ndarray], layers: Iterable[str]) -> dict[str, list[Sides]]:
    """The metric of these layers, in the order it was written in."""
    metric: dict[str, list[Sides]] = {}
    for i, layer in enumerate(layers):
        metric[layer] = []
        while f"metric.{i}.{len(metric[layer])}.left" in arrays:
            name = f"metric.{i}.{len(metric[layer])}"
            metric[layer].append(Sides(*(torch.from_numpy(arrays[f"{name}.{side}"]) for side in ("left", "right"))))
    return metric

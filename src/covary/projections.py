"""Seeded random projections: a layer's gradient becomes k numbers that keep inner products."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

MOST, LEAST, BUDGET = 256, 64, 4096


def numbers_per_layer(layers: int) -> int:
    """How many numbers a layer keeps: k = min(256, max(64, floor(4096 / L)))."""
    return min(MOST, max(LEAST, BUDGET // max(layers, 1)))


def _generator(seed: int, *names: str) -> torch.Generator:
    digest = hashlib.sha256("\x1f".join((str(seed), *names)).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def orthogonal_rows(rows: int, columns: int, seed: int, *names: str) -> Float[Tensor, "rows columns"]:
    """Random orthonormal rows scaled by sqrt(columns / rows), so that E[P^T P] = I.

    Drawn on the CPU from a stream named by `names`, so every device and every run agrees; signs are fixed because
    factorisations differ in them between libraries. Orthonormal rather than Gaussian rows: the inner products'
    variance falls by the factor (columns - rows) / columns.
    """
    draw = torch.randn(columns, rows, generator=_generator(seed, *names), dtype=torch.float64)
    q, r = torch.linalg.qr(draw)
    return (q * torch.sign(torch.diagonal(r))).T.mul(math.sqrt(columns / rows)).float().contiguous()


def sides(rows: int, columns: int, k: int) -> tuple[int, int]:
    """Sides (p, q) of a rows x columns matrix's projection with p * q <= k, as square as the shape allows."""
    if rows * columns <= k:
        return rows, columns
    p = q = math.isqrt(k)
    if rows < p:
        p, q = rows, k // rows
    if columns < q:
        p, q = k // columns, columns
    return min(p, rows), min(q, columns)


@dataclass(frozen=True)
class Block:
    """Parameters of one layer that share their leading dimension, side by side as one matrix of rows x columns."""

    parameters: tuple[str, ...]
    rows: int
    columns: int
    left: Float[Tensor, "p rows"] | None
    right: Float[Tensor, "q columns"] | None
    widths: tuple[int, ...] = ()
    _cast: dict[Any, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def sides(self) -> tuple[int, int]:
        """(p, q) of the compressed matrix."""
        return (
            self.rows if self.left is None else self.left.shape[0],
            self.columns if self.right is None else self.right.shape[0],
        )

    @property
    def numbers(self) -> int:
        """How many numbers the block keeps."""
        return self.sides[0] * self.sides[1]

    def cast(self, side: str, like: Tensor) -> Tensor | None:
        """`left` or `right` with the device and the type of `like`; None where that side is kept whole."""
        own = self.left if side == "left" else self.right
        if own is None:
            return None
        key = side, like.device, like.dtype
        if key not in self._cast:
            self._cast[key] = own.to(like)
        return self._cast[key]

    def matrix(self, gradients: Mapping[str, Tensor]) -> Float[Tensor, "n rows columns"]:
        """The block's gradient matrices, weight and bias as neighbouring columns; a missing parameter is zero."""
        some = next(iter(gradients.values()))
        return torch.cat(
            [
                gradients[name].reshape(len(some), self.rows, -1)
                if name in gradients
                else some.new_zeros(len(some), self.rows, width)
                for name, width in zip(self.parameters, self.widths, strict=True)
            ],
            -1,
        )

    def project(self, matrix: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n k"]:
        """P_O G P_I^T, flattened."""
        left, right = self.cast("left", matrix), self.cast("right", matrix)
        if right is not None:
            matrix = matrix @ right.T
        if left is not None:
            matrix = left @ matrix
        return matrix.flatten(1)


class LayerProjection:
    """Two-sided projection of one layer's gradient, sum over its blocks of P_O G P_I^T.

    Unbiased: E<Pg, Pg'> = <g, g'>. Layers of at most k numbers are kept exactly. Parameters whose leading dimensions
    differ (an attention's joint weight beside a scale, say) form blocks with sides of their own and their projections
    are put side by side, each with its share of k.
    """

    def __init__(self, layer: str, shapes: Mapping[str, Sequence[int]], k: int, seed: int) -> None:
        groups: dict[int, list[str]] = {}
        for name, shape in shapes.items():
            lead = next((size for size in shape if size > 1), 1)
            groups.setdefault(lead, []).append(name)
        total = sum(math.prod(shape) for shape in shapes.values())
        share = k if len(groups) == 1 or total <= k else max(k // len(groups), 1)
        self.blocks: list[Block] = []
        for rows, names in groups.items():
            widths = tuple(math.prod(shapes[name]) // rows for name in names)
            columns = sum(widths)
            p, q = sides(rows, columns, share)
            left = None if p == rows else orthogonal_rows(p, rows, seed, layer, str(rows), "left")
            right = None if q == columns else orthogonal_rows(q, columns, seed, layer, str(rows), "right")
            self.blocks.append(Block(tuple(names), rows, columns, left, right, widths))

    def __call__(self, gradients: Mapping[str, Tensor]) -> Float[Tensor, "n k"]:
        """Compressed rows of the layer's per-sample gradients, each parameter (n, *shape)."""
        return torch.cat([block.project(block.matrix(gradients)) for block in self.blocks], -1)


def projection_fingerprint(seed: int) -> str:
    """What the seeded stream gives on this installation; a saved detector refuses to score where it differs."""
    draw = torch.randn(64, generator=_generator(seed, "fingerprint"), dtype=torch.float64)
    return hashlib.sha256(draw.numpy().round(9).tobytes()).hexdigest()[:16]

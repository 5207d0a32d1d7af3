"""Seeded random projections: a layer's gradient becomes k numbers that keep inner products."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

MOST, LEAST, BUDGET = 256, 64, 4096
# Of the first stage: matrices up to WHOLE numbers skip it, others become at most SKETCH numbers in COLUMNS columns.
SMALL, COLUMNS, SKETCH = 1024, 16, 4096


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


def sides(rows: int, columns: int) -> tuple[int, int]:
    """Sides (p, q) of the first, two-sided stage for a rows x columns matrix.

    Narrow enough that the second stage stays small, wide enough that nearly all of the error is the second stage's: a
    small matrix is taken whole, otherwise 16 combinations of columns (a convolution's inputs are cheapest in sixteens)
    and as many rows as leave 4,096 numbers.
    """
    if rows * columns <= SMALL:
        return rows, columns
    q = min(columns, COLUMNS)
    return min(rows, SKETCH // q), q


@dataclass(frozen=True)
class Block:
    """Parameters of one layer that share their leading dimension, side by side as one matrix of rows x columns.

    Attributes:
        left, right: the first stage P_O G P_I^T; None where that side is kept whole.
        last: the second stage, on the flattened result; None where it is small enough.
        weighted: whether a metric is multiplied into the sides, so that norms are those under the metric.
    """

    parameters: tuple[str, ...]
    rows: int
    columns: int
    left: Float[Tensor, "p rows"] | None
    right: Float[Tensor, "q columns"] | None
    last: Float[Tensor, "k pq"] | None = None
    widths: tuple[int, ...] = ()
    weighted: bool = False
    _cast: dict[Any, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def sides(self) -> tuple[int, int]:
        """(p, q) of the first stage."""
        return (
            self.rows if self.left is None else self.left.shape[0],
            self.columns if self.right is None else self.right.shape[0],
        )

    @property
    def numbers(self) -> int:
        """How many numbers the block keeps."""
        return self.sides[0] * self.sides[1] if self.last is None else self.last.shape[0]

    def cast(self, side: str, like: Tensor) -> Tensor | None:
        """`left`, `right` or `last` with the device and the type of `like`; None where there is none."""
        own = {"left": self.left, "right": self.right, "last": self.last}[side]
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
        """Both stages: the flattened P_O G P_I^T, times the dense last projection."""
        left, right = self.cast("left", matrix), self.cast("right", matrix)
        if right is not None:
            matrix = matrix @ right.T
        if left is not None:
            matrix = left @ matrix
        return self.finish(matrix)

    def finish(self, share: Float[Tensor, "n p q"]) -> Float[Tensor, "n k"]:
        """The second stage alone."""
        last = self.cast("last", share)
        return share.flatten(1) if last is None else share.flatten(1) @ last.T


class LayerProjection:
    """Two-stage projection of one layer's gradient matrix G: first P_O G P_I^T, then a dense P on what is left.

    The first stage acts on the layer's inputs and output gradients, so G need not be formed; alone it would lose far
    more than its k numbers must, because the errors of two small sides add up (relative variance 2/p + 2/q of a
    rank-one gradient's squared norm). The second brings it down to nearly that of k unstructured random numbers, 2/k.
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
            p, q = (rows, columns) if rows * columns <= share else sides(rows, columns)
            left = None if p == rows else orthogonal_rows(p, rows, seed, layer, str(rows), "left")
            right = None if q == columns else orthogonal_rows(q, columns, seed, layer, str(rows), "right")
            last = None if p * q <= share else orthogonal_rows(share, p * q, seed, layer, str(rows), "last")
            self.blocks.append(Block(tuple(names), rows, columns, left, right, last, widths))

    def with_blocks(self, blocks: list[Block]) -> LayerProjection:
        """The same layer with other blocks."""
        other = copy.copy(self)
        other.blocks = blocks
        return other

    @property
    def weighted(self) -> bool:
        """Whether a metric is multiplied in."""
        return any(block.weighted for block in self.blocks)

    def __call__(self, gradients: Mapping[str, Tensor]) -> Float[Tensor, "n k"]:
        """Compressed rows of the layer's per-sample gradients, each parameter (n, *shape)."""
        return torch.cat([block.project(block.matrix(gradients)) for block in self.blocks], -1)


def projection_fingerprint(seed: int) -> str:
    """What the seeded stream gives on this installation; a saved detector refuses to score where it differs."""
    draw = torch.randn(64, generator=_generator(seed, "fingerprint"), dtype=torch.float64)
    scheme = f"{MOST} {LEAST} {BUDGET} {SMALL} {COLUMNS} {SKETCH}".encode()
    return hashlib.sha256(scheme + draw.numpy().round(9).tobytes()).hexdigest()[:16]

"""Where the layers' shares of the gradient are summed, compressed, over the calls of one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from covary.features.projections import Block, LayerProjection


@dataclass(frozen=True)
class BlockSlot:
    """Where one parameter's gradient sits: columns [start, stop) of one block of one layer's projection."""

    layer: str
    block: Block
    position: int
    start: int
    stop: int


@dataclass
class PassTotals:
    """What one backward pass over n samples has contributed so far."""

    n: int
    device: torch.device | None = None
    gradients: dict[str, Tensor] = field(default_factory=dict)
    blocks: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    final: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    squares: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)


class GradientAccumulator:
    """Sums one pass's contributions, per layer, as blocks (n, p, q) or as whole gradients (n, *shape).

    A layer's norm is exact where only whole gradients, or a single product |d||a|, came in; else it is the norm of the
    projection, whose relative standard error is about 1 / sqrt(2 k). `norm_kinds` says which it was. A layer that no
    call reached has a row of zeros. Where how many positions a layer sees depends on the sample (`positions_vary`),
    norms are of one kind whatever that number is.
    """

    def __init__(self, layers: Mapping[str, Sequence[str]], projections: Mapping[str, LayerProjection]) -> None:
        self.layers, self.projections = layers, projections
        self.places: dict[str, BlockSlot] = {}
        for layer in layers:
            for position, block in enumerate(projections[layer].blocks):
                start = 0
                for name, columns in zip(block.parameters, block.widths, strict=True):
                    self.places[name] = BlockSlot(layer, block, position, start, start + columns)
                    start += columns
        self.norm_kinds: dict[str, str] = {}
        self.positions_vary = False
        self.begin(0)

    def begin(self, n: int, device: torch.device | None = None) -> None:
        """A fresh page for a pass over n samples."""
        self.page = PassTotals(n, device)

    @property
    def n(self) -> int:
        """How many samples the pass has."""
        return self.page.n

    def add_gradient(self, name: str, gradient: Tensor) -> None:
        """A whole gradient (n, *shape) of one parameter."""
        gradient = gradient.float()
        self.page.gradients[name] = self.page.gradients[name] + gradient if name in self.page.gradients else gradient

    def add_block(self, place: BlockSlot, share: Float[Tensor, "n p q"], squares: Tensor | None = None) -> None:
        """A compressed share of one block; `squares` = this call's exact squared norm (n,)."""
        key = place.layer, place.position
        share = share.float()
        if share.shape[-1] != place.block.sides[1]:
            # An unprojected side: the parameter's own columns among the block's.
            wide = share.new_zeros(*share.shape[:2], place.block.sides[1])
            wide[..., place.start : place.stop] = share
            share = wide
        self.page.blocks[key] = self.page.blocks[key] + share if key in self.page.blocks else share
        self.page.calls[place.layer] = self.page.calls.get(place.layer, 0) + 1
        if squares is not None:
            self.page.squares[place.layer] = squares

    def add_compressed(self, place: BlockSlot, share: Float[Tensor, "n k"]) -> None:
        """A share of one block that went through both stages already."""
        key = place.layer, place.position
        self.page.final[key] = self.page.final[key] + share if key in self.page.final else share
        self.page.calls[place.layer] = self.page.calls.get(place.layer, 0) + 1

    def seen(self, layer: str) -> bool:
        """Whether any call contributed to the layer."""
        return layer in self.page.calls or any(name in self.page.gradients for name in self.layers[layer])

    def rows(self, layer: str) -> tuple[Float[Tensor, "n k"], Float[Tensor, " n"]]:
        """The layer's compressed rows and norms."""
        gradients = {name: self.page.gradients[name] for name in self.layers[layer] if name in self.page.gradients}
        parts = []
        for position, block in enumerate(self.projections[layer].blocks):
            own = {name: gradients[name] for name in block.parameters if name in gradients}
            share = self.page.blocks.get((layer, position))
            if own:
                added = block.project(block.matrix(own))
                share = added if share is None else block.finish(share) + added
            elif share is not None:
                share = block.finish(share)
            final = self.page.final.get((layer, position))
            if final is not None:
                share = final if share is None else share + final
            if share is None:
                share = torch.zeros(self.n, block.numbers, device=self.page.device)
            parts.append(share)
        rows = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        squares = None
        if self.projections[layer].weighted:
            pass  # norms under a metric are those of the rows
        elif layer not in self.page.calls and gradients:
            squares = torch.stack([g.flatten(1).double().square().sum(-1) for g in gradients.values()]).sum(0)
        elif (
            self.page.calls.get(layer) == 1 and layer in self.page.squares and not gradients and not self.positions_vary
        ):
            squares = self.page.squares[layer].double()
        if not self.seen(layer):
            return rows, rows.new_zeros(len(rows), dtype=torch.float64)
        # The kind of the first pass is kept: norms of two kinds do not compare.
        kind = self.norm_kinds.setdefault(layer, "projected" if squares is None else "exact")
        if kind == "projected" or squares is None:
            return rows, rows.double().norm(dim=-1)
        return rows, squares.sqrt()

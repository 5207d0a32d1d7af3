"""Where the samples are in a tensor: in which dimension, and with how many positions folded around them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


class Unsettled(Exception):
    """A tensor does not have the form that was found for its place in the network."""


@dataclass(frozen=True)
class Layout:
    """The dimension that holds the samples, of size outer * n * inner.

    `inner` positions follow each sample there (windows of an image, frames of a film), `outer` stand before all samples
    (`torch.cat([x, x.flip(-1)])`). Of the two at most one may have another size in later batches.
    """

    axis: int = 0
    outer: int = 1
    inner: int = 1

    def folds(self, size: int, n: int) -> tuple[int, int]:
        """(outer, inner) of a dimension of that size with n samples."""
        each, rest = divmod(size, n)
        if rest or each == 0:
            raise Unsettled(f"{size} rows of {n} samples")
        if each == self.outer * self.inner:
            return self.outer, self.inner
        if self.outer == self.inner or (self.outer > 1 and each % self.outer):
            raise Unsettled(f"{each} positions a sample, not {self.outer * self.inner}")
        return (each, 1) if self.inner == 1 else (self.outer, each // self.outer)

    def fold(self, tensor: Tensor, n: int) -> Tensor:
        """(n, positions, *the other dimensions in their order)."""
        tensor = tensor.movedim(self.axis, 0) if self.axis else tensor
        outer, inner = self.folds(tensor.shape[0], n)
        if outer == 1:
            return tensor.unflatten(0, (n, inner))
        return tensor.unflatten(0, (outer, n, inner)).transpose(0, 1).flatten(1, 2)

    def split(self, tensor: Tensor, n: int) -> Tensor:
        """(n, *what one sample alone would have)."""
        return self.fold(tensor, n).movedim(1, self.axis + 1)


def folded(tensor: Tensor, layout: Layout | None, n: int, axis: int | None = None) -> Tensor:
    """(n, positions, ...); a single sample owns all there is, whatever the dimension. `axis` overrides the layout's."""
    axis = layout.axis if axis is None and layout is not None else axis or 0
    if n == 1:
        tensor = tensor.movedim(axis, 0) if axis else tensor
        return tensor.unsqueeze(0)
    if layout is None:
        raise Unsettled("a place that no earlier pass had")
    return Layout(axis, layout.outer, layout.inner).fold(tensor, n)

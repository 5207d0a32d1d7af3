"""Arrays in memory or memory-mapped: a numpy array, a tensor, or a pair (x, y)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from covary.data.readers.base import (
    Reader,
    canonical,
    checked_ids,
    checked_labels,
    checked_truth,
    from_tensor,
    integers_taken,
)
from covary.data.readers.mapped import Mapped
from covary.errors import CovaryError
from covary.storage.fingerprints import array_bytes


class ArrayReader(Reader):
    """Samples along the first dimension of an array that stays as it is; conversions happen as samples are read.

    Raises:
        CovaryError: no samples, a shape no input can have, labels, ids or truth that do not fit.
    """

    cheap = True

    def __init__(
        self,
        x: np.ndarray | Mapped,
        y: Any = None,
        *,
        ids: Any = None,
        truth: Any = None,
        columns: Any = None,
        where: str = "x",
    ) -> None:
        pixels = x.dtype == np.uint8 or (x.dtype == np.uint16 and x.ndim != 2)
        expected = f"(N, H, W, C) or (N, H, W) for {x.dtype} images" if pixels else "(N, ...), one row an input"
        if x.ndim < 2 or (pixels and x.ndim not in (3, 4)):
            raise CovaryError(f"x of {where} has shape {x.shape}, {x.dtype}", expected)
        if pixels and x.ndim == 4 and x.shape[1] in (1, 3, 4) and x.shape[3] not in (1, 3, 4):
            remedy = "move the channels last, x.transpose(0, 2, 3, 1), or store floats, which are taken as they are"
            raise CovaryError(f"x of {where} has shape {x.shape}, {x.dtype}", expected, remedy)
        if len(x) == 0:
            raise CovaryError(f"{where} is empty", "at least one input")
        canonical(x[:0], where)
        self.x, self.where = x, where
        self.notes = integers_taken(np.dtype(x.dtype), tuple(x.shape[1:]))
        self.ids = checked_ids(ids, len(x), where)
        self.y = None if y is None else checked_labels(y, len(x), where)
        self.columns = None if columns is None else [str(name) for name in np.asarray(columns).tolist()]
        if self.columns is not None and x.shape[1:] != (len(self.columns),):
            found = f"{where} has {len(self.columns)} names of columns for inputs of shape {x.shape[1:]}"
            raise CovaryError(found, "one name for each number of an input")
        self.truth = None if truth is None else checked_truth(truth, len(x), where)

    def labels(self, index: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"] | None:
        """Original classes, where they came with the array."""
        return None if self.y is None else self.y[index]

    def read(self, index: Int[np.ndarray, " n"]) -> np.ndarray:
        """Raw samples at `index`."""
        # A slice of a mapped file is read in one go, which picking row by row is not.
        if len(index) and np.array_equal(index, np.arange(index[0], index[0] + len(index))):
            return canonical(np.array(self.x[index[0] : index[0] + len(index)]), self.where)
        return canonical(self.x[index], self.where)

    def content(self, i: int) -> bytes:
        """Dtype, shape and bytes of sample i."""
        return array_bytes(np.asarray(self.x[i]))


def is_array(value: object) -> bool:
    """Whether a value is an array, a tensor or a table with named columns (a DataFrame)."""
    return isinstance(value, np.ndarray | torch.Tensor) or (hasattr(value, "to_numpy") and hasattr(value, "columns"))


def accepts(spec: object) -> bool:
    """Whether `spec` is an array, a tensor, a DataFrame or a pair (x, y) of them."""
    return is_array(spec[0]) and len(spec) == 2 if isinstance(spec, tuple) and spec else is_array(spec)


def open_arrays(spec: Any) -> ArrayReader:
    """A reader over an array, a tensor, a DataFrame or a pair (x, y)."""
    x, y = spec if isinstance(spec, tuple) else (spec, None)
    if hasattr(x, "to_numpy"):
        names = [str(name) for name in x.columns]
        return ArrayReader(x.to_numpy(), y, ids=list(map(str, x.index)), columns=names, where="the table")
    return ArrayReader(from_tensor(x, batched=True) if isinstance(x, torch.Tensor) else x, y, where="the array")

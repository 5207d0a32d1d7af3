"""An array in a file, read piece by piece, with memory that does not grow with what has been read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

# A memory map keeps the pages it has touched; it is opened anew after about this many bytes.
RENEWED_AFTER = 32 * 2**20
# What the system reads around every place that is touched.
AROUND = 2**16


class Mapped:
    """A memory-mapped array whose pieces are copies; `shape`, `dtype` and `ndim` as of an array."""

    def __init__(
        self, path: Path, dtype: np.dtype, offset: int, shape: tuple[int, ...], order: Literal["C", "F"]
    ) -> None:
        self.path, self.dtype, self.offset, self.shape = path, dtype, offset, shape
        self.order: Literal["C", "F"] = order
        self.ndim = len(shape)
        self._touched = 0
        self._map = self._opened()

    def _opened(self) -> np.memmap:
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        if self._touched > RENEWED_AFTER:
            self._touched, self._map = 0, self._opened()
        piece = np.array(self._map[index])
        rows = 1 if isinstance(index, slice | int | np.integer) else len(index)
        self._touched += piece.nbytes + AROUND * rows
        return piece

"""Arrays too large for memory live in files that are mapped into it and vanish with their last user."""

from __future__ import annotations

import tempfile

import numpy as np

# Sets of rows above this many bytes are mapped, array by array; smaller ones are ordinary.
IN_MEMORY = 2**30
# Rows copied at once.
STEP = 4096


def mapped(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array in a nameless temporary file, under TMPDIR; the file goes when the array does."""
    with tempfile.TemporaryFile(prefix="covary-rows-") as file:
        return np.memmap(file, dtype, "w+", shape=shape)


def is_mapped(array: np.ndarray) -> bool:
    """Whether the array's numbers are in a file; a copy of some of them is an ordinary array."""
    return isinstance(array, np.memmap) and array.base is not None and array.size > 0


def take(array: np.ndarray, index: np.ndarray) -> np.ndarray:
    """`array[index]` along the first dimension; of a mapped array a mapped one, a few rows at a time."""
    if not is_mapped(array) or len(index) <= STEP:
        return np.asarray(array[index])
    result = mapped((len(index), *array.shape[1:]), array.dtype)
    for start in range(0, len(index), STEP):
        result[start : start + STEP] = array[index[start : start + STEP]]
    return result

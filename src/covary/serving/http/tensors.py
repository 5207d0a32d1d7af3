"""Tensors of the Open Inference Protocol: JSON numbers, or raw little-endian bytes behind the JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from covary.serving.http.refusals import Refused

KINDS: dict[str, set[type]] = {"b": {bool}, "u": {int}, "i": {int}, "f": {int, float}}
DATATYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
MOST_DIMENSIONS = 8
# In a tensor, zeros in its shape not counted: numpy refuses shapes whose other sizes multiply to too much.
MOST_NUMBERS = 2**40


def dtype_of(name: Any) -> np.dtype:
    """The numpy dtype of a datatype's name."""
    if not isinstance(name, str) or name not in DATATYPES:
        raise Refused(400, f"datatype {_short(name)}", f"one of {', '.join(DATATYPES)}")
    return DATATYPES[name]


def shape_of(value: Any) -> tuple[int, ...]:
    """A shape of at least one dimension, each at least 0."""
    good = isinstance(value, list) and 1 <= len(value) <= MOST_DIMENSIONS
    if not good or not all(type(size) is int and 0 <= size < MOST_NUMBERS for size in value):
        raise Refused(400, f"shape {_short(value)}", f"a list of 1 to {MOST_DIMENSIONS} sizes, such as [1, 3, 32, 32]")
    if math.prod(max(size, 1) for size in value) > MOST_NUMBERS:
        raise Refused(400, f"shape {_short(value)}", f"sizes that multiply to at most {MOST_NUMBERS}")
    return tuple(value)


def from_bytes(raw: bytes, datatype: str, shape: Sequence[int]) -> np.ndarray:
    """A tensor from its bytes."""
    dtype, shape = dtype_of(datatype), tuple(shape)
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise Refused(400, f"{len(raw)} bytes for a tensor of shape {list(shape)} and type {datatype}", f"{expected}")
    if datatype == "BOOL":
        return np.frombuffer(raw, np.uint8).reshape(shape) != 0
    return np.frombuffer(raw, dtype).reshape(shape)


def from_json(data: Any, datatype: str, shape: Sequence[int]) -> np.ndarray:
    """A tensor from JSON numbers, flat or nested, in row-major order."""
    dtype, shape = dtype_of(datatype), tuple(shape)
    if not isinstance(data, list):
        raise Refused(400, f"data is {_short(data)}", "a list of numbers")
    numbers = _flat(data)
    if len(numbers) != math.prod(shape):
        raise Refused(400, f"{len(numbers)} numbers for a tensor of shape {list(shape)}", f"{math.prod(shape)}")
    # Checked before numpy sees them: one long text among numbers would make each of them as long.
    if not set(map(type, numbers)) <= KINDS[dtype.kind]:
        raise Refused(400, f"data of {datatype} holds other values", "numbers of that type")
    if numbers and dtype.kind in "ui":
        limits = np.iinfo(dtype)
        if min(numbers) < limits.min or max(numbers) > limits.max:
            raise Refused(400, f"data holds numbers beyond {datatype}", f"{limits.min} to {limits.max}")
    try:
        with np.errstate(over="ignore"):
            return np.array(numbers, np.float64 if dtype.kind == "f" else dtype).astype(dtype).reshape(shape)
    except OverflowError:
        raise Refused(400, f"data holds numbers beyond {datatype}", "smaller ones") from None


def _flat(data: list[Any]) -> list[Any]:
    """Nested lists in row-major order; lists in one place have one length."""
    for _ in range(MOST_DIMENSIONS):
        kinds = set(map(type, data))
        if list not in kinds:
            return data
        if kinds != {list} or len(set(map(len, data))) > 1:
            raise Refused(400, "data is a ragged list", "numbers, flat or nested as the shape says")
        data = list(chain.from_iterable(data))
    raise Refused(400, "data is a too deep list", "numbers, flat or nested as the shape says")


def to_bytes(values: np.ndarray | list[str]) -> bytes:
    """A tensor's bytes, little-endian; strings each behind their length in four bytes."""
    if isinstance(values, list):
        encoded = [text.encode() for text in values]
        return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()


def to_json(values: np.ndarray | list[str]) -> list[Any]:
    """Flat JSON values; what is not finite becomes null."""
    if isinstance(values, list):
        return values
    flat = values.ravel()
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        return [float(v) if np.isfinite(v) else None for v in flat]
    return flat.tolist()


def datatype_of(values: np.ndarray | list[str]) -> str:
    """The datatype's name."""
    if isinstance(values, list):
        return "BYTES"
    return next(name for name, dtype in DATATYPES.items() if dtype == values.dtype)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

"""Tensors of the Open Inference Protocol: JSON numbers, or raw little-endian bytes behind the JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from covary.serving.http.refusals import Refused

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


def dtype_of(name: Any) -> np.dtype:
    """The numpy dtype of a datatype's name."""
    if not isinstance(name, str) or name not in DATATYPES:
        raise Refused(400, f"datatype {_short(name)}", f"one of {', '.join(DATATYPES)}")
    return DATATYPES[name]


def shape_of(value: Any) -> tuple[int, ...]:
    """A shape of at least one dimension, each at least 0."""
    good = isinstance(value, list) and 1 <= len(value) <= MOST_DIMENSIONS
    if not good or not all(type(size) is int and 0 <= size < 2**40 for size in value):
        raise Refused(400, f"shape {_short(value)}", f"a list of 1 to {MOST_DIMENSIONS} sizes, such as [1, 3, 32, 32]")
    return tuple(value)


def from_bytes(raw: bytes, datatype: str, shape: Sequence[int]) -> np.ndarray:
    """A tensor from its bytes."""
    dtype, shape = dtype_of(datatype), tuple(shape)
    wanted = math.prod(shape) * dtype.itemsize
    if len(raw) != wanted:
        raise Refused(400, f"{len(raw)} bytes for a tensor of shape {list(shape)} and type {datatype}", f"{wanted}")
    if datatype == "BOOL":
        return np.frombuffer(raw, np.uint8).reshape(shape) != 0
    return np.frombuffer(raw, dtype).reshape(shape)


def from_json(data: Any, datatype: str, shape: Sequence[int]) -> np.ndarray:
    """A tensor from JSON numbers, flat or nested, in row-major order."""
    dtype, shape = dtype_of(datatype), tuple(shape)
    if not isinstance(data, list):
        raise Refused(400, f"data is {_short(data)}", "a list of numbers")
    try:
        found = np.array(data)
    except (ValueError, OverflowError, RecursionError):
        raise Refused(400, "data is a ragged or too deep list", f"numbers for shape {list(shape)}") from None
    if found.size != math.prod(shape):
        raise Refused(400, f"{found.size} numbers for a tensor of shape {list(shape)}", f"{math.prod(shape)}")
    kinds = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[dtype.kind]
    if found.size and found.dtype.kind not in kinds:
        raise Refused(400, f"data of {datatype} holds other values", "numbers of that type")
    if found.size and dtype.kind in "ui":
        limits = np.iinfo(dtype)
        if int(found.min()) < limits.min or int(found.max()) > limits.max:
            raise Refused(400, f"data holds numbers beyond {datatype}", f"{limits.min} to {limits.max}")
    with np.errstate(over="ignore"):
        return found.astype(dtype).reshape(shape)


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

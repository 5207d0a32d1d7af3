"""Fingerprints: sha256 of what a result depends on, so a saved detector or run can refuse what it was not made for."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 1 << 20
PACKAGES = ("covary", "torch", "numpy", "scipy", "scikit-learn")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and unescaped UTF-8: equal values give equal text.

    >>> canonical_json({"b": 1, "a": [1.5, None]})
    '{"a":[1.5,null],"b":1}'
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # Names of files that are no UTF-8 hold lone surrogates, which JSON writes as escapes and nothing else can.
    return text.encode("utf-8", "backslashreplace").decode()


def digest_json(value: Any) -> str:
    """sha256 of the canonical JSON of `value`, in hex."""
    return digest_bytes(canonical_json(value).encode())


def digest_bytes(content: bytes) -> str:
    """sha256 of bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def digest_file(path: str | Path) -> str:
    """sha256 of a file's bytes, in hex; read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def array_bytes(array: np.ndarray) -> bytes:
    """An array as bytes that name its dtype and shape first, so that equal bytes mean equal arrays."""
    little_endian = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    return f"{array.dtype.name}{list(array.shape)};".encode() + little_endian.tobytes()


def digest_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 over names (sorted), dtypes, shapes and contents of arrays, in hex."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name}\0".encode())
        digest.update(array_bytes(np.asarray(arrays[name])))
    return digest.hexdigest()


def digest_tensors(tensors: Mapping[str, Any]) -> str:
    """sha256 over names (sorted), dtypes, shapes and contents of torch tensors, in hex; the device does not matter."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{dtype}{list(tensor.shape)};".encode())
        # Through uint8, because numpy has no bfloat16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str | None]:
    """Versions of covary, Python, the numerical packages and the platform; None where a package is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found

"""Whatever `data.readers` opens that is neither files to be streamed nor held by another process: .npz, Datasets."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from covary.data.readers import Reader, open_reader

AT_ONCE = 256


def reader(spec: str) -> Reader:
    """The reader, opened once a process, and anew where its file has changed since."""
    path = Path(spec)
    return _reader(spec, (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None)


@lru_cache(maxsize=1)
def _reader(spec: str, stamp: tuple[int, int] | None) -> Reader:
    del stamp
    return open_reader(spec)


def cut(spec: str, files: list[tuple[str, int]], size: int) -> Iterator[tuple[dict[str, Any], int | None]]:
    """Stretches of at most `size` samples."""
    n = len(reader(spec).ids)
    total = sum(length for _, length in files)
    for start in range(0, n, size):
        stop = min(start + size, n)
        yield {"start": start, "stop": stop, "bytes": total * (stop - start) // n}, stop - start


def ids(spec: str, part: dict[str, Any]) -> list[str]:
    """Ids of the partition's samples."""
    return list(reader(spec).ids[part["start"] : part["stop"]])


def read(spec: str, part: dict[str, Any], mode: str) -> Iterator[tuple[str, np.ndarray]]:
    """Ids and raw samples as the reader gives them."""
    opened = reader(spec)
    opened.set_mode(mode)
    for start in range(part["start"], part["stop"], AT_ONCE):
        index = np.arange(start, min(start + AT_ONCE, part["stop"]))
        yield from zip([opened.ids[i] for i in index.tolist()], opened.read(index), strict=True)


def size_of(spec: str) -> list[tuple[str, int]]:
    """The file behind `spec` and its size, where it is a file."""
    path = Path(spec)
    return [(spec, path.stat().st_size)] if path.is_file() else []

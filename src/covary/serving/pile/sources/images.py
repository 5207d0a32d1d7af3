"""A folder of encoded images, flat or one folder a class, on any filesystem; ids and order as of `readers.folder`."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

import numpy as np

from covary.data.readers.images import SUFFIXES
from covary.errors import CovaryError, printable
from covary.serving.pile.output_store import TROUBLE, filesystem
from covary.serving.pile.sources.values import decoded

# Filesystems that can fetch several files at once get this many names.
AT_ONCE = 32


def cut(spec: str, files: list[tuple[str, int]], size: int) -> Iterator[tuple[dict[str, Any], int | None]]:
    """Stretches of at most `size` names."""
    root = filesystem(spec)[1].rstrip("/")
    pattern = any(mark in spec for mark in "*?[{") or files[0][0] == root
    # A single image, and what a pattern finds, are named below the folder that all of them are in.
    above = posixpath.commonpath([posixpath.dirname(name) for name, _ in files]) if pattern else root
    top = f"{above.rstrip('/')}/" if above else ""
    inside = [(name[len(top) :], length) for name, length in files]
    depths = {"/" in name for name, _ in inside}
    if len(depths) > 1 and not pattern:
        loose = next(name for name, _ in inside if "/" not in name)
        raise CovaryError(
            f"{spec} holds images ({loose}, ...) as well as folders of images", "one of the two",
            "move the loose images away",
        )  # fmt: skip
    for start in range(0, len(inside), size):
        some = inside[start : start + size]
        yield {"top": top, "names": [n for n, _ in some], "bytes": sum(length for _, length in some)}, len(some)


def ids(spec: str, part: dict[str, Any]) -> list[str]:
    """Names of the partition's images."""
    return [printable(name) for name in part["names"]]


def read(spec: str, part: dict[str, Any], mode: str) -> Iterator[tuple[str, np.ndarray]]:
    """Ids (paths below the folder) and decoded images."""
    fs = filesystem(spec)[0]
    for start in range(0, len(part["names"]), AT_ONCE):
        names = part["names"][start : start + AT_ONCE]
        try:
            contents = fs.cat_ranges([part["top"] + name for name in names], None, None, on_error="raise")
        except TROUBLE as problem:
            raise CovaryError(f"images of {spec} cannot be fetched ({problem})", "readable files") from problem
        for name, data in zip(names, contents, strict=True):
            yield printable(name), decoded(data, f"{printable(name)} of {spec}", mode)


__all__ = ["SUFFIXES", "cut", "read"]

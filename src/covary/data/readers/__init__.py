"""Readers: where inputs come from. The first one in the table that accepts a specification opens it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from covary.data.readers import arrays, files, folder, npz, python
from covary.data.readers.base import Reader
from covary.errors import CovaryError

__all__ = ["READERS", "Kind", "Reader", "open_reader"]


class Kind(NamedTuple):
    """One way of naming inputs: whether it accepts a specification, how it opens it, and a word of help."""

    accepts: Callable[[object], bool]
    open: Callable[[Any], Any]
    help: str


READERS: dict[str, Kind] = {
    "arrays": Kind(arrays.accepts, arrays.open_arrays, "a numpy array, a tensor, or a pair (x, y)"),
    "npz": Kind(npz.accepts, npz.open_npz, "an .npz file with x and, where known, y, id and truth"),
    "folder": Kind(folder.accepts, folder.open_folder, "a folder of images, or of one folder a class"),
    "files": Kind(files.accepts, files.open_files, "an image, a glob of images, a .npy, or tensors in a .pt"),
    "python": Kind(
        python.accepts, python.open_python, "package.module:dataset, or a Dataset, DataLoader, list or function"
    ),
}


def open_reader(spec: Any) -> Reader:
    """The reader of whatever `spec` names.

    Raises:
        CovaryError: nothing at that path, or nothing in the table accepts it.
    """
    for kind in READERS.values():
        if kind.accepts(spec):
            return kind.open(spec)
    ways = "; ".join(kind.help for kind in READERS.values())
    if isinstance(spec, str | Path):
        path = Path(spec)
        if not path.exists():
            raise CovaryError(f"nothing at {spec}", ways, "check the path")
        raise CovaryError(f"{spec} is a {path.suffix or 'nameless'} file", ways, "numpy.savez(file, x=...) writes one")
    raise CovaryError(f"data given as {type(spec).__name__}", ways)

"""Sources of piles: how each kind of data is cut into partitions, and how a partition is read, on any machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from covary.errors import CovaryError
from covary.objects import is_object_name
from covary.serving.pile.output_store import files_at
from covary.serving.pile.sources import images, jsonl, parquet, readers, webdataset

Cut = Callable[[str, list[tuple[str, int]], int], Iterator[tuple[dict[str, Any], "int | None"]]]
Read = Callable[[str, dict[str, Any], str], Iterator[tuple[str, np.ndarray]]]


class SourceKind(NamedTuple):
    """One way of keeping a pile.

    Attributes:
        suffixes: of its files; none for what `covary.data.readers` opens.
        cut: (pile, its files with sizes, inputs a partition) to partitions as JSON, each with its number of inputs
            where that is known without reading it.
        read: (pile, partition, mode of images) to ids and raw samples, in order.
        help: a word of help.
    """

    suffixes: tuple[str, ...]
    cut: Cut
    read: Read
    help: str


SOURCES: dict[str, SourceKind] = {
    "images": SourceKind(images.SUFFIXES, images.cut, images.read, "a folder of images, or of one folder a class"),
    "parquet": SourceKind(parquet.SUFFIXES, parquet.cut, parquet.read, "parquet with a column x or image"),
    "jsonl": SourceKind(jsonl.SUFFIXES, jsonl.cut, jsonl.read, "JSON Lines with x, input_ids or a base64 image"),
    "webdataset": SourceKind(webdataset.SUFFIXES, webdataset.cut, webdataset.read, "WebDataset shards (.tar)"),
    "readers": SourceKind((), readers.cut, readers.read, "an .npz file, or package.module:dataset"),
}


def streamed(spec: str) -> bool:
    """Whether only a pile can be kept like this: a URL, a glob, or a file of a kind that no reader opens."""
    if is_object_name(spec):
        return False
    path = Path(spec)
    if "://" in spec or (any(mark in spec for mark in "*?[{") and not path.exists()):
        return True
    own = [suffix for name in ("parquet", "jsonl", "webdataset") for suffix in SOURCES[name].suffixes]
    if path.is_dir():
        return any(next(path.rglob(f"*{suffix}"), None) is not None for suffix in own)
    return path.suffix.lower() in own


def recognise(spec: str) -> tuple[str, list[tuple[str, int]]]:
    """Kind of the pile that `spec` names, and its files of that kind with their sizes.

    Raises:
        CovaryError: nothing there, nothing that any kind takes, or files of two kinds.
    """
    if is_object_name(spec) or ("://" not in spec and Path(spec).suffix == ".npz"):
        return "readers", readers.size_of(spec)
    files, ways = files_at(spec), "; ".join(kind.help for kind in SOURCES.values())
    found = {
        name: [file for file in files if file[0].lower().endswith(kind.suffixes)]
        for name, kind in SOURCES.items()
        if kind.suffixes
    }
    present = [name for name, own in found.items() if own]
    if not present:
        raise CovaryError(f"{spec} holds files such as {files[0][0].rsplit('/', 1)[-1]}", ways)
    if len(present) > 1:
        raise CovaryError(f"{spec} holds {' and '.join(present)}", "files of one kind", "name them by a glob")
    return present[0], found[present[0]]

"""Sources of piles: how each kind of data is cut into partitions, and how a partition is read, on any machine."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from covary.data.readers.base import LeftOut
from covary.data.readers.folder import is_hidden
from covary.errors import CovaryError, printable
from covary.objects import is_object_name
from covary.serving.pile.output_store import files_at, filesystem
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
        ids: (pile, partition) to the ids of its inputs, None where only reading them tells.
        help: a word of help.
    """

    suffixes: tuple[str, ...]
    cut: Cut
    read: Read
    ids: Callable[[str, dict[str, Any]], list[str] | None]
    help: str


def _unknown(spec: str, part: dict[str, Any]) -> None:
    """Ids that stand in the inputs themselves."""


SOURCES: dict[str, SourceKind] = {
    "images": SourceKind(
        images.SUFFIXES, images.cut, images.read, images.ids, "a folder of images, or of one folder a class"
    ),
    "parquet": SourceKind(parquet.SUFFIXES, parquet.cut, parquet.read, _unknown, "parquet with a column x or image"),
    "jsonl": SourceKind(
        jsonl.SUFFIXES, jsonl.cut, jsonl.read, _unknown, "JSON Lines with x, input_ids or a base64 image"
    ),
    "webdataset": SourceKind(
        webdataset.SUFFIXES, webdataset.cut, webdataset.read, _unknown, "WebDataset shards (.tar)"
    ),
    "readers": SourceKind((), readers.cut, readers.read, readers.ids, "an .npz file, or package.module:dataset"),
}


def streamed(spec: str) -> bool:
    """Whether only a pile can be kept like this: a URL, a numbered range, or files of a kind that no reader opens."""
    if is_object_name(spec):
        return False
    path = Path(spec)
    if "://" in spec or ("{" in spec and not path.exists()):
        return True
    own = [suffix for name in ("parquet", "jsonl", "webdataset") for suffix in SOURCES[name].suffixes]
    if any(mark in spec for mark in "*?[") and not path.exists():
        # Images and arrays by a pattern are read as any other inputs.
        return any(Path(file).suffix.lower() in own for file in glob.glob(spec, recursive=True) or [spec])
    if path.is_dir():
        return any(next(path.rglob(f"*{suffix}"), None) is not None for suffix in own)
    return path.suffix.lower() in own


Files = list[tuple[str, int]]
# Files that a reader opens as a whole.
ARRAYS = (".npz", ".npy", ".pt", ".pth")


def recognise(spec: str) -> tuple[str, Files, list[LeftOut]]:
    """Kind of the pile that `spec` names, its files of that kind with their sizes, and what is left out.

    Raises:
        CovaryError: nothing there, nothing that any kind takes, or files of two kinds.
    """
    if is_object_name(spec) or ("://" not in spec and Path(spec).suffix in ARRAYS):
        return "readers", readers.size_of(spec), []
    everything, ways = files_at(spec), "; ".join(kind.help for kind in SOURCES.values())
    root = filesystem(spec)[1].rstrip("/")
    # Of a pattern's files the names alone are looked at: people spell out the folders.
    top = -1 if any(mark in spec for mark in "*?[{") else len(root.split("/")) if root else 0
    hidden = [file for file in everything if any(map(is_hidden, file[0].split("/")[top:]))]
    skipped = set(hidden)
    files = [file for file in everything if file not in skipped]
    if not files:
        raise CovaryError(f"{spec} holds hidden files alone", ways)
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
    taken = set(found[present[0]])
    others = [printable(name.rsplit("/", 1)[-1]) for name, size in files if (name, size) not in taken]
    left = [LeftOut(f"files that hold no {present[0]}", others)] if others else []
    left += [LeftOut("hidden files", [printable(name) for name, _ in hidden])] if hidden else []
    return present[0], found[present[0]], left

"""WebDataset shards: tar files in which the members of one input share a name up to its first dot."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from covary.data.readers.base import checked_id
from covary.data.readers.images import SUFFIXES as IMAGES
from covary.data.readers.python import raw_sample
from covary.errors import CovaryError
from covary.serving.pile.output_store import filesystem
from covary.serving.pile.sources.values import decoded

SUFFIXES = (".tar",)


def cut(spec: str, files: list[tuple[str, int]], size: int) -> Iterator[tuple[dict[str, Any], int | None]]:
    """One partition a shard, whatever `size` says: a tar file is read from its beginning, and tells no length."""
    for file, length in files:
        yield {"file": file, "bytes": length}, None


def read(spec: str, part: dict[str, Any], mode: str) -> Iterator[tuple[str, np.ndarray]]:
    """Ids (shard and key) and raw samples: the image (.png, .jpg, ...) or the array (.npy) of every key."""
    file = part["file"]
    shard, before, found = file.rsplit("/", 1)[-1].removesuffix(".tar"), None, True
    try:
        raw: Any = filesystem(spec)[0].open(file, "rb")
        with raw, tarfile.open(fileobj=raw, mode="r|") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, slash, base = member.name.rpartition("/")
                name, _, extension = base.partition(".")
                key = folder + slash + name
                if key != before:
                    check_not_empty(found, before, file)
                    before, found = key, False
                value = sample(tar, member, extension.lower(), f"{member.name} of {file}", mode)
                if value is not None and not found:
                    found = True
                    yield checked_id(f"{shard}/{key}", file), value
            check_not_empty(found, before, file)
    except (tarfile.TarError, EOFError) as error:
        raise CovaryError(f"{file} cannot be read as tar ({error})", "an intact shard", "copy it again") from error


def sample(tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str, where: str, mode: str) -> np.ndarray | None:
    """The member as a raw sample, or None where it is no input (a label, a caption)."""
    # `img.jpg` and `jpg` are both an image: the last part of the extension says what it is.
    kind = "." + extension.rsplit(".", 1)[-1]
    if kind not in (*IMAGES, ".npy"):
        return None
    file = tar.extractfile(member)
    assert file is not None
    data = file.read()
    if kind != ".npy":
        return decoded(data, where, mode)
    try:
        return raw_sample(np.load(io.BytesIO(data), allow_pickle=False), where)
    except (ValueError, EOFError, OSError) as error:
        raise CovaryError(f"{where} cannot be read as .npy ({error})", "an intact array of numbers") from error


def check_not_empty(found: bool, key: str | None, file: str) -> None:
    """Refuses a key without an input: leaving it out would be a verdict nobody gave."""
    if not found:
        raise CovaryError(
            f"{key!r} of {file} has neither an image nor an array", f"one of: {', '.join((*IMAGES, '.npy'))}"
        )

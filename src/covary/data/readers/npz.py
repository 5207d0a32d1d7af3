"""A .npz file with `x` and, where known, `y`, `id` and `truth`; never unpickled."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from covary.data.readers.arrays import ArrayReader
from covary.data.readers.mapped import Mapped
from covary.errors import CovaryError

REMEDY = "write it again with numpy.savez(file, x=..., y=...)"


# What deflate can make of a byte, at most: a member that claims more does not hold what it says.
MOST_DEFLATED = 1032
# A header of numpy's own takes a few hundred bytes.
LONGEST_HEADER = 1 << 16


def read_array(path: Path, key: str) -> np.ndarray:
    """One array of an .npz file.

    Raises:
        CovaryError: the file is no readable .npz, has no such array, or the array holds Python objects.
    """
    with readable(path):
        described(path, key)
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[f"{key}.npy"]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Tells in one sentence whatever is wrong with a file from somebody else."""
    try:
        yield
    except CovaryError:
        raise
    except Exception as error:  # of zipfile, zlib, numpy and the parser of its headers: the file is broken
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CovaryError(f"{path} cannot be read as .npz ({reason})", "an intact .npz file", REMEDY) from error


class Described(NamedTuple):
    """What the header of an array says, once it is known to be true of what lies behind it.

    Attributes:
        shape, fortran, dtype: of the array.
        stored: whether its bytes stand in the file as they are.
        member: where its local header begins in the file.
        header: bytes of the array's own header.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    stored: bool
    member: int
    header: int


def described(path: Path, key: str) -> Described:
    """Reads an array's header alone, and holds it against the size of what follows, before any memory is taken.

    Raises:
        CovaryError: no such array, or one that is encrypted, holds Python objects, or is not as large as it says.
        any error of zipfile or numpy: the file is broken.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if names.count(f"{key}.npy") != 1:
            listed = ", ".join(name.removesuffix(".npy") for name in names[:20]) or "nothing"
            twice = "two arrays" if f"{key}.npy" in names else "no array"
            raise CovaryError(f"{path} has {twice} {key!r} (it holds {listed})", f"one {key}.npy", REMEDY)
        info = archive.getinfo(f"{key}.npy")
        if info.flag_bits & 1:
            raise CovaryError(f"{key!r} in {path} is encrypted", "an .npz file without a password", REMEDY)
        stored = info.compress_type == zipfile.ZIP_STORED
        if not stored and info.compress_type != zipfile.ZIP_DEFLATED:
            raise CovaryError(f"{key!r} in {path} is compressed by method {info.compress_type}", "deflate", REMEDY)
        with archive.open(info) as member:
            head = BytesIO(member.read(LONGEST_HEADER))
        version = npy.read_magic(head)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(head)
    if dtype.hasobject:
        raise CovaryError(f"{key!r} in {path} holds Python objects", "plain numbers or text", REMEDY)
    size = head.tell() + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size != info.file_size:
        found = f"{key!r} in {path} says that it is of shape {shape}, {dtype}, and holds {info.file_size} bytes"
        raise CovaryError(found, f"{size} bytes", REMEDY)
    if info.file_size > max(info.compress_size, 64) * (1 if stored else MOST_DEFLATED):
        found = f"{key!r} in {path} says that {info.compress_size} bytes hold {info.file_size}"
        raise CovaryError(found, "no more than they can", REMEDY)
    return Described(shape, fortran, dtype, stored, info.header_offset, head.tell())


def mapped(path: Path, key: str) -> Mapped | None:
    """An array of an uncompressed .npz, read piece by piece from where it lies in the file; None if compressed."""
    about = described(path, key)
    if not about.stored or 0 in about.shape or not about.shape:
        return None
    with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
        while member.read(1 << 22):  # reading to the end checks the checksum, which a map never does
            pass
    with open(path, "rb") as file:
        file.seek(about.member + 26)
        name_length, extra_length = np.frombuffer(file.read(4), "<u2")
        start = about.member + 30 + int(name_length) + int(extra_length) + about.header
    return Mapped(path, about.dtype, start, about.shape, "F" if about.fortran else "C")


def keys_of(path: Path) -> list[str]:
    """Names of the arrays in an .npz file; members that are no arrays keep their whole names."""
    with readable(path), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return [name.removesuffix(".npy") if name.endswith(".npy") else f"{name} (no .npy)" for name in names]


def accepts(spec: object) -> bool:
    """Whether `spec` is the path of an .npz file."""
    return isinstance(spec, str | Path) and Path(spec).suffix == ".npz" and Path(spec).is_file()


def open_npz(spec: Any) -> ArrayReader:
    """A reader over the arrays `x`, `y`, `id` and `truth` of an .npz file."""
    path = Path(spec)
    keys = keys_of(path)
    if "x" not in keys:
        raise CovaryError(f"{path} has no array 'x' (it holds {', '.join(keys) or 'nothing'})", "inputs in 'x'", REMEDY)
    y, ids, truth, columns = (
        read_array(path, key) if key in keys else None for key in ("y", "id", "truth", "columns")
    )
    with readable(path):
        x = mapped(path, "x")
    x = read_array(path, "x") if x is None else x
    return ArrayReader(x, y, ids=ids, truth=truth, columns=columns, where=str(path))

"""A .npz file with `x` and, where known, `y`, `id` and `truth`; never unpickled."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from covary.data.readers.arrays import ArrayReader
from covary.data.readers.mapped import Mapped
from covary.errors import CovaryError

REMEDY = "write it again with numpy.savez(file, x=..., y=...)"


def read_array(path: Path, key: str) -> np.ndarray:
    """One array of an .npz file.

    Raises:
        CovaryError: the file is no readable .npz, has no such array, or the array holds Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if key not in arrays.files:
                raise CovaryError(f"{path} has no array {key!r}", f"one of: {', '.join(arrays.files) or 'none'}")
            return arrays[key]
    except CovaryError:
        raise
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise CovaryError(f"{key!r} in {path} holds Python objects", "plain numbers or text", REMEDY) from error
        raise CovaryError(f"{path} cannot be read as .npz ({error})", "an intact .npz file", REMEDY) from error
    except Exception as error:  # zipfile, zlib, EOFError and OSError all mean the same here: the file is broken
        raise CovaryError(f"{path} cannot be read as .npz ({error})", "an intact .npz file", REMEDY) from error


def mapped(path: Path, key: str) -> Mapped | None:
    """An array of an uncompressed .npz, read piece by piece from where it lies in the file; None if compressed."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{key}.npy")
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        with archive.open(info) as member:  # reading to the end checks the checksum, which a map never does
            while member.read(1 << 22):
                pass
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)
        name_length, extra_length = np.frombuffer(file.read(4), "<u2")
        file.seek(info.header_offset + 30 + int(name_length) + int(extra_length))
        version = npy.read_magic(file)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = header(file)
        if dtype.hasobject or 0 in shape or not shape:
            return None
        return Mapped(path, dtype, file.tell(), shape, "F" if fortran else "C")


def keys_of(path: Path) -> list[str]:
    """Names of the arrays in an .npz file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise CovaryError(f"{path} cannot be read as .npz ({error})", "an intact .npz file", REMEDY) from error


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
    try:
        x = mapped(path, "x")
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise CovaryError(f"{path} cannot be read as .npz ({error})", "an intact .npz file", REMEDY) from error
    x = read_array(path, "x") if x is None else x
    return ArrayReader(x, y, ids=ids, truth=truth, columns=columns, where=str(path))

"""Single files: one image, the images that a glob finds or a list names, a `.npy` array, a `.pt` of tensors."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy

from covary.data.readers import npz
from covary.data.readers.arrays import ArrayReader
from covary.data.readers.base import LeftOut, Reader, from_tensor
from covary.data.readers.folder import is_hidden
from covary.data.readers.images import SUFFIXES, ImageReader, is_image_file, name_below
from covary.data.readers.mapped import Mapped
from covary.errors import CovaryError

TENSORS = (".pt", ".pth")
MAGIC = "*?["


def is_glob(spec: object) -> bool:
    """Whether `spec` is a pattern of paths and no path itself."""
    return isinstance(spec, str) and any(mark in spec for mark in MAGIC) and not os.path.lexists(spec)


def accepts(spec: object) -> bool:
    """Whether `spec` is one image, a .npy, a .pt, a glob, or a list of paths of images."""
    if isinstance(spec, list | tuple):
        return bool(spec) and all(isinstance(path, str | Path) for path in spec)
    if not isinstance(spec, str | Path):
        return False
    suffix = Path(spec).suffix.lower()
    return is_glob(spec) or (suffix in (".npy", *TENSORS, *SUFFIXES) and Path(spec).is_file())


def open_files(spec: Any) -> Reader:
    """A reader over what a path, a glob or a list of paths names."""
    if isinstance(spec, list | tuple):
        return images([Path(path) for path in spec], f"the list of {len(spec)} paths")
    if is_glob(spec):
        found = [Path(path) for path in sorted(glob.glob(spec, recursive=True, include_hidden=False))]
        if len(found) == 1 and not is_image_file(found[0]):
            from covary.data.readers import open_reader

            return open_reader(found[0])
        return images([path for path in found if not path.is_dir()], spec)
    path = Path(spec)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return ArrayReader(npy_array(path), where=str(path))
    return tensors(path) if suffix in TENSORS else images([path], str(path))


def images(paths: list[Path], where: str) -> ImageReader:
    """Images at paths; ids are the paths below the folder that all of them are in."""
    for path in paths:
        if not path.is_file():
            raise CovaryError(f"nothing at {path}", "an image", "check the path")
    hidden = [path for path in paths if any(is_hidden(part) for part in path.parts if part not in (".", ".."))]
    visible = [path for path in paths if path not in set(hidden)]
    kept = [path for path in visible if is_image_file(path)]
    if not kept:
        held = f"{where} finds {paths[0].name}, which is no image" if paths else f"nothing at {where}"
        raise CovaryError(held, "images that Pillow reads, or a single .npz, .npy or .pt", "check the path")
    root = Path(os.path.commonpath([os.path.abspath(path.parent) for path in kept]))
    names = [name_below(Path(os.path.abspath(path)), root) for path in kept]
    others = [name_below(Path(path.name), Path()) for path in visible if not is_image_file(path)]
    left = [LeftOut("files that are no images", others)] if others else []
    left += [LeftOut("hidden files and folders", [path.name for path in hidden])] if hidden else []
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CovaryError(f"{twice} occurs more than once in {where}", "every image once")
    return ImageReader(kept, names, left)


def npy_array(path: Path) -> np.ndarray | Mapped:
    """The array in a .npy file, read piece by piece; never unpickled."""
    try:
        with open(path, "rb") as file:
            version = npy.read_magic(file)
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = header(file)
            start = file.tell()
            if dtype.hasobject:
                raise CovaryError(f"{path} holds Python objects", "plain numbers", "write it again with numpy.save")
            if not shape or 0 in shape:
                return np.zeros(shape, dtype)
            if path.stat().st_size < start + dtype.itemsize * int(np.prod(shape)):
                raise ValueError("it ends too early")
            return Mapped(path, dtype, start, shape, "F" if fortran else "C")
    except (ValueError, OSError, EOFError) as error:
        raise CovaryError(
            f"{path} cannot be read as .npy ({error})", "an intact .npy file", "write it again"
        ) from error


def tensors(path: Path) -> Reader:
    """A tensor, a pair (x, y) or named tensors `x`, `y`, `id`, `truth` in a torch file; weights_only, never unpickled.

    Raises:
        CovaryError: torch cannot read it without running code, or it holds something else.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and EOF errors all mean the same here
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        expected = "tensors written by torch.save"
        raise CovaryError(f"{path} cannot be read ({reason[:160]})", expected, npz.REMEDY) from error
    named: Mapping[str, Any] = held if isinstance(held, Mapping) else {}
    if isinstance(held, torch.Tensor):
        named = {"x": held}
    elif isinstance(held, list | tuple) and len(held) == 2 and all(isinstance(v, torch.Tensor) for v in held):
        named = {"x": held[0], "y": held[1]}
    if not isinstance(named.get("x"), torch.Tensor):
        holds = f"the keys {', '.join(map(str, list(named)[:5]))}" if named else f"a {type(held).__name__}"
        raise CovaryError(f"{path} holds {holds}", "a tensor, a pair (x, y), or a dict with x and y", npz.REMEDY)
    x = from_tensor(named["x"], batched=True)
    return ArrayReader(x, named.get("y"), ids=named.get("id"), truth=named.get("truth"), where=str(path))

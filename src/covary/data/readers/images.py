"""Encoded images: which files Pillow reads, and how one is decoded."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt
from PIL import Image

from covary.data.readers.base import LeftOut, Reader
from covary.errors import CovaryError, printable
from covary.storage.contents import irregular

# Pillow hands these to other programs, or knows them by name alone.
FOREIGN = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
Image.init()
FORMATS = tuple(sorted(set(Image.OPEN) - set(FOREIGN)))
SUFFIXES = tuple(sorted(suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS))
# Grey of 16 bits; what Pillow calls 32 bits says no range.
SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N")
GREY = ("1", "L", "LA", "La", *SIXTEEN)
# What Pillow's decoders raise on files that somebody has tampered with.
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError,
    RuntimeError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
DEEP = ("I", "F")


class ImageReader(Reader):
    """Images in files, decoded as they are asked for; ids and classes as given.

    Every header is read once at the start, so that a broken file, or one of another size, is told before the long work.

    Attributes:
        mode: `L` where every image is grey, else `RGB`: a network takes one number of channels.

    Raises:
        CovaryError: a file Pillow cannot read, 32 bits a channel, names that occur twice.
    """

    def __init__(self, paths: list[Path], ids: list[str], left_out: list[LeftOut] | None = None) -> None:
        self.paths, self.ids, self.y = paths, ids, None
        headers = [header(path) for path in paths]
        self.sizes = [size for size, _, _ in headers]
        self.coloured = [mode not in GREY for _, mode, _ in headers]
        self.mode = "RGB" if any(self.coloured) else "L"
        frames = [name for name, (_, _, several) in zip(ids, headers, strict=True) if several]
        self.left_out = list(left_out or [])
        if frames:
            self.left_out.append(LeftOut("frames after the first", frames))

    def mixed_sizes(self) -> tuple[str, str] | None:
        """Two images of different size in words, or None where all have one size."""
        for name, (width, height) in zip(self.ids, self.sizes, strict=True):
            if (width, height) != self.sizes[0]:
                return f"{self.ids[0]} is {self.sizes[0][0]}x{self.sizes[0][1]}", f"{name} is {width}x{height}"
        return None

    def set_mode(self, mode: str) -> None:
        """Images are read in this mode from now on; a coloured one is refused where the mode is grey."""
        if mode == "L" and any(self.coloured):
            raise has_colours(self.ids[self.coloured.index(True)])
        self.mode = mode

    def labels(self, index: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"] | None:
        """Position of the class folder, where there are any."""
        return None if self.y is None else self.y[index]

    def read(self, index: Int[np.ndarray, " n"]) -> list[np.ndarray]:
        """Decoded images at `index`, (H, W, 3), or (H, W) where images are read as grey; uint8, uint16 of 16 bits."""
        return [self.decode(self.paths[i]) for i in index]

    def decode(self, path: Path) -> UInt[np.ndarray, "h w *c"]:
        """One image, uint8 or uint16."""
        return decoded(path, str(path), self.mode or "RGB")

    def content(self, i: int) -> bytes:
        """The bytes of file i."""
        return self.paths[i].read_bytes()


def header(path: Path) -> tuple[tuple[int, int], str, bool]:
    """Width and height, mode, and whether there are several frames, without decoding an image."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            size, mode, several = image.size, image.mode, bool(getattr(image, "is_animated", False))
    except BROKEN as error:
        raise unreadable(str(path), error) from error
    if mode in DEEP:
        raise too_deep(str(path))
    return size, mode, several


def decoded(file: Any, where: str, mode: str) -> UInt[np.ndarray, "h w *c"]:
    """The (first) image in a file, by path or opened: (H, W, 3) for mode `RGB`, (H, W) for `L` (see `pixels`).

    Raises:
        CovaryError: Pillow cannot read it, it has 32 bits a channel, or colours where the mode is grey.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            return pixels(image, where, mode)
    except BROKEN as error:
        raise unreadable(where, error) from error


def pixels(image: Image.Image, where: str, mode: str | None = None) -> UInt[np.ndarray, "h w *c"]:
    """A Pillow image in a mode, by default `L` where it is grey, else `RGB`: uint8, and uint16 of grey of 16 bits."""
    if image.mode in DEEP:
        raise too_deep(where)
    if mode == "L" and image.mode not in GREY:
        raise has_colours(where)
    if image.mode in SIXTEEN:
        # Pillow itself would cut the values off at 255.
        grey = np.asarray(image).astype(np.uint16)
        return np.repeat(grey[..., None], 3, axis=-1) if mode == "RGB" else grey
    return np.asarray(image.convert(mode or ("L" if image.mode in GREY else "RGB")))


def unreadable(where: str, error: Exception) -> CovaryError:
    """The error for an image that Pillow cannot read."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    found = f"{where} cannot be read as an image ({reason})"
    return CovaryError(found, "an intact image", "replace or remove the file")


def too_deep(where: str) -> CovaryError:
    """The error for an image of 32 bits a channel, which says no range."""
    found = f"{where} has 32 bits a channel"
    return CovaryError(found, "8 or 16 bits", "convert it, or pass an array of floats")


def has_colours(where: str) -> CovaryError:
    """The error for a coloured image where the network takes grey ones."""
    return CovaryError(f"{where} has colours", "a grey image, as the trusted ones are", "convert it")


def is_image_file(path: Path) -> bool:
    """Whether a file is called as images are.

    Raises:
        CovaryError: it is called so and is none: a pipe, a device, a link to one, or one that leads nowhere.
    """
    if path.suffix.lower() not in SUFFIXES or path.is_dir():
        return False
    if (wrong := irregular(path)) is not None:
        raise CovaryError(f"{path} {wrong}", "an image file", "remove it")
    return True


def name_below(path: Path, root: Path) -> str:
    """A file's name below a folder, printable whatever bytes it is made of."""
    return printable(path.relative_to(root).as_posix())

"""A folder of images: flat, or one folder a class; decoded as they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from covary.data.readers.base import Reader
from covary.errors import CovaryError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
GREY = ("1", "L", "LA")
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class FolderReader(Reader):
    """Images below a folder; ids are paths relative to it, classes its subfolders in sorted order.

    Every header is read once at the start, so that a broken file, or one of another size, is told before the long work.

    Raises:
        CovaryError: no images, images both at the top and in class folders, a file Pillow cannot read, 16-bit images.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        flat, folders = [], []
        for entry in sorted(root.iterdir()):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry)
            elif entry.suffix.lower() in SUFFIXES:
                flat.append(entry)
        grouped = [[p for p in sorted(f.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file()] for f in folders]
        if flat and any(grouped):
            raise CovaryError(
                f"{root} holds images ({flat[0].name}, ...) as well as folders of images ({folders[0].name}/, ...)",
                "one of the two",
                "move the loose images away",
            )
        self.paths = flat or [path for group in grouped for path in group]
        if not self.paths:
            raise CovaryError(f"no images in {root}", f"files ending in {', '.join(SUFFIXES)}")
        self.ids = [path.relative_to(root).as_posix() for path in self.paths]
        self.class_names = None if flat else [folder.name for folder in folders]
        self.y = None if flat else np.repeat(np.arange(len(grouped)), [len(group) for group in grouped])
        self.sizes, modes = zip(*(header(path) for path in self.paths), strict=True)
        # One colour image makes the whole folder colour: a network takes one number of channels.
        self.mode = "L" if all(mode in GREY for mode in modes) else "RGB"

    def mixed_sizes(self) -> tuple[str, str] | None:
        """Two images of different size in words, or None where all have one size."""
        for name, (width, height) in zip(self.ids, self.sizes, strict=True):
            if (width, height) != self.sizes[0]:
                return f"{self.ids[0]} is {self.sizes[0][0]}x{self.sizes[0][1]}", f"{name} is {width}x{height}"
        return None

    def labels(self, index: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"] | None:
        """Position of the class folder, None for a flat folder."""
        return None if self.y is None else self.y[index]

    def read(self, index: Int[np.ndarray, " n"]) -> list[np.ndarray]:
        """Decoded images at `index`, uint8 (H, W, 3), or (H, W) where the whole folder is grey."""
        return [self.decode(self.paths[i]) for i in index]

    def decode(self, path: Path) -> np.ndarray:
        """One image, uint8."""
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert(self.mode))
        except BROKEN as error:
            raise unreadable(path, error) from error

    def content(self, i: int) -> bytes:
        """The bytes of file i."""
        return self.paths[i].read_bytes()


def header(path: Path) -> tuple[tuple[int, int], str]:
    """Width, height and mode of an image, without decoding it."""
    try:
        with Image.open(path) as image:
            size, mode = image.size, image.mode
    except BROKEN as error:
        raise unreadable(path, error) from error
    if mode in DEEP:
        raise CovaryError(f"{path} has more than 8 bits a channel", "8-bit images", "pass a Dataset instead")
    return size, mode


def unreadable(path: Path, error: Exception) -> CovaryError:
    """The error for an image that Pillow cannot read."""
    return CovaryError(f"{path} cannot be read as an image ({error})", "an intact image", "replace or remove the file")


def accepts(spec: object) -> bool:
    """Whether `spec` is the path of a folder."""
    return isinstance(spec, str | Path) and Path(spec).is_dir()


def open_folder(spec: Any) -> FolderReader:
    """A reader over a folder of images or of class folders."""
    return FolderReader(Path(spec))

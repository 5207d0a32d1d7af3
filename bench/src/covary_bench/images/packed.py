"""Packed data sets read again: lossless mosaics of images beside their labels and ids."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from covary.errors import CovaryError
from covary_bench.images.base import Images

COLUMNS = 100
CHUNK = 5_000


def mosaic(x: UInt8[np.ndarray, "n h w c"]) -> bytes:
    """Images side by side, 100 a row, as a lossless WebP (grey ones as their repeated channel)."""
    n, h, w, c = x.shape
    rows = -(-n // COLUMNS)
    tiles = np.zeros((rows * COLUMNS, h, w, 3), np.uint8)
    tiles[:n] = x if c == 3 else np.repeat(x, 3, axis=3)
    full = tiles.reshape(rows, COLUMNS, h, w, 3).swapaxes(1, 2).reshape(rows * h, COLUMNS * w, 3)
    file = io.BytesIO()
    Image.fromarray(full).save(file, "WEBP", lossless=True, quality=50, method=3)
    return file.getvalue()


def images_of(content: bytes, n: int, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "n h w c"]:
    """The first n images of a mosaic."""
    h, w, c = shape
    full = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    rows = full.shape[0] // h
    tiles = full.reshape(rows, h, COLUMNS, w, 3).swapaxes(1, 2).reshape(-1, h, w, 3)
    return np.ascontiguousarray(tiles[:n, :, :, :c])


def read_pack(home: Path) -> Images:
    """The images of one packed set."""
    if not (home / "pack.json").is_file():
        raise CovaryError(f"no pack in {home}", "a folder written by `covary-bench pack`")
    facts = json.loads((home / "pack.json").read_text())
    parts = []
    for start in range(0, facts["n"], CHUNK):
        content = (home / f"{start // CHUNK:03d}.webp").read_bytes()
        parts.append(images_of(content, min(CHUNK, facts["n"] - start), tuple(facts["shape"])))
    x = np.concatenate(parts) if parts else np.zeros((0, *facts["shape"]), np.uint8)
    return Images(x, np.load(home / "y.npy"), facts["id"])


def packed(name: str) -> Path | None:
    """Where a data set lies packed, if $COVARY_PACKS has it."""
    home = os.environ.get("COVARY_PACKS")
    return Path(home) / name if home and (Path(home) / name / "pack.json").is_file() else None

"""A data set packed small enough to carry to a machine without a network: lossless mosaics, labels and ids."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from covary.bench.datasets import DATASETS, Images, load
from covary.errors import CovaryError, unknown_name

COLUMNS = 100
CHUNK = 5_000


def mosaic(x: UInt8[np.ndarray, "n h w c"]) -> bytes:
    """Images side by side, 100 a row, as a lossless WebP (grey ones as their repeated channel)."""
    n, h, w, c = x.shape
    rows = -(-n // COLUMNS)
    tiles = np.zeros((rows * COLUMNS, h, w, 3), np.uint8)
    tiles[:n] = x if c == 3 else np.repeat(x, 3, axis=3)
    whole = tiles.reshape(rows, COLUMNS, h, w, 3).swapaxes(1, 2).reshape(rows * h, COLUMNS * w, 3)
    file = io.BytesIO()
    Image.fromarray(whole).save(file, "WEBP", lossless=True, quality=50, method=3)
    return file.getvalue()


def images_of(content: bytes, n: int, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "n h w c"]:
    """The first n images of a mosaic."""
    h, w, c = shape
    whole = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    rows = whole.shape[0] // h
    tiles = whole.reshape(rows, h, COLUMNS, w, 3).swapaxes(1, 2).reshape(-1, h, w, 3)
    return np.ascontiguousarray(tiles[:n, :, :, :c])


def write_pack(dataset: str, out: Path, limit: float = 60.0, seed: int = 0) -> dict[str, Any]:
    """Packs `DATASET-test` whole and as much of `DATASET-train` as fits into `limit` MB, drawn at random.

    Reading: `COVARY_PACKS=FOLDER` makes `datasets.load` take them from there.
    """
    names = [name for name in (f"{dataset}-test", f"{dataset}-train") if name in DATASETS]
    if not names:
        raise unknown_name("data set to pack", dataset, sorted({name.rsplit("-", 1)[0] for name in DATASETS}))
    left, told = limit * 1e6, {}
    for name in names:
        images = load(name)
        order = (
            np.random.default_rng(seed).permutation(len(images)) if name.endswith("train") else np.arange(len(images))
        )
        home = out / name
        home.mkdir(parents=True, exist_ok=True)
        taken, size = 0, 0
        for start in range(0, len(order), CHUNK):
            content = mosaic(images.x[order[start : start + CHUNK]])
            if size + len(content) > left:
                if name.endswith("test"):
                    raise CovaryError(f"{name} alone takes more than {limit:g} MB", "a larger --limit")
                break
            (home / f"{start // CHUNK:03d}.webp").write_bytes(content)
            taken, size = min(start + CHUNK, len(order)), size + len(content)
        left -= size
        kept = order[:taken]
        np.save(home / "y.npy", images.y[kept])
        (home / "pack.json").write_text(
            json.dumps({"n": taken, "of": len(images), "shape": images.x.shape[1:], "id": [images.id[i] for i in kept]})
        )
        told[name] = {"images": taken, "of": len(images), "bytes": size, "folder": str(home)}
    return told


def read_pack(home: Path) -> Images:
    """The images of one packed set."""
    if not (home / "pack.json").is_file():
        raise CovaryError(f"no pack in {home}", "a folder written by `covary bench pack`")
    told = json.loads((home / "pack.json").read_text())
    parts = []
    for start in range(0, told["n"], CHUNK):
        content = (home / f"{start // CHUNK:03d}.webp").read_bytes()
        parts.append(images_of(content, min(CHUNK, told["n"] - start), tuple(told["shape"])))
    x = np.concatenate(parts) if parts else np.zeros((0, *told["shape"]), np.uint8)
    return Images(x, np.load(home / "y.npy"), told["id"])


def packed(name: str) -> Path | None:
    """Where a data set lies packed, if $COVARY_PACKS has it."""
    home = os.environ.get("COVARY_PACKS")
    return Path(home) / name if home and (Path(home) / name / "pack.json").is_file() else None

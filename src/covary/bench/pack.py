"""A data set packed small enough to carry to a machine without a network: lossless mosaics, labels and ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from covary.bench.datasets import DATASETS, load
from covary.bench.packed import CHUNK, mosaic
from covary.errors import CovaryError, unknown_name


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

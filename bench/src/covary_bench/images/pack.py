"""A data set packed small enough to carry to a machine without a network: lossless mosaics, labels and ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from covary.errors import CovaryError, unknown_name
from covary_bench.images.datasets import DATASETS, load
from covary_bench.images.packed import CHUNK, mosaic


@contextmanager
def _atomic_copy(home: Path) -> Iterator[Path]:
    """A folder that replaces an earlier pack only when everything in it is written."""
    if home.exists() and not (home / "pack.json").is_file():
        raise CovaryError(f"{home} exists and is no pack", "a new folder, or a pack to be replaced", "choose another")
    part = home.with_name(home.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if home.exists():
            shutil.rmtree(home)
        part.rename(home)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_pack(dataset: str, out: Path, limit: float = 60.0, seed: int = 0) -> dict[str, Any]:
    """Packs `DATASET-test` whole and as much of `DATASET-train` as fits into `limit` MB, drawn at random.

    Reading: `COVARY_PACKS=FOLDER` makes `datasets.load` take them from there.
    """
    names = [name for name in (f"{dataset}-test", f"{dataset}-train") if name in DATASETS]
    if not names:
        raise unknown_name("data set to pack", dataset, sorted({name.rsplit("-", 1)[0] for name in DATASETS}))
    left, record = limit * 1e6, {}
    for name in names:
        images = load(name)
        order = (
            np.random.default_rng(seed).permutation(len(images)) if name.endswith("train") else np.arange(len(images))
        )
        taken, parts = 0, []
        for start in range(0, len(order), CHUNK):
            content = mosaic(images.x[order[start : start + CHUNK]])
            if sum(map(len, parts)) + len(content) > left:
                if name.endswith("test"):
                    raise CovaryError(f"{name} alone takes more than {limit:g} MB", "a larger --limit")
                break
            parts.append(content)
            taken = min(start + CHUNK, len(order))
        kept, size = order[:taken], sum(map(len, parts))
        left -= size
        facts = {"n": taken, "of": len(images), "shape": images.x.shape[1:], "id": [images.id[i] for i in kept]}
        home = out / name
        with _atomic_copy(home) as part:
            for number, content in enumerate(parts):
                (part / f"{number:03d}.webp").write_bytes(content)
            np.save(part / "y.npy", images.y[kept])
            (part / "pack.json").write_text(json.dumps(facts))
        record[name] = {"images": taken, "of": len(images), "bytes": size, "folder": str(home)}
    return record

